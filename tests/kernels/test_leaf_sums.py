"""The leaves' weighted sums against a plain NumPy twin and another AES."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.kernels import leaf_sums as chosen
from mpcd.kernels import leaf_sums_portable
from mpcd.kernels.aes import expand_key

both = pytest.mark.parametrize("module", [chosen, leaf_sums_portable], ids=["chosen", "portable"])


def keystream(key: np.ndarray, counter: int, words: int) -> np.ndarray:
    blocks = b"".join((counter + i).to_bytes(16, "little") for i in range(words // 2))
    cipher = Cipher(algorithms.AES(key.tobytes()), modes.ECB()).encryptor()
    return np.frombuffer(cipher.update(blocks), np.uint64)


def leaf_sums(keys: np.ndarray, counter: int, depth: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    streams = np.stack([keystream(key, counter, words) for key in keys])
    labels = np.arange(len(keys))
    columns = [np.bitwise_xor.reduce(streams[labels >> j & 1 == 1], axis=0) for j in range(depth)]
    return np.stack(columns), np.bitwise_xor.reduce(streams, axis=0)


def expanded(keys: np.ndarray) -> np.ndarray:
    return np.stack([expand_key(key) for key in keys])


@both
@pytest.mark.parametrize("depth", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("words", [2, 6, 8, 30, 32, 34, 64, 126, 128, 130])
def test_twins(module, depth: int, words: int) -> None:
    rng = np.random.default_rng()
    keys = rng.integers(0, 256, (1 << depth, 16), dtype=np.uint8)
    columns, total = np.empty((depth, words), np.uint64), np.empty(words, np.uint64)
    for counter in (0, 12345, (1 << 63) - words):
        module.leaf_sums(expanded(keys), counter, columns, total)
        want_columns, want_total = leaf_sums(keys, counter, depth, words)
        assert (columns == want_columns).all()
        assert (total == want_total).all()


@both
def test_leaf_zero_counts_in_the_total_only(module) -> None:
    rng = np.random.default_rng()
    keys = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    other = keys.copy()
    other[0] ^= 1
    columns, total = np.empty((2, 4, 40), np.uint64), np.empty((2, 40), np.uint64)
    for i, each in enumerate((keys, other)):
        module.leaf_sums(expanded(each), 5, columns[i], total[i])
    assert (columns[0] == columns[1]).all()
    assert (total[0] != total[1]).all()


@both
def test_writes_only_what_it_is_given(module) -> None:
    keys = np.random.default_rng().integers(0, 256, (4, 16), dtype=np.uint8)
    columns, total = np.zeros((6, 22), np.uint64), np.zeros(30, np.uint64)
    module.leaf_sums(expanded(keys), 0, columns[2:4], total[4:26])
    assert not columns[:2].any()
    assert not columns[4:].any()
    assert not total[:4].any()
    assert not total[26:].any()
    assert columns[2:4].all()


@both
@pytest.mark.parametrize("shape", [(8, 11, 2), (4, 10, 2), (4, 11, 3)])
def test_wrong_shapes_are_refused(module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="round keys are"):
        module.leaf_sums(np.zeros(shape, np.uint64), 0, np.empty((2, 8), np.uint64), np.empty(8, np.uint64))
