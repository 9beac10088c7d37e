"""Transfer kernels against plain NumPy twins of the same names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcd.kernels import transfer as kernels

SIZES = st.sampled_from([0, 1, 63, 64, 65, 128, 200])
BITS = st.integers(1, 64)


def unpack(words: np.ndarray, n: int) -> np.ndarray:
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:n]


def reduce(x: np.ndarray, bits: int) -> np.ndarray:
    return x & np.uint64((1 << bits) - 1)


def transfer_send(
    v0: np.ndarray, v1: np.ndarray, m0: np.ndarray, m1: np.ndarray, d: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """d: bits, uint8 (n,)."""
    p0, p1 = np.where(d, m1, m0), np.where(d, m0, m1)
    return reduce(v0 - p0, bits), reduce(v1 - v0 + p0 - p1, bits)


def multiplex_send(
    b: np.ndarray, z: np.ndarray, m0: np.ndarray, m1: np.ndarray, d: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """b, d: bits, uint8 (n,)."""
    return transfer_send(b * z, (1 - b) * z, m0, m1, d, bits)


def transfer_receive(s: np.ndarray, m: np.ndarray, element: np.ndarray, bits: int, share: np.ndarray) -> np.ndarray:
    """s: bits, uint8 (n,)."""
    return reduce(share + m + s * element, bits)


@given(SIZES, BITS, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_against_twins(n: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    v0, v1, m0, m1 = rng.integers(0, 1 << 64, (4, n), np.uint64)
    d, b = rng.integers(0, 1 << 64, (2, -(-n // 64)), np.uint64)
    share, element = np.empty((2, n), np.uint64)

    kernels.transfer_send(v0, v1, m0, m1, d, bits, share, element)
    want = transfer_send(v0, v1, m0, m1, unpack(d, n), bits)
    assert np.array_equal(share, want[0])
    assert np.array_equal(element, want[1])

    kernels.multiplex_send(b, v0, m0, m1, d, bits, share, element)
    want = multiplex_send(unpack(b, n), v0, m0, m1, unpack(d, n), bits)
    assert np.array_equal(share, want[0])
    assert np.array_equal(element, want[1])

    got = v1.copy()
    kernels.transfer_receive(b, m0, element, bits, got)
    assert np.array_equal(got, transfer_receive(unpack(b, n), m0, element, bits, v1))


@pytest.mark.parametrize("bits", [1, 2, 20, 33, 64])
def test_shares_sum_to_the_choice(bits: int) -> None:
    top = (1 << bits) - 1
    grid = np.meshgrid(*([np.array([0, 1, top], np.uint64)] * 4), np.arange(2), np.arange(2))
    v0, v1, m0, m1, s, d = (g.reshape(-1) for g in grid)
    n = len(v0)
    share, element = np.empty((2, n), np.uint64)
    pack = np.zeros((2, -(-n // 64) * 64), np.uint8)
    pack[0, :n], pack[1, :n] = s, d
    s_words, d_words = np.packbits(pack, axis=1, bitorder="little").view("<u8")
    kernels.transfer_send(v0, v1, m0, m1, d_words, bits, share, element)
    kernels.transfer_receive(s_words, np.where(s ^ d, m1, m0), element, bits, share)
    assert np.array_equal(share, np.where(s, v1, v0))
