"""The columns of the IKNP extension: keystreams, their masks, and the transposition to rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes import ctr_keystream
from mpcd.kernels.cpu import linked
from mpcd.kernels.transpose import transpose_128_into

Words = npt.NDArray[np.uint64]

WIDTH = 128
# Words of each column that are expanded and transposed at a time: 128 KiB of columns stay in the second-level cache.
TILE = 128


@linked
def receiver_rows(keys0: Words, keys1: Words, counter: int, choices: Words, columns: Words, rows: Words) -> None:
    """columns_i = G(k0_i) ^ G(k1_i) ^ choices;  rows = transpose(G(k0)).

    G(k) is AES-CTR from block ``counter`` on. keys0, keys1: uint64 (128, 11, 2), round keys. choices: uint64 (w,),
    w even. Writes columns: uint64 (128, w) and rows: uint64 (64 w, 2). No branch or index depends on keys or choices.
    """
    words = len(choices)
    space = np.empty(WIDTH * TILE, np.uint64)
    other = np.empty((TILE // 2, 2), np.uint64)
    mask = other.reshape(TILE)
    for first in range(0, words, TILE):
        n = min(TILE, words - first)
        tile = space[: WIDTH * n].reshape(WIDTH, n)
        blocks = space[: WIDTH * n].reshape(WIDTH, n // 2, 2)
        for i in range(WIDTH):
            ctr_keystream(keys0[i], counter + first // 2, blocks[i])
            ctr_keystream(keys1[i], counter + first // 2, other[: n // 2])
            for v in range(n):
                columns[i, first + v] = tile[i, v] ^ mask[v] ^ choices[first + v]
        transpose_128_into(tile, rows[64 * first : 64 * (first + n)])


@linked
def sender_rows(keys: Words, delta: Words, counter: int, columns: Words, rows: Words) -> None:
    """rows = transpose(q) with q_i = G(k_i) ^ (delta_i * columns_i).

    keys: uint64 (128, 11, 2), round keys. delta: uint64 (2,), bit i at word i // 64. columns: uint64 (128, w), w even.
    Writes rows: uint64 (64 w, 2). No branch or index depends on keys or delta.
    """
    words = columns.shape[1]
    space = np.empty(WIDTH * TILE, np.uint64)
    for first in range(0, words, TILE):
        n = min(TILE, words - first)
        tile = space[: WIDTH * n].reshape(WIDTH, n)
        blocks = space[: WIDTH * n].reshape(WIDTH, n // 2, 2)
        for i in range(WIDTH):
            ctr_keystream(keys[i], counter + first // 2, blocks[i])
            mask = np.uint64(0) - ((delta[i // 64] >> np.uint64(i % 64)) & np.uint64(1))
            for v in range(n):
                tile[i, v] ^= columns[i, first + v] & mask
        transpose_128_into(tile, rows[64 * first : 64 * (first + n)])
