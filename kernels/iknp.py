"""The columns of the IKNP extension: keystreams, their masks, and the transposition to rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes import ctr_keystream
from mpcd.kernels.cpu import linked
from mpcd.kernels.gf128 import PARTS, TILE, absorb, add_tile, keep
from mpcd.kernels.transpose import transpose_128_into

Words = npt.NDArray[np.uint64]

WIDTH = 128


@linked
def receiver_rows(
    keys0: Words, keys1: Words, counter: int, choices: Words, columns: Words, tiles: Words, rows: Words
) -> None:
    """columns_i = G(k0_i) ^ G(k1_i) ^ choices;  rows = transpose(G(k0)).

    G(k) is AES-CTR from block ``counter`` on. keys0, keys1: uint64 (128, 11, 2), round keys. choices: uint64 (w,),
    w even. Writes columns: uint64 (128, w), rows: uint64 (64 w, 2) and tiles: uint64 (>= 128 w,), G(k0)'s columns in
    tiles (gf128.py). No branch or index depends on keys or choices.
    """
    words = len(choices)
    if tiles.shape[0] < WIDTH * words:
        raise ValueError("no space for the tiles")
    # A tile is made where the cache has it, and then kept.
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
        keep(space, WIDTH * n, tiles, WIDTH * first)


@linked
def sender_rows(
    keys: Words, delta: Words, counter: int, columns: Words, powers: Words, hashes: Words, rows: Words
) -> None:
    """rows = transpose(q) with q_i = G(k_i) ^ (delta_i * columns_i);  hashes go on by q's columns (gf128.py).

    keys: uint64 (128, 11, 2), round keys. delta: uint64 (2,), bit i at word i // 64. columns: uint64 (128, w), w even.
    powers: uint64 (w / 2, 2). Writes rows: uint64 (64 w, 2); hashes: uint64 (128, 2). No branch or index depends on
    keys or delta.
    """
    words = columns.shape[1]
    if 2 * powers.shape[0] != words:
        raise ValueError("a power for every block")
    space = np.empty(WIDTH * TILE, np.uint64)
    parts = np.zeros((WIDTH, *PARTS), np.uint64)
    for first in range(0, words, TILE):
        n = min(TILE, words - first)
        tile = space[: WIDTH * n].reshape(WIDTH, n)
        blocks = space[: WIDTH * n].reshape(WIDTH, n // 2, 2)
        for i in range(WIDTH):
            ctr_keystream(keys[i], counter + first // 2, blocks[i])
            mask = np.uint64(0) - ((delta[i // 64] >> np.uint64(i % 64)) & np.uint64(1))
            for v in range(n):
                tile[i, v] ^= columns[i, first + v] & mask
        add_tile(tile, powers, first // 2, parts)
        transpose_128_into(tile, rows[64 * first : 64 * (first + n)])
    absorb(parts, powers[0], hashes)
