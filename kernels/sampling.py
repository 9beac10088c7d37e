"""Distributions over uniform words: ternary, centred binomial, uniform residues, and a wide bell to flood with.

The words come from a keystream; nothing here draws randomness. No branch or index depends on a word, except in
``uniform_residues``, whose words are public.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Words = npt.NDArray[np.uint64]

BINOMIAL_BOUND = 21  # 2 * 21 coins: variance 10.5, sigma 3.24
FLOOD_TERMS = 4
MIN_FLOOD_WIDTH = 33
MAX_FLOOD_WIDTH = 86
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@njit(cache=True, nogil=True)
def ternary(words: Words) -> npt.NDArray[np.int32]:
    """floor(3 w / 2^64) - 1, in {-1, 0, 1}: uniform up to 2^-63. words: uint64. Returns int32, same shape."""
    out = np.empty(words.size, np.int32)
    flat = words.ravel()
    three = np.uint64(3)
    for i in range(flat.size):
        w = flat[i]
        carry = ((w & _LOW) * three) >> _32
        out[i] = np.int32(((w >> _32) * three + carry) >> _32) - np.int32(1)
    return out.reshape(words.shape)


@njit(cache=True, nogil=True)
def centred_binomial(words: Words) -> npt.NDArray[np.int32]:
    """Ones among bits 0..20 minus ones among bits 21..41: in [-21, 21], mean 0, variance 10.5.

    words: uint64, any shape. Returns int32 of the same shape. Bits are counted by adding in parallel fields.
    """
    out = np.empty(words.size, np.int32)
    flat = words.ravel()
    field = np.uint64((1 << 21) - 1)
    for i in range(flat.size):
        w = flat[i]
        # Both halves side by side, 32 bits each.
        x = (w & field) | (((w >> np.uint64(21)) & field) << _32)
        x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        x = x + (x >> np.uint64(8))
        x = x + (x >> np.uint64(16))
        out[i] = np.int32(x & np.uint64(63)) - np.int32((x >> _32) & np.uint64(63))
    return out.reshape(words.shape)


@njit(cache=True, nogil=True)
def uniform_residues(words: Words, q: Words, n: int) -> npt.NDArray[np.uint32]:
    """Uniform modulo q by rejection: 32-bit halves (low first), cut to q's length, the first n below q.

    words: uint64 (m, P, w), public; q: uint64 (P,) below 2^32. Returns uint32 (m, P, n). Raises ValueError where a
    row has fewer than n below q. Branches on the words: for public ones only.
    """
    out = np.empty((words.shape[0], q.shape[0], n), np.uint32)
    for p in range(q.shape[0]):
        cut = np.uint64(1)
        while cut < q[p]:
            cut <<= np.uint64(1)
        cut -= np.uint64(1)
        for i in range(words.shape[0]):
            filled = 0
            for j in range(2 * words.shape[2]):
                if filled == n:
                    break
                value = (words[i, p, j >> 1] >> np.uint64(32 * (j & 1))) & cut
                if value < q[p]:
                    out[i, p, filled] = value
                    filled += 1
            if filled < n:
                raise ValueError("too few words")
    return out


@njit(cache=True, nogil=True)
def flood(words: Words, width: int) -> tuple[Words, Words]:
    """The sum of 4 uniform ``width``-bit integers as high 2^32 + low, low < 2^32.

    words: uint64 (..., 8); 33 <= width <= 86. The sum is in [0, 2^(width + 2) - 4], with mean 2^(width + 1) - 2 and
    standard deviation 2^width sqrt(4 / 12): a cubic B-spline, sampled exactly and with bounded support (3.5 sigma).
    Returns uint64 (...,) twice.
    """
    if width < MIN_FLOOD_WIDTH or width > MAX_FLOOD_WIDTH or words.shape[-1] != 2 * FLOOD_TERMS:
        raise ValueError("width or words out of range")
    flat = words.reshape(-1, 2 * FLOOD_TERMS)
    high = np.empty(flat.shape[0], np.uint64)
    low = np.empty(flat.shape[0], np.uint64)
    mask = (np.uint64(1) << np.uint64(width - 32)) - np.uint64(1)
    for i in range(flat.shape[0]):
        h = np.uint64(0)
        s = np.uint64(0)
        for j in range(FLOOD_TERMS):
            h += flat[i, 2 * j] & mask
            s += flat[i, 2 * j + 1] & _LOW
        high[i] = h + (s >> _32)
        low[i] = s & _LOW
    return high.reshape(words.shape[:-1]), low.reshape(words.shape[:-1])
