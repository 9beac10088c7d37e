"""Leaf kernels against plain NumPy twins of the same names, and against what they are for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcd.kernels import comparison as kernels

SIZES = [0, 1, 63, 64, 65, 128, 200]
BLOCKS = [(width, lowest) for width in (1, 2, 3, 4) for lowest in (False, True)]


def words(bits: np.ndarray) -> np.ndarray:
    """Each row's bits as words."""
    padded = np.zeros((*bits.shape[:-1], -(-bits.shape[-1] // 64) * 64), np.uint8)
    padded[..., : bits.shape[-1]] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8")


def bits_of(words_: np.ndarray, n: int) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(words_).view(np.uint8), axis=-1, bitorder="little")[..., :n]


def bit_plane(x: np.ndarray, position: int) -> np.ndarray:
    return words((x >> np.uint64(position) & np.uint64(1)).astype(np.uint8))


def digit(x: np.ndarray, shift: int, width: int) -> np.ndarray:
    return (x >> np.uint64(shift)).astype(np.int64) & ((1 << width) - 1)


def leaf_corrections(b: np.ndarray, shift: int, width: int, choices: np.ndarray) -> np.ndarray:
    d = digit(b, shift, width) ^ choices
    return words(np.stack([d >> t & 1 for t in range(width)]).astype(np.uint8))


def leaf_messages(
    a: np.ndarray, shift: int, width: int, lowest: bool, d: np.ndarray, pads: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d: the corrections as numbers. Entries uint8 (n, N - 1), less and equal uint8 (n,)."""
    j = np.arange(1 << width)
    digits = digit(a, shift, width)[:, None]
    truth = (digits < j) + 2 * (digits == j)
    masked = truth ^ (pads[:, None].astype(np.int64) >> 2 * (j ^ d[:, None]) & 3)
    share = masked[:, 0]
    entries = masked[:, 1:] ^ share[:, None]
    return (entries & 1 if lowest else entries), share & 1, share >> 1


def leaf_results(b: np.ndarray, shift: int, width: int, entries: np.ndarray, pads: np.ndarray) -> np.ndarray:
    """Both share bits, uint8 (n,); entries as ``leaf_messages`` gives them."""
    table = np.concatenate([np.zeros((len(b), 1), np.int64), entries], axis=1)
    return table[np.arange(len(b)), digit(b, shift, width)] ^ pads


def packed(entries: np.ndarray, lowest: bool) -> np.ndarray:
    """Entries of 64 leaves at a time, each entry's bits one after another."""
    n, count = entries.shape
    step = 1 if lowest else 2
    full = np.zeros((-(-n // 64) * 64, count), np.int64)
    full[:n] = entries
    flat = np.stack([full >> t & 1 for t in range(step)], axis=2)
    return words(flat.reshape(-1).astype(np.uint8))


def leaf_bits(words_: np.ndarray, n: int, size: int) -> np.ndarray:
    """The bits of the first n leaves."""
    return bits_of(words_, n * size)


@given(st.sampled_from(SIZES), st.integers(0, 63), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_bit_plane(n: int, position: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 1 << 64, n, np.uint64)
    assert np.array_equal(kernels.bit_plane(x, position), bit_plane(x, position))


@pytest.mark.parametrize(("width", "lowest"), BLOCKS)
def test_entry_bits(width: int, lowest: bool) -> None:
    assert kernels.entry_bits(width, lowest) == ((1 << width) - 1) * (1 if lowest else 2)


@given(st.sampled_from(SIZES), st.sampled_from(BLOCKS), st.integers(0, 60), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_leaves(n: int, block: tuple[int, bool], shift: int, seed: int) -> None:
    width, lowest = block
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 1 << 64, (2, n), np.uint64)
    pads = rng.integers(0, 1 << (2 << width), n, np.uint64).astype(np.uint32)
    choices = rng.integers(0, 1 << width, n, np.uint8)
    chosen_pads = (pads >> (2 * choices) & 3).astype(np.uint8)

    planes = kernels.leaf_corrections(b, shift, width, choices)
    assert np.array_equal(planes, leaf_corrections(b, shift, width, choices))

    full, size = -(-n // 64), kernels.entry_bits(width, lowest)
    entries = np.empty(full * size, np.uint64)
    less0, equal0, less1, equal1 = np.empty((4, full), np.uint64)
    kernels.leaf_messages(a, shift, width, lowest, planes, pads, entries, less0, equal0)
    d = digit(b, shift, width) ^ choices
    plain, plain_less, plain_equal = leaf_messages(a, shift, width, lowest, d, pads)
    assert np.array_equal(leaf_bits(entries, n, size), leaf_bits(packed(plain, lowest), n, size))
    assert np.array_equal(bits_of(less0, n), plain_less)

    kernels.leaf_results(b, shift, width, lowest, chosen_pads, entries, less1, equal1)
    result = leaf_results(b, shift, width, plain, chosen_pads)
    assert np.array_equal(bits_of(less1, n), result & 1)
    digit_a, digit_b = digit(a, shift, width), digit(b, shift, width)
    assert np.array_equal(bits_of(less0 ^ less1, n), digit_a < digit_b)
    if not lowest:
        assert np.array_equal(bits_of(equal0, n), plain_equal)
        assert np.array_equal(bits_of(equal1, n), result >> 1)
        assert np.array_equal(bits_of(equal0 ^ equal1, n), digit_a == digit_b)


@pytest.mark.parametrize(("width", "lowest"), BLOCKS)
def test_every_digit_and_choice(width: int, lowest: bool) -> None:
    every = 1 << width
    a, b, choices = (v.reshape(-1) for v in np.meshgrid(*(np.arange(every),) * 3))
    a, b, n = a.astype(np.uint64), b.astype(np.uint64), len(a)
    for fill in (0, 0xFFFFFFFF):
        pads = np.full(n, fill & ((1 << 2 * every) - 1), np.uint32)
        planes = kernels.leaf_corrections(b, 0, width, choices.astype(np.uint8))
        entries = np.empty(-(-n // 64) * kernels.entry_bits(width, lowest), np.uint64)
        less0, equal0, less1, equal1 = np.empty((4, -(-n // 64)), np.uint64)
        kernels.leaf_messages(a, 0, width, lowest, planes, pads, entries, less0, equal0)
        kernels.leaf_results(b, 0, width, lowest, np.full(n, fill & 3, np.uint8), entries, less1, equal1)
        assert np.array_equal(bits_of(less0 ^ less1, n), a < b)
        assert lowest or np.array_equal(bits_of(equal0 ^ equal1, n), a == b)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("uses", [1, 2, 4])
def test_pads_moved_ahead(n: int, width: int, uses: int) -> None:
    """Moved pads and no correction make the messages of the pads as they were and the correction."""
    rng = np.random.default_rng()
    a, b = rng.integers(0, 1 << 64, (2, n), np.uint64)
    pads = rng.integers(0, 1 << (2 << width), (n, uses), np.uint64).astype(np.uint32)
    planes = kernels.leaf_corrections(b, 3, width, rng.integers(0, 1 << width, n, np.uint8))
    moved = np.empty((uses, n), np.uint32)
    kernels.leaf_pads_in_place(planes, pads, moved)
    for use in range(uses):
        made = []
        for corrections, own in ((planes, pads[:, use].copy()), (np.zeros_like(planes), moved[use])):
            entries = np.empty(-(-n // 64) * kernels.entry_bits(width, False), np.uint64)
            less, equal = np.empty((2, -(-n // 64)), np.uint64)
            kernels.leaf_messages(a, 3, width, False, corrections, own, entries, less, equal)
            made.append((leaf_bits(entries, n, kernels.entry_bits(width, False)), bits_of(less, n), bits_of(equal, n)))
        assert all(np.array_equal(x, y) for x, y in zip(*made, strict=True))
