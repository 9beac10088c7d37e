"""The columns of the SoftSpokenOT extension: trees' sums, their corrections, and the transposition to rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.cpu import linked
from mpcd.kernels.gf128 import PARTS, TILE, absorb, add_tile, keep
from mpcd.kernels.leaf_sums import leaf_sums
from mpcd.kernels.transpose import transpose_128_into

Words = npt.NDArray[np.uint64]

WIDTH = 128


@linked
def receiver_rows(keys: Words, counter: int, choices: Words, columns: Words, tiles: Words, rows: Words) -> None:
    """choices = u_0;  columns_(i-1) = u_i ^ u_0;  rows = transpose(v), where (v_(k i), ..., v_(k i + k - 1)) and u_i
    are the weighted sums and the total of tree i's leaves (``leaf_sums``).

    keys: uint64 (128 / k, 2^k, 11, 2), round keys. Writes choices: uint64 (w,), w even; columns: uint64
    (128 / k - 1, w); rows: uint64 (64 w, 2); tiles: uint64 (>= 128 w,), v's columns in tiles (gf128.py). No branch or
    index depends on keys.
    """
    trees, words = keys.shape[0], len(choices)
    depth = WIDTH // trees
    if tiles.shape[0] < WIDTH * words:
        raise ValueError("no space for the tiles")
    # A tile is made where the cache has it, and then kept.
    space = np.empty(WIDTH * TILE, np.uint64)
    total = np.empty(TILE, np.uint64)
    for first in range(0, words, TILE):
        n = min(TILE, words - first)
        tile = space[: WIDTH * n].reshape(WIDTH, n)
        leaf_sums(keys[0], counter + first // 2, tile[:depth], choices[first : first + n])
        for i in range(1, trees):
            leaf_sums(keys[i], counter + first // 2, tile[depth * i : depth * (i + 1)], total[:n])
            for v in range(n):
                columns[i - 1, first + v] = total[v] ^ choices[first + v]
        transpose_128_into(tile, rows[64 * first : 64 * (first + n)])
        keep(space, WIDTH * n, tiles, WIDTH * first)


@linked
def sender_rows(
    keys: Words, delta: Words, counter: int, columns: Words, powers: Words, hashes: Words, rows: Words
) -> None:
    """rows = transpose(q), q_(k i + j) = w_(k i + j) ^ (delta_(k i + j) * columns_(i-1)), without the second term for
    i = 0, where (w_(k i), ..., w_(k i + k - 1)) are the weighted sums of tree i's leaves (``leaf_sums``). hashes go on
    by q's columns (gf128.py).

    keys: uint64 (128 / k, 2^k, 11, 2), round keys. delta: uint64 (2,), bit i at word i // 64. columns: uint64
    (128 / k - 1, w), w even. powers: uint64 (w / 2, 2). Writes rows: uint64 (64 w, 2); hashes: uint64 (128, 2). No
    branch or index depends on keys or delta.
    """
    trees, words = keys.shape[0], columns.shape[1]
    depth = WIDTH // trees
    if 2 * powers.shape[0] != words:
        raise ValueError("a power for every block")
    space = np.empty(WIDTH * TILE, np.uint64)
    parts = np.zeros((WIDTH, *PARTS), np.uint64)
    total = np.empty(TILE, np.uint64)
    for first in range(0, words, TILE):
        n = min(TILE, words - first)
        tile = space[: WIDTH * n].reshape(WIDTH, n)
        for i in range(trees):
            leaf_sums(keys[i], counter + first // 2, tile[depth * i : depth * (i + 1)], total[:n])
            if i == 0:
                continue
            for c in range(depth * i, depth * (i + 1)):
                mask = np.uint64(0) - ((delta[c // 64] >> np.uint64(c % 64)) & np.uint64(1))
                for v in range(n):
                    tile[c, v] ^= columns[i - 1, first + v] & mask
        add_tile(tile, powers, first // 2, parts)
        transpose_128_into(tile, rows[64 * first : 64 * (first + n)])
    absorb(parts, powers[0], hashes)
