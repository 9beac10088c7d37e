"""The IKNP column kernels against plain NumPy twins and another AES."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.kernels import gf128, iknp
from mpcd.kernels.aes import expand_key

WORDS = (2, 4, gf128.TILE - 2, gf128.TILE, gf128.TILE + 2, 2 * gf128.TILE, 3 * gf128.TILE + 6)


def keystream(key: np.ndarray, counter: int, words: int) -> np.ndarray:
    blocks = b"".join((counter + i).to_bytes(16, "little") for i in range(words // 2))
    cipher = Cipher(algorithms.AES(key.tobytes()), modes.ECB()).encryptor()
    return np.frombuffer(cipher.update(blocks), np.uint64)


def rows_of(columns: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(columns.view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits.T.copy(), axis=1, bitorder="little").view(np.uint64)


def receiver_rows(keys0, keys1, counter, choices):
    t = np.stack([keystream(key, counter, len(choices)) for key in keys0])
    other = np.stack([keystream(key, counter, len(choices)) for key in keys1])
    return t ^ other ^ choices, rows_of(t)


def sender_rows(keys, delta_bits, counter, columns):
    q = np.stack([keystream(key, counter, columns.shape[1]) for key in keys])
    return rows_of(q ^ np.where(delta_bits[:, None] == 1, columns, np.uint64(0)))


def expanded(keys: np.ndarray) -> np.ndarray:
    return np.stack([expand_key(key) for key in keys])


def random_words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 1 << 64, shape, dtype=np.uint64)


def in_tiles(columns: np.ndarray) -> np.ndarray:
    """(128, w) as the kernels keep it."""
    starts = range(0, columns.shape[1], gf128.TILE)
    return np.concatenate([columns[:, i : i + gf128.TILE].reshape(-1) for i in starts])


def hashes_of(columns: np.ndarray, powers: np.ndarray) -> np.ndarray:
    hashes = np.zeros((128, 2), np.uint64)
    for column, value in zip(np.ascontiguousarray(columns), hashes, strict=True):
        gf128.hash_blocks(column, powers, value)
    return hashes


def columns_of(rows: np.ndarray) -> np.ndarray:
    """The inverse of ``rows_of``."""
    bits = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits.T.copy(), axis=1, bitorder="little").view(np.uint64)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("counter", [0, 12345, (1 << 40) - 1])
def test_receiver_rows(words: int, counter: int) -> None:
    rng = np.random.default_rng()
    keys0, keys1 = rng.integers(0, 256, (2, 128, 16), dtype=np.uint8)
    choices = random_words(rng, words)
    columns, rows = np.empty((128, words), np.uint64), np.empty((64 * words, 2), np.uint64)
    tiles = np.empty(128 * words + 5, np.uint64)
    iknp.receiver_rows(expanded(keys0), expanded(keys1), counter, choices, columns, tiles, rows)
    want_columns, want_rows = receiver_rows(keys0, keys1, counter, choices)
    assert (columns == want_columns).all()
    assert (rows == want_rows).all()
    assert (tiles[:-5] == in_tiles(columns_of(rows))).all()


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("fill", ["zeros", "ones", "random"])
def test_sender_rows(words: int, fill: str) -> None:
    rng = np.random.default_rng()
    keys = rng.integers(0, 256, (128, 16), dtype=np.uint8)
    delta_bits = {
        "zeros": np.zeros(128, np.uint8),
        "ones": np.ones(128, np.uint8),
        "random": rng.integers(0, 2, 128, dtype=np.uint8),
    }[fill]
    columns = random_words(rng, 128, words)
    columns.setflags(write=False)  # as it comes from the wire
    rows = np.empty((64 * words, 2), np.uint64)
    delta = np.packbits(delta_bits, bitorder="little").view(np.uint64)
    powers, hashes = random_words(rng, words // 2, 2), np.zeros((128, 2), np.uint64)
    iknp.sender_rows(expanded(keys), delta, 77, columns, powers, hashes, rows)
    assert (rows == sender_rows(keys, delta_bits, 77, columns)).all()
    assert (hashes == hashes_of(columns_of(rows), powers)).all()
    with pytest.raises(ValueError, match="every block"):
        iknp.sender_rows(expanded(keys), delta, 77, columns, powers[1:], hashes, rows)


def test_streams_join() -> None:
    """Two calls with the counter moved on are one longer call."""
    rng = np.random.default_rng()
    keys0, keys1 = (expanded(k) for k in rng.integers(0, 256, (2, 128, 16), dtype=np.uint8))
    choices = random_words(rng, 10)
    columns, rows = np.empty((128, 10), np.uint64), np.empty((640, 2), np.uint64)
    tiles = np.empty(1280, np.uint64)
    iknp.receiver_rows(keys0, keys1, 9, choices, columns, tiles, rows)
    for first, last in ((0, 4), (4, 10)):
        part = np.empty((128, last - first), np.uint64)
        part_rows = np.empty((64 * (last - first), 2), np.uint64)
        iknp.receiver_rows(keys0, keys1, 9 + first // 2, choices[first:last], part, tiles, part_rows)
        assert (part == columns[:, first:last]).all()
        assert (part_rows == rows[64 * first : 64 * last]).all()
