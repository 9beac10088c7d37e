"""Bits and ring elements in uint64 words: bit i of a vector is bit i % 64 of word i // 64, the tail zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def pack_bits(x: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """words[i // 64] bit i % 64 = x[i].

    x: uint8 (n,), in {0, 1}. Returns uint64 (ceil(n / 64),), tail zero. No branch or index depends on x.
    """
    n = x.shape[0]
    words = np.zeros((n + 63) // 64, np.uint64)
    for w in range(n // 64):
        word = np.uint64(0)
        for j in range(64):
            word |= np.uint64(x[64 * w + j]) << np.uint64(j)
        words[w] = word
    for i in range(n & -64, n):
        words[i // 64] |= np.uint64(x[i]) << np.uint64(i % 64)
    return words


@njit(cache=True, nogil=True)
def unpack_bits(words: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint8]:
    """x[i] = bit i, for i < n.

    words: uint64 (at least ceil(n / 64),). Returns uint8 (n,) in {0, 1}. No branch or index depends on the bits.
    """
    if words.shape[0] * 64 < n:
        raise ValueError("too few words")
    x = np.empty(n, np.uint8)
    for w in range(n // 64):
        word = words[w]
        for j in range(64):
            x[64 * w + j] = (word >> np.uint64(j)) & np.uint64(1)
    for i in range(n & -64, n):
        x[i] = (words[i // 64] >> np.uint64(i % 64)) & np.uint64(1)
    return x


@njit(cache=True, nogil=True)
def clear_tail(words: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """Zeroes the bits from n on, in place; returns words.

    words: uint64 (at least ceil(n / 64),). No branch or index depends on the bits.
    """
    if words.shape[0] * 64 < n:
        raise ValueError("too few words")
    if n % 64:
        words[n // 64] &= (np.uint64(1) << np.uint64(n % 64)) - np.uint64(1)
    words[(n + 63) // 64 :] = 0
    return words


@njit(cache=True, nogil=True)
def pack_ring(x: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """Element i's low ``bits`` bits at bit i * bits; higher bits are dropped, which reduces mod 2^bits.

    x: uint64 (n,), any values; 1 <= bits <= 64. Returns uint64 (ceil(n * bits / 64),), tail zero.
    No branch or index depends on x.
    """
    if bits < 1 or bits > 64:
        raise ValueError("a ring has 1 to 64 bits")
    n = x.shape[0]
    words = np.zeros((n * bits + 63) // 64, np.uint64)
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)
    word = np.uint64(0)
    filled = 0
    at = 0
    for i in range(n):
        value = x[i] & mask
        word |= value << np.uint64(filled)
        filled += bits
        if filled >= 64:
            words[at] = word
            at += 1
            filled -= 64
            # Two shifts: a single one may be by 64.
            word = (value >> np.uint64(1)) >> np.uint64(bits - 1 - filled)
    if filled:
        words[at] = word
    return words


@njit(cache=True, nogil=True)
def unpack_ring(words: npt.NDArray[np.uint64], bits: int, n: int) -> npt.NDArray[np.uint64]:
    """x[i] = the ``bits`` bits from bit i * bits on.

    words: uint64 (at least ceil(n * bits / 64),); 1 <= bits <= 64. Returns uint64 (n,), below 2^bits.
    No branch or index depends on the bits.
    """
    if bits < 1 or bits > 64:
        raise ValueError("a ring has 1 to 64 bits")
    if words.shape[0] * 64 < n * bits:
        raise ValueError("too few words")
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)
    x = np.empty(n, np.uint64)
    last = words.shape[0] - 1
    for i in range(n):
        bit = i * bits
        at = bit >> 6
        shift = np.uint64(bit & 63)
        # Where an element ends in its first word the second one's bits are shifted out or masked off.
        high = words[min(at + 1, last)]
        x[i] = ((words[at] >> shift) | ((high << np.uint64(1)) << (np.uint64(63) - shift))) & mask
    return x
