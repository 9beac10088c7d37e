"""Transposition of bit matrices: from the columns of an OT extension to its rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

# Words side by side in one swap network: what LLVM turns into vectors.
LANES = 8


@njit(cache=True, nogil=True)
def transpose_64(a: npt.NDArray[np.uint64]) -> None:
    """In place, for every lane v: bit j of a[i, v] changes places with bit i of a[j, v].

    a: uint64 (64, LANES), C order. Six rounds of block swaps (Warren, Hacker's Delight, section 7-3).
    No branch or index depends on a.
    """
    width = 32
    mask = np.uint64(0x00000000FFFFFFFF)
    while width:
        shift = np.uint64(width)
        for low in range(64):
            if low & width == 0:
                for v in range(LANES):
                    swap = ((a[low, v] >> shift) ^ a[low + width, v]) & mask
                    a[low, v] ^= swap << shift
                    a[low + width, v] ^= swap
        width >>= 1
        mask ^= mask << np.uint64(width)


@njit(cache=True, nogil=True)
def transpose_128(columns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Row j's bit i is bit j of column i.

    columns: uint64 (128, w), bit j of a column at word j // 64, bit j % 64. Returns uint64 (64 w, 2).
    No branch or index depends on the bits.
    """
    words = columns.shape[1]
    rows = np.empty((64 * words, 2), np.uint64)
    block = np.zeros((64, LANES), np.uint64)
    for first in range(0, words, LANES):
        lanes = min(LANES, words - first)
        for half in range(2):
            if lanes == LANES:
                for i in range(64):
                    for v in range(LANES):
                        block[i, v] = columns[64 * half + i, first + v]
            else:
                for i in range(64):
                    for v in range(lanes):
                        block[i, v] = columns[64 * half + i, first + v]
            transpose_64(block)
            for v in range(lanes):
                base = 64 * (first + v)
                for j in range(64):
                    rows[base + j, half] = block[j, v]
    return rows
