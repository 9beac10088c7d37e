import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcd.kernels import bits

SIZES = [0, 1, 7, 63, 64, 65, 127, 128, 129, 1000]
FULL = 2**64 - 1

size = st.one_of(st.sampled_from(SIZES), st.integers(0, 300))
seed = st.integers(0, 2**32)


def pack_bits(x):
    padded = np.zeros((len(x) + 63) // 64 * 64, np.uint8)
    padded[: len(x)] = x
    return np.packbits(padded, bitorder="little").view(np.uint64)


def unpack_bits(words, n):
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:n]


def pack_ring(x, width):
    total = sum((int(v) % 2**width) << (width * i) for i, v in enumerate(x))
    return np.frombuffer(total.to_bytes((len(x) * width + 63) // 64 * 8, "little"), np.uint64)


def unpack_ring(words, width, n):
    total = int.from_bytes(words.tobytes(), "little")
    return np.array([(total >> (width * i)) % 2**width for i in range(n)], np.uint64)


@settings(deadline=None)
@given(n=size, seed=seed)
def test_bits_twins(n, seed):
    x = np.random.default_rng(seed).integers(0, 2, n, np.uint8)
    words = bits.pack_bits(x)
    assert words.dtype == np.uint64
    np.testing.assert_array_equal(words, pack_bits(x))
    unpacked = bits.unpack_bits(words, n)
    assert unpacked.dtype == np.uint8
    np.testing.assert_array_equal(unpacked, x)


@settings(deadline=None)
@given(n=size, spare=st.integers(0, 3), seed=seed)
def test_unpack_bits_ignores_what_follows(n, spare, seed):
    words = np.random.default_rng(seed).integers(0, FULL, (n + 63) // 64 + spare, np.uint64, endpoint=True)
    np.testing.assert_array_equal(bits.unpack_bits(words, n), unpack_bits(words, n))


@pytest.mark.parametrize("n", SIZES)
def test_clear_tail(n):
    words = np.full((n + 63) // 64 + 2, FULL, np.uint64)
    cleared = bits.clear_tail(words, n)
    assert np.shares_memory(cleared, words)
    assert cleared.shape == words.shape
    np.testing.assert_array_equal(unpack_bits(words, len(words) * 64), np.arange(len(words) * 64) < n)


@settings(deadline=None, max_examples=200)
@given(n=size, width=st.integers(1, 64), seed=seed)
def test_ring_twins(n, width, seed):
    x = np.random.default_rng(seed).integers(0, FULL, n, np.uint64, endpoint=True)
    words = bits.pack_ring(x, width)
    assert words.dtype == np.uint64
    np.testing.assert_array_equal(words, pack_ring(x, width))
    np.testing.assert_array_equal(bits.unpack_ring(words, width, n), unpack_ring(words, width, n))
    np.testing.assert_array_equal(bits.unpack_ring(words, width, n), x & np.uint64(2**width - 1))


@pytest.mark.parametrize("width", range(1, 65))
def test_ring_extremes(width):
    for n in (0, 1, 63, 64, 65):
        x = np.full(n, FULL, np.uint64)
        words = bits.pack_ring(x, width)
        np.testing.assert_array_equal(words, pack_ring(x, width))
        np.testing.assert_array_equal(bits.unpack_ring(words, width, n), x >> np.uint64(64 - width))
        # Neighbours that are zero stay zero.
        x[::2] = 0
        np.testing.assert_array_equal(bits.unpack_ring(bits.pack_ring(x, width), width, n), x >> np.uint64(64 - width))


def test_read_only_words_as_they_come_from_the_wire():
    words = np.frombuffer(bytes(range(16)), np.uint64)
    np.testing.assert_array_equal(bits.unpack_ring(words, 8, 16), np.arange(16))
    np.testing.assert_array_equal(bits.unpack_bits(words, 128), unpack_bits(words, 128))


def test_too_few_words_and_impossible_widths_are_refused():
    words = np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="too few words"):
        bits.unpack_bits(words, 129)
    with pytest.raises(ValueError, match="too few words"):
        bits.clear_tail(words, 129)
    with pytest.raises(ValueError, match="too few words"):
        bits.unpack_ring(words, 43, 3)
    for width in (-1, 0, 65):
        with pytest.raises(ValueError, match="1 to 64 bits"):
            bits.pack_ring(words, width)
        with pytest.raises(ValueError, match="1 to 64 bits"):
            bits.unpack_ring(words, width, 1)
