"""The leaves of a comparison tree: 1-of-2^m OT turned from random to chosen, for 64 comparisons at a time.

A block is m = ``width`` bits of the compared numbers, 1 <= m <= 4, N = 2^m. P0 has a digit a and one pad of two bits
for each of N entries; P1 has a digit b, a random choice c and the pad of entry c. P1 sends d = c xor b. Entry j of
P0's table is [a < j] + 2 [a = j], under the pad of entry j xor d. P0 takes as its own share the value that makes
entry 0 of the message zero, and sends entries 1 to N - 1 only. In the lowest block of all nobody asks for [a = j]:
there (``lowest``) an entry is [a < j] alone.

``entry_bits`` of a leaf travel: 2 (N - 1), or N - 1 in the lowest block. Every 64 leaves fill ``entry_bits`` words,
leaf i at bit i * entry_bits; every 64 corrections fill ``width`` words, word t holding bit t of all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

_GATHER = np.uint64(0x0102040810204080)
_BYTE_ONES = np.uint64(0x0101010101010101)


@njit(cache=True, nogil=True)
def entry_bits(width: int, lowest: bool) -> int:
    """Bits of one leaf's message: (2^width - 1) entries of 2 bits, of 1 bit in the lowest block."""
    entries = (1 << width) - 1
    return entries if lowest else 2 * entries


@njit(cache=True, nogil=True)
def bit_plane(x: npt.NDArray[np.uint64], position: int) -> npt.NDArray[np.uint64]:
    """Bit i of the returned words is bit ``position`` of x[i].

    x: uint64 (n,), any values; 0 <= position <= 63. Returns uint64 (ceil(n / 64),), tail zero.
    No branch or index depends on x.
    """
    n = x.shape[0]
    words = np.zeros((n + 63) // 64, np.uint64)
    for w in range(words.shape[0]):
        word = np.uint64(0)
        for i in range(min(64, n - 64 * w)):
            word |= ((x[64 * w + i] >> np.uint64(position)) & np.uint64(1)) << np.uint64(i)
        words[w] = word
    return words


@njit(cache=True, nogil=True)
def _gather(bytes_: npt.NDArray[np.uint64], position: int) -> np.uint64:
    """Bit ``position`` of 64 bytes, held in 8 words, as one word.

    The product moves bit 8 i of a word to bit 56 + i; no other term lands in the top byte.
    """
    word = np.uint64(0)
    for j in range(8):
        ones = (bytes_[j] >> np.uint64(position)) & _BYTE_ONES
        word |= ((ones * _GATHER) >> np.uint64(56)) << np.uint64(8 * j)
    return word


@njit(cache=True, nogil=True)
def leaf_corrections(
    b: npt.NDArray[np.uint64], shift: int, width: int, choices: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint64]:
    """P1's d = choice xor digit, as ``width`` bit planes.

    b: uint64 (n,), any values, the digit is bits shift to shift + width - 1. choices: uint8 (n,), below 2^width.
    Returns uint64 (width, ceil(n / 64)), tail zero. No branch or index depends on b or choices.
    """
    n = b.shape[0]
    words = (n + 63) // 64
    planes = np.empty((width, words), np.uint64)
    digits = np.zeros(64, np.uint8)
    packed = digits.view(np.uint64)
    for w in range(words):
        count = min(64, n - 64 * w)
        if count < 64:
            digits[:] = 0
        for i in range(count):
            digits[i] = np.uint8(b[64 * w + i] >> np.uint64(shift)) ^ choices[64 * w + i]
        for t in range(width):
            planes[t, w] = _gather(packed, t)
    return planes


@njit(cache=True, nogil=True)
def leaf_messages(
    a: npt.NDArray[np.uint64],
    shift: int,
    width: int,
    lowest: bool,
    corrections: npt.NDArray[np.uint64],
    pads: npt.NDArray[np.uint32],
    entries: npt.NDArray[np.uint64],
    less: npt.NDArray[np.uint64],
    equal: npt.NDArray[np.uint64],
) -> None:
    """P0's messages and shares of one block.

    a: uint64 (n,), any values, the digit is bits shift to shift + width - 1. corrections: uint64 (width, W),
    W = ceil(n / 64). pads: uint32 (n,), entry j's pad at bits 2j and 2j + 1, below 2^(2 N).
    Fills entries: uint64 (W * entry_bits,), less and equal: uint64 (W,) (equal is noise where ``lowest``).
    Bits of comparisons past n are noise that depends on no secret. No branch or index depends on a or pads.
    """
    n = a.shape[0]
    size = entry_bits(width, lowest)
    digit_mask = np.uint64((1 << width) - 1)
    table_mask = np.uint32((1 << (2 * (1 << width) - 2)) - 1)
    digits = np.zeros(64, np.uint32)
    table = np.zeros(64, np.uint32)
    shares = np.zeros(64, np.uint8)
    packed = shares.view(np.uint64)
    for w in range((n + 63) // 64):
        count = min(64, n - 64 * w)
        if count < 64:
            digits[:] = 0
            table[:] = 0
        for i in range(count):
            digits[i] = np.uint32((a[64 * w + i] >> np.uint64(shift)) & digit_mask)
            table[i] = pads[64 * w + i]
        _move(table, corrections, w)
        for i in range(64):
            twice = digits[i] + digits[i]
            truth = (np.uint32(0x55555554) << twice) | (np.uint32(2) << twice)
            masked = table[i] ^ truth
            share = masked & np.uint32(3)
            shares[i] = np.uint8(share)
            table[i] = ((masked ^ (share * np.uint32(0x55555555))) >> np.uint32(2)) & table_mask
        less[w] = _gather(packed, 0)
        equal[w] = _gather(packed, 1)
        if lowest:
            for i in range(64):
                x = table[i] & np.uint32(0x55555555)
                x = (x | (x >> np.uint32(1))) & np.uint32(0x33333333)
                x = (x | (x >> np.uint32(2))) & np.uint32(0x0F0F0F0F)
                x = (x | (x >> np.uint32(4))) & np.uint32(0x00FF00FF)
                table[i] = (x | (x >> np.uint32(8))) & np.uint32(0x0000FFFF)
        _pack(table, size, entries[w * size : (w + 1) * size])


@njit(cache=True, nogil=True)
def leaf_pads_in_place(
    corrections: npt.NDArray[np.uint64], pads: npt.NDArray[np.uint32], out: npt.NDArray[np.uint32]
) -> None:
    """P0's pads of several uses, moved to where P1's digit finds them: ``leaf_messages`` without a correction is next.

    corrections: uint64 (width, W), W = ceil(n / 64). pads: uint32 (n, uses), below 2^(2 N). Fills out: uint32
    (uses, n): entry j is the pad of entry j xor d. No branch or index depends on pads.
    """
    n, uses = pads.shape
    table = np.zeros(64, np.uint32)
    for w in range((n + 63) // 64):
        count = min(64, n - 64 * w)
        for use in range(uses):
            for i in range(count):
                table[i] = pads[64 * w + i, use]
            _move(table, corrections, w)
            for i in range(count):
                out[use, 64 * w + i] = table[i]


@njit(cache=True, nogil=True)
def _move(table: npt.NDArray[np.uint32], corrections: npt.NDArray[np.uint64], w: int) -> None:
    """Entry j takes the pad of entry j xor d: for each set bit of d, entries 2^t apart change places."""
    width = corrections.shape[0]
    if width > 0:
        _swap(table, corrections[0, w], 2, np.uint32(0x33333333))
    if width > 1:
        _swap(table, corrections[1, w], 4, np.uint32(0x0F0F0F0F))
    if width > 2:
        _swap(table, corrections[2, w], 8, np.uint32(0x00FF00FF))
    if width > 3:
        _swap(table, corrections[3, w], 16, np.uint32(0x0000FFFF))


@njit(cache=True, nogil=True)
def _swap(table: npt.NDArray[np.uint32], swaps: np.uint64, distance: int, low: np.uint32) -> None:
    """Where bit i of ``swaps`` is set, table[i]'s bits under ``low`` and those ``distance`` higher change places."""
    for half in range(2):
        word = np.uint32(swaps >> np.uint64(32 * half))
        for i in range(32):
            x = table[32 * half + i]
            select = np.uint32(0) - ((word >> np.uint32(i)) & np.uint32(1))
            moved = ((x >> np.uint32(distance)) ^ x) & low & select
            table[32 * half + i] = x ^ moved ^ (moved << np.uint32(distance))


@njit(cache=True, nogil=True)
def _pack(values: npt.NDArray[np.uint32], bits: int, out: npt.NDArray[np.uint64]) -> None:
    """64 values below 2^bits into ``bits`` words, 1 <= bits <= 32."""
    word = np.uint64(0)
    filled = 0
    at = 0
    for i in range(64):
        value = np.uint64(values[i])
        word |= value << np.uint64(filled)
        filled += bits
        if filled >= 64:
            out[at] = word
            at += 1
            filled -= 64
            word = value >> np.uint64(bits - filled)


@njit(cache=True, nogil=True)
def leaf_results(
    b: npt.NDArray[np.uint64],
    shift: int,
    width: int,
    lowest: bool,
    pads: npt.NDArray[np.uint8],
    entries: npt.NDArray[np.uint64],
    less: npt.NDArray[np.uint64],
    equal: npt.NDArray[np.uint64],
) -> None:
    """P1's shares of one block: entry b of the message (entry 0 is zero) under its pad.

    b: uint64 (n,), any values, the digit is bits shift to shift + width - 1. pads: uint8 (n,), below 4.
    entries: uint64 (W * entry_bits,), any values. Fills less and equal: uint64 (W,), W = ceil(n / 64); equal is zero
    where ``lowest``, bits past n are noise that depends on no secret. No branch or index depends on b or pads.
    """
    n = b.shape[0]
    size = entry_bits(width, lowest)
    step = 1 if lowest else 2
    digit_mask = np.uint64((1 << width) - 1)
    entry_mask = np.uint8((1 << step) - 1)
    table = np.zeros(64, np.uint32)
    digits = np.zeros(64, np.uint32)
    shares = np.zeros(64, np.uint8)
    packed = shares.view(np.uint64)
    for w in range((n + 63) // 64):
        count = min(64, n - 64 * w)
        _unpack(entries[w * size : (w + 1) * size], size, table)
        if count < 64:
            digits[:] = 0
            shares[:] = 0
        for i in range(count):
            digits[i] = np.uint32((b[64 * w + i] >> np.uint64(shift)) & digit_mask) << np.uint32(step - 1)
            shares[i] = pads[64 * w + i]
        for i in range(64):
            entry = (table[i] << np.uint32(step)) >> digits[i]
            shares[i] = (np.uint8(entry) ^ shares[i]) & entry_mask
        less[w] = _gather(packed, 0)
        equal[w] = _gather(packed, 1)


@njit(cache=True, nogil=True)
def _unpack(words: npt.NDArray[np.uint64], bits: int, out: npt.NDArray[np.uint32]) -> None:
    """The 64 values of ``bits`` bits in ``bits`` words, 1 <= bits <= 32."""
    mask = np.uint64((1 << bits) - 1)
    for i in range(64):
        bit = i * bits
        at = bit >> 6
        shift = np.uint64(bit & 63)
        # Where an element ends in its first word the second one's bits are shifted out or masked off.
        high = words[min(at + 1, bits - 1)]
        out[i] = np.uint32(((words[at] >> shift) | ((high << np.uint64(1)) << (np.uint64(63) - shift))) & mask)
