"""Universal hashing over GF(2^128) against a plain twin on Python's integers, by every path."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from mpcd.kernels import cpu, gf128

POLYNOMIAL = (1 << 128) | 0x87


def number(block: np.ndarray) -> int:
    return int(block[0]) | int(block[1]) << 64


def multiply(a: int, b: int) -> int:
    """The plain twin."""
    product = 0
    for i in range(128):
        if b >> i & 1:
            product ^= a << i
    for i in range(product.bit_length() - 1, 127, -1):
        if product >> i & 1:
            product ^= POLYNOMIAL << (i - 128)
    return product


def hashed(blocks: list[int], key: int, start: int = 0) -> int:
    for block in blocks:
        start = multiply(start ^ block, key)
    return start


def powers_of(key: np.ndarray, n: int) -> np.ndarray:
    powers = np.empty((n, 2), np.uint64)
    gf128.descending_powers(key, powers)
    return powers


def zeros() -> np.ndarray:
    return np.zeros(gf128.PARTS, np.uint64)


EXTREMES = (0, 1, 1 << 63, 1 << 64, 1 << 127, (1 << 128) - 1, (1 << 64) - 1, 0x87)


def block_of(value: int) -> np.ndarray:
    return np.array([value & ((1 << 64) - 1), value >> 64], np.uint64)


def test_multiply() -> None:
    rng = np.random.default_rng()
    pairs = [(a, b) for a in EXTREMES for b in EXTREMES]
    pairs += [(number(a), number(b)) for a, b in rng.integers(0, 1 << 64, (100, 2, 2), np.uint64)]
    for a, b in pairs:
        value, parts = block_of(a), zeros()
        gf128.multiply_into(value, block_of(b), parts)
        assert number(value) == multiply(a, b)
        assert not parts.any()


def test_a_published_product() -> None:
    """Intel, "Carry-Less Multiplication and Its Usage for Computing the GCM Mode" (2014), figure 8, bits as there."""
    a, b = 0x7B5B54657374566563746F725D53475D, 0x48692853686179295B477565726F6E5D
    # The paper's polynomial is the same.
    value = block_of(a)
    gf128.multiply_into(value, block_of(b), zeros())
    assert number(value) == 0x40229A09A5ED12E7E4E10DA323506D2


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 64, 97])
def test_hash_blocks(n: int) -> None:
    rng = np.random.default_rng()
    key, before = rng.integers(0, 1 << 64, (2, 2), np.uint64)
    blocks = rng.integers(0, 1 << 64, (n, 2), np.uint64)
    powers, value = powers_of(key, n), before.copy()
    assert [number(p) for p in powers[::-1]] == [hashed([1] + [0] * i, number(key)) for i in range(n)]
    gf128.hash_blocks(blocks.reshape(-1), powers, value)
    want = number(before)
    for _ in range(n):
        want = multiply(want, number(key))
    assert number(value) == want ^ hashed([number(block) for block in blocks], number(key))


@pytest.mark.parametrize("words", [2, 126, 128, 130, 390])
def test_hash_tiles(words: int) -> None:
    """Columns in tiles hash as their blocks do one after the other, and two stretches as one."""
    rng = np.random.default_rng()
    key = rng.integers(0, 1 << 64, 2, np.uint64)
    columns = rng.integers(0, 1 << 64, (128, words), np.uint64)
    want = np.zeros((128, 2), np.uint64)
    for column, value in zip(columns, want, strict=True):
        gf128.hash_blocks(column, powers_of(key, words // 2), value)
    assert number(want[5]) == hashed([number(b) for b in columns[5].reshape(-1, 2)], number(key))
    got = np.zeros((128, 2), np.uint64)
    for part in (columns[:, : words // 4 * 2], columns[:, words // 4 * 2 :]):
        n = part.shape[1]
        if n:
            tiles = [part[:, i : i + gf128.TILE].reshape(-1) for i in range(0, n, gf128.TILE)]
            spare = np.full(7, 9, np.uint64)
            gf128.hash_tiles(np.concatenate([*tiles, spare]), n, powers_of(key, n // 2), got)
    assert (got == want).all()


def test_wrong_lengths_are_refused() -> None:
    powers, value = powers_of(block_of(3), 2), np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="every block"):
        gf128.hash_blocks(np.zeros(6, np.uint64), powers, value)
    with pytest.raises(ValueError, match="every block"):
        gf128.hash_tiles(np.zeros(128 * 6, np.uint64), 6, powers, np.zeros((128, 2), np.uint64))


SCRIPT = """
import hashlib
import numpy as np
from mpcd.kernels import cpu, gf128
powers = np.empty((150, 2), np.uint64)
gf128.descending_powers(np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64), powers)
tiles = np.arange(128 * 300, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
hashes = np.zeros((128, 2), np.uint64)
gf128.hash_tiles(tiles, 300, powers, hashes)
print(cpu.CLMUL_PATH, hashlib.sha256(hashes).hexdigest())
"""


def test_every_path() -> None:
    found = {}
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
            assert ran == cpu.clmul_path(cpu.features(), path)
            found[ran] = digest
    assert "portable" in found
    assert len(set(found.values())) == 1
