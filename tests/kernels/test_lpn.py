"""The sparse code against a plain twin over another AES."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.kernels import lpn
from mpcd.kernels.aes import expand_key

KEY = bytes(range(16))
ROUND_KEYS = expand_key(np.frombuffer(KEY, np.uint8))


def numbers(bits: int, first: int, n: int) -> np.ndarray:
    """(n, D): the rows of the table that outputs first, first + 1, ... add."""
    width, blocks = (16, 5) if bits <= 16 else (32, 10)
    start, count = first // lpn.GROUP * blocks, n // lpn.GROUP * blocks
    counters = b"".join((start + i).to_bytes(16, "little") for i in range(count))
    stream = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(counters)
    return (np.frombuffer(stream, f"<u{width // 8}").reshape(n, lpn.D) & ((1 << bits) - 1)).astype(np.int64)


@pytest.mark.parametrize("bits", [0, 1, 8, 15, 16, 17, 19])
@pytest.mark.parametrize("n", [0, 4, 252, 256, 260, 1024])
@pytest.mark.parametrize("first", [0, 4, 1000])
def test_encode(bits: int, n: int, first: int) -> None:
    rng = np.random.default_rng()
    table = rng.integers(0, 1 << 64, (1 << bits, 2), np.uint64)
    rows = rng.integers(0, 1 << 64, (n, 2), np.uint64)
    want = rows ^ np.bitwise_xor.reduce(table[numbers(bits, first, n)], axis=1)
    lpn.encode(ROUND_KEYS, table, first, rows)
    assert (rows == want).all()


@pytest.mark.parametrize("bits", [16, 17])
def test_far_outputs(bits: int) -> None:
    """The last outputs of the largest code."""
    rng = np.random.default_rng()
    table = rng.integers(0, 1 << 64, (1 << bits, 2), np.uint64)
    first = (1900 << 13) - 8
    rows = np.zeros((8, 2), np.uint64)
    lpn.encode(ROUND_KEYS, table, first, rows)
    assert (rows == np.bitwise_xor.reduce(table[numbers(bits, first, 8)], axis=1)).all()


def test_row_numbers_are_uniform() -> None:
    counts = np.bincount(numbers(8, 0, 40_000).reshape(-1), minlength=256)
    mean = 400_000 / 256
    assert (abs(counts - mean) < 8 * np.sqrt(mean)).all()


def test_writes_only_its_rows() -> None:
    rows = np.zeros((24, 2), np.uint64)
    lpn.encode(ROUND_KEYS, np.full((4, 2), 1, np.uint64) << np.arange(4, dtype=np.uint64)[:, None], 0, rows[8:16])
    assert not rows[:8].any()
    assert not rows[16:].any()


@pytest.mark.parametrize(("size", "first", "n"), [(4, 2, 4), (4, 0, 5), (3, 0, 4), (0, 0, 4)])
def test_wrong_sizes_are_refused(size: int, first: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"groups|2\^b rows"):
        lpn.encode(ROUND_KEYS, np.zeros((size, 2), np.uint64), first, np.zeros((n, 2), np.uint64))
