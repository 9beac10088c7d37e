"""Rows of the silent extension: leaves and code put together, at any place, by every AES path."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from mpcd.kernels import cpu, ferret, gf128, half_tree, lpn
from mpcd.kernels.aes import expand_key
from mpcd.kernels.bits import pack_bits

TREE_KEYS = expand_key(np.frombuffer(b"a key of trees..", np.uint8))
CODE_KEYS = expand_key(np.frombuffer(b"a key of a code.", np.uint8))
TREES = 5
NO_HASH = np.empty((0, 2), np.uint64), np.empty((0, 2), np.uint64), np.zeros(2, np.uint64)


def inputs(depth: int) -> tuple[np.ndarray, ...]:
    """(roots, delta, points, siblings, table at the sender, at the receiver)."""
    rng = np.random.default_rng()
    roots, table = rng.integers(0, 1 << 64, (TREES, 2), np.uint64), rng.integers(0, 1 << 64, (64, 2), np.uint64)
    delta = rng.integers(0, 1 << 64, 2, np.uint64) | np.array([1, 0], np.uint64)
    table[:, 0] &= np.uint64((1 << 64) - 2)
    points = rng.integers(0, 1 << depth, TREES, np.uint64)
    sums = np.empty((TREES, depth, 2), np.uint64)
    half_tree.left_sums(TREE_KEYS, roots, delta, sums)
    away = ~points[:, None] >> np.arange(depth, dtype=np.uint64) & np.uint64(1)
    bits = rng.integers(0, 2, (64, 1), np.uint64)
    return roots, delta, points, sums ^ away[:, :, None] * delta, table, table ^ bits * delta


@pytest.mark.parametrize("depth", [6, 7, 10])
def test_rows(depth: int) -> None:
    roots, delta, points, siblings, u, s = inputs(depth)
    total = TREES << depth
    v, w = np.empty((2, TREES, 1 << depth, 2), np.uint64)
    half_tree.grow(TREE_KEYS, roots, delta, v)
    half_tree.grow_punctured(TREE_KEYS, points, siblings, w)
    v, w = v.reshape(-1, 2), w.reshape(-1, 2)
    lpn.encode(CODE_KEYS, u, 0, v)
    lpn.encode(CODE_KEYS, s, 0, w)
    bits = (w[:, 0] & np.uint64(1)).astype(np.uint8)
    assert (w == v ^ bits[:, None] * delta).all()
    assert not (v[:, 0] & np.uint64(1)).any()
    stretches = [(0, total), (0, 64), (total - 64, 64), (64, total - 128), (1 << depth, 1 << depth), (128, 0)]
    for first, n in stretches:
        q, t, choices = np.empty((n, 2), np.uint64), np.empty((n, 2), np.uint64), np.empty(n // 64, np.uint64)
        ferret.sender_rows(TREE_KEYS, roots, delta, depth, CODE_KEYS, u, first, q, *NO_HASH)
        ferret.receiver_rows(TREE_KEYS, points, siblings, CODE_KEYS, s, first, t, choices, *NO_HASH)
        assert (q == v[first : first + n]).all()
        assert (t == w[first : first + n]).all()
        assert (choices == pack_bits(bits[first : first + n])).all()


@pytest.mark.parametrize(
    ("depth", "first", "n"), [(5, 0, 64), (6, 32, 64), (6, 0, 63), (6, 64, TREES * 64), (6, -64, 64)]
)
def test_places_out_of_range(depth: int, first: int, n: int) -> None:
    roots, delta, points, siblings, u, s = inputs(depth)
    rows = np.zeros((n, 2), np.uint64)
    with pytest.raises(ValueError, match=r"blocks of 64|no such outputs"):
        ferret.sender_rows(TREE_KEYS, roots, delta, depth, CODE_KEYS, u, first, rows, *NO_HASH)
    choices = np.zeros(max(1, n // 64), np.uint64)
    with pytest.raises(ValueError, match=r"blocks of 64|no such outputs"):
        ferret.receiver_rows(TREE_KEYS, points, siblings, CODE_KEYS, s, first, rows, choices, *NO_HASH)


def test_a_choice_bit_for_every_row() -> None:
    _, _, points, siblings, _, s = inputs(6)
    rows, choices = np.zeros((64, 2), np.uint64), np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="choice bit"):
        ferret.receiver_rows(TREE_KEYS, points, siblings, CODE_KEYS, s, 0, rows, choices, *NO_HASH)


@pytest.mark.parametrize("depth", [6, 9])
@pytest.mark.parametrize("made", [0, 64, 192, TREES << 6])
def test_hashes(depth: int, made: int) -> None:
    """Of both ends' leaves, as rows are made in stretches and for the rest: apart by the points' share of delta."""
    roots, delta, points, siblings, u, s = inputs(depth)
    key = np.random.default_rng().integers(0, 1 << 64, 2, np.uint64)
    size, parts = 1 << depth, np.zeros(gf128.PARTS, np.uint64)
    powers, scales, whole = np.empty((size, 2), np.uint64), np.empty((TREES, 2), np.uint64), np.zeros(2, np.uint64)
    gf128.descending_powers(key, powers)
    scales[0] = 1, 0
    for i in range(1, TREES):
        scales[i] = scales[i - 1]
        gf128.multiply_into(scales[i], powers[0], parts)
    leaves = np.empty((TREES, size, 2), np.uint64)
    half_tree.grow(TREE_KEYS, roots, delta, leaves)
    for i in range(TREES):
        # The plain twin: one polynomial over all leaves, a tree's higher than the one's before.
        one = np.zeros(2, np.uint64)
        gf128.hash_blocks(leaves[i].reshape(-1), powers, one)
        gf128.multiply_into(one, scales[i], parts)
        whole ^= one
    ours, theirs = np.zeros(2, np.uint64), np.zeros(2, np.uint64)
    for first in range(0, made, 64):
        rows, choices = np.empty((64, 2), np.uint64), np.empty(1, np.uint64)
        ferret.sender_rows(TREE_KEYS, roots, delta, depth, CODE_KEYS, u, first, rows, powers, scales, ours)
        ferret.receiver_rows(TREE_KEYS, points, siblings, CODE_KEYS, s, first, rows, choices, powers, scales, theirs)
    ferret.sender_hash(TREE_KEYS, roots, delta, made, powers, scales, ours)
    ferret.receiver_hash(TREE_KEYS, points, siblings, made, powers, scales, theirs)
    assert (ours == whole).all()
    share, want = np.zeros(2, np.uint64), np.zeros(2, np.uint64)
    ferret.point_sum(points, key, depth, scales, share)
    for i in range(TREES):
        one = powers[points[i]].copy()
        gf128.multiply_into(one, scales[i], parts)
        want ^= one
    assert (share == want).all()
    gf128.multiply_into(share, delta, parts)
    assert (theirs == ours ^ share).all()


SCRIPT = """
import hashlib
import numpy as np
from mpcd.kernels import cpu, ferret, gf128, half_tree
from mpcd.kernels.aes import expand_key
digest = hashlib.sha256()
keys = expand_key(np.arange(16, dtype=np.uint8))
words = np.arange(2 << 17, dtype=np.uint64).reshape(-1, 2)
sums, rows, choices = np.empty((3, 9, 2), np.uint64), np.empty((1088, 2), np.uint64), np.empty(17, np.uint64)
half_tree.left_sums(keys, words[:3], words[7], sums)
powers, hashed = np.empty((512, 2), np.uint64), np.zeros(2, np.uint64)
gf128.descending_powers(words[99], powers)
checked = powers, words[40:43], hashed
for table in (words[:64], words[: 1 << 17]):
    ferret.sender_rows(keys, words[:3], words[7], 9, keys, table, 320, rows, *checked)
    digest.update(sums.tobytes() + rows.tobytes())
    ferret.receiver_rows(keys, np.array([0, 300, 511], np.uint64), sums, keys, table, 320, rows, choices, *checked)
    digest.update(hashed.tobytes() + rows.tobytes() + choices.tobytes())
print(cpu.AES_PATH, digest.hexdigest())
"""


def test_every_aes_path() -> None:
    digests = set()
    for path in cpu.AES_PATHS:
        if cpu._NEEDS[path] <= cpu.features():
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT],
                env={**os.environ, "MPCD_AES": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            ran, digest = done.stdout.split()
            assert ran == path
            digests.add(digest)
    assert len(digests) == 1
