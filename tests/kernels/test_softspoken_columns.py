"""The SoftSpokenOT column kernels against plain NumPy twins and another AES, on every AES path."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.kernels import cpu, gf128, ggm, softspoken

DEPTHS = (2, 4, 8)
WORDS = (2, 30, gf128.TILE - 2, gf128.TILE, gf128.TILE + 2, 2 * gf128.TILE + 6)


def keystream(key: np.ndarray, counter: int, words: int) -> np.ndarray:
    blocks = b"".join((counter + i).to_bytes(16, "little") for i in range(words // 2))
    cipher = Cipher(algorithms.AES(key.tobytes()), modes.ECB()).encryptor()
    return np.frombuffer(cipher.update(blocks), np.uint64)


def rows_of(columns: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(columns.view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits.T.copy(), axis=1, bitorder="little").view(np.uint64)


def trees_of(leaves: np.ndarray, counter: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns (128, words) of all trees, and their totals (trees, words)."""
    depth = 128 // len(leaves)
    labels = np.arange(1 << depth)
    columns, totals = [], []
    for tree in leaves:
        streams = np.stack([keystream(leaf, counter, words) for leaf in tree])
        columns += [np.bitwise_xor.reduce(streams[labels >> j & 1 == 1], axis=0) for j in range(depth)]
        totals.append(np.bitwise_xor.reduce(streams, axis=0))
    return np.stack(columns), np.stack(totals)


def receiver_rows(leaves, counter, words):
    columns, totals = trees_of(leaves, counter, words)
    return totals[0], totals[1:] ^ totals[0], rows_of(columns)


def sender_rows(leaves, delta_bits, counter, corrections):
    columns, _ = trees_of(leaves, counter, corrections.shape[1])
    depth = 128 // len(leaves)
    zero = np.zeros((1, corrections.shape[1]), np.uint64)
    repeated = np.repeat(np.concatenate([zero, corrections]), depth, axis=0)
    return rows_of(columns ^ np.where(delta_bits[:, None] == 1, repeated, np.uint64(0)))


def random_words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 1 << 64, shape, dtype=np.uint64)


def outputs(trees: int, words: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    tiles, rows = np.empty(128 * words, np.uint64), np.empty((64 * words, 2), np.uint64)
    return np.empty(words, np.uint64), np.empty((trees - 1, words), np.uint64), tiles, rows


def columns_of(rows: np.ndarray) -> np.ndarray:
    """The inverse of ``rows_of``."""
    bits = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits.T.copy(), axis=1, bitorder="little").view(np.uint64)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("words", WORDS)
def test_receiver_rows(depth: int, words: int) -> None:
    leaves = random_words(np.random.default_rng(), 128 // depth, 1 << depth, 2)
    choices, columns, tiles, rows = outputs(len(leaves), words)
    for counter in (0, (1 << 40) - 1):
        softspoken.receiver_rows(ggm.leaf_keys(leaves), counter, choices, columns, tiles, rows)
        want_choices, want_columns, want_rows = receiver_rows(leaves, counter, words)
        assert (choices == want_choices).all()
        assert (columns == want_columns).all()
        assert (rows == want_rows).all()
        want_tiles = columns_of(rows)
        starts = range(0, words, gf128.TILE)
        assert (tiles == np.concatenate([want_tiles[:, i : i + gf128.TILE].reshape(-1) for i in starts])).all()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("fill", ["zeros", "ones", "random"])
def test_sender_rows(depth: int, words: int, fill: str) -> None:
    rng = np.random.default_rng()
    leaves = random_words(rng, 128 // depth, 1 << depth, 2)
    delta_bits = {
        "zeros": np.zeros(128, np.uint8),
        "ones": np.ones(128, np.uint8),
        "random": rng.integers(0, 2, 128, dtype=np.uint8),
    }[fill]
    columns = random_words(rng, len(leaves) - 1, words)
    columns.setflags(write=False)  # as it comes from the wire
    rows = np.empty((64 * words, 2), np.uint64)
    delta = np.packbits(delta_bits, bitorder="little").view(np.uint64)
    powers, hashes, want = (
        random_words(rng, words // 2, 2),
        np.zeros((128, 2), np.uint64),
        np.zeros((128, 2), np.uint64),
    )
    softspoken.sender_rows(ggm.leaf_keys(leaves), delta, 77, columns, powers, hashes, rows)
    assert (rows == sender_rows(leaves, delta_bits, 77, columns)).all()
    for column, value in zip(columns_of(rows), want, strict=True):
        gf128.hash_blocks(np.ascontiguousarray(column), powers, value)
    assert (hashes == want).all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_streams_join(depth: int) -> None:
    """Two calls with the counter moved on are one longer call."""
    keys = ggm.leaf_keys(random_words(np.random.default_rng(), 128 // depth, 1 << depth, 2))
    choices, columns, tiles, rows = outputs(len(keys), 10)
    softspoken.receiver_rows(keys, 9, choices, columns, tiles, rows)
    for first, last in ((0, 4), (4, 10)):
        part_choices, part_columns, part_tiles, part_rows = outputs(len(keys), last - first)
        softspoken.receiver_rows(keys, 9 + first // 2, part_choices, part_columns, part_tiles, part_rows)
        assert (part_choices == choices[first:last]).all()
        assert (part_columns == columns[:, first:last]).all()
        assert (part_rows == rows[64 * first : 64 * last]).all()


SCRIPT = """
import hashlib
import numpy as np
from mpcd.kernels import cpu, gf128, ggm, softspoken
digest = hashlib.sha256()
for depth in (2, 4, 8):
    trees = 128 // depth
    leaves = np.arange(2 * trees << depth, dtype=np.uint64).reshape(trees, 1 << depth, 2)
    keys = ggm.leaf_keys(leaves)
    choices, columns = np.empty(36, np.uint64), np.empty((trees - 1, 36), np.uint64)
    tiles, rows = np.empty(128 * 36, np.uint64), np.empty((64 * 36, 2), np.uint64)
    softspoken.receiver_rows(keys, 5, choices, columns, tiles, rows)
    digest.update(choices.tobytes() + columns.tobytes() + rows.tobytes())
    columns.setflags(write=False)
    delta, hashes = np.array([0x0123456789ABCDEF, 3 << 62], np.uint64), np.zeros((128, 2), np.uint64)
    softspoken.sender_rows(keys, delta, 5, columns, np.zeros((18, 2), np.uint64), hashes, rows)
    digest.update(rows.tobytes())
print(cpu.AES_PATH, digest.hexdigest())
"""


@pytest.mark.parametrize("path", [path for path in cpu.AES_PATHS if cpu._NEEDS[path] <= cpu.features()])
def test_every_aes_path(path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "MPCD_AES": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256()
    delta_bits = np.unpackbits(np.array([0x0123456789ABCDEF, 3 << 62], np.uint64).view(np.uint8), bitorder="little")
    for depth in DEPTHS:
        leaves = np.arange(256 // depth << depth, dtype=np.uint64).reshape(128 // depth, 1 << depth, 2)
        choices, columns, rows = receiver_rows(leaves, 5, 36)
        digest.update(choices.tobytes() + columns.tobytes() + rows.tobytes())
        digest.update(sender_rows(leaves, delta_bits, 5, columns).tobytes())
    assert done.stdout.split() == [path, digest.hexdigest()]
