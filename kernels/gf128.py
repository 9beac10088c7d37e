"""Universal hashing over GF(2^128): sums of products with the powers of a key.

The field is F_2[X] / (X^128 + X^7 + X^2 + X + 1); bit i of a block, two words with the low half first, is the
coefficient of X^i. The hash of the blocks b_0, ..., b_(n-1) under the key r is

    b_0 r^n + b_1 r^(n-1) + ... + b_(n-1) r,

a polynomial without constant term: for blocks that are not all zero and any value, at most n of the 2^128 keys give
that value. It is linear over F_2 in the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mpcd.kernels.cpu import CLMUL_PATH, linked

if CLMUL_PATH == "portable":
    from mpcd.kernels.gf128_portable import LANES, add_products
else:
    from mpcd.kernels.gf128_intrinsics import LANES, add_products

__all__ = [
    "PARTS",
    "TILE",
    "absorb",
    "add_products",
    "add_tile",
    "descending_powers",
    "hash_blocks",
    "hash_tiles",
    "keep",
    "multiply_into",
    "reduce_into",
]

Words = npt.NDArray[np.uint64]

# Words of a column in a tile: 128 KiB of columns stay in the second-level cache.
TILE = 128
# The shape of a sum of products that is not reduced yet.
PARTS = (3, 2 * LANES)


def _keep_step() -> Callable[..., Any]:
    """target[at : at + n] = source[:n], both uint64 in C order, by the C library's memcpy: a loop takes longer."""

    @intrinsic
    def step(typingctx: Any, source: Any, n: Any, target: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            copy: Any = cgutils.raw_memcpy
            source, target = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
            copy(builder, builder.gep(target, [args[3]]), source, args[1], ir.Constant(args[1].type, 8))
            return context.get_dummy_value()

        return types.void(source, types.intp, target, types.intp), codegen

    return step


keep = _keep_step()


@linked
def reduce_into(parts: Words, out: Words) -> None:
    """out ^= the sum in parts modulo the field's polynomial; clears parts. out: uint64 (2,)."""
    low0 = low1 = crossed0 = crossed1 = high0 = high1 = np.uint64(0)
    for lane in range(LANES):
        low0 ^= parts[0, 2 * lane]
        low1 ^= parts[0, 2 * lane + 1]
        crossed0 ^= parts[1, 2 * lane]
        crossed1 ^= parts[1, 2 * lane + 1]
        high0 ^= parts[2, 2 * lane]
        high1 ^= parts[2, 2 * lane + 1]
    parts[:] = 0
    # X^128 = X^7 + X^2 + X + 1: the highest word first, then the third with what came out of the highest.
    top = high1
    third = high0 ^ crossed1 ^ (top >> np.uint64(63)) ^ (top >> np.uint64(62)) ^ (top >> np.uint64(57))
    over = (third >> np.uint64(63)) ^ (third >> np.uint64(62)) ^ (third >> np.uint64(57))
    out[0] ^= low0 ^ third ^ (third << np.uint64(1)) ^ (third << np.uint64(2)) ^ (third << np.uint64(7))
    out[1] ^= low1 ^ crossed0 ^ over ^ top ^ (top << np.uint64(1)) ^ (top << np.uint64(2)) ^ (top << np.uint64(7))


@linked
def multiply_into(a: Words, b: Words, parts: Words) -> None:
    """a = a b. uint64 (2,) each; parts: zeros, and zeros again."""
    add_products(a, 0, b, 0, 1, parts)
    a[:] = 0
    reduce_into(parts, a)


@linked
def descending_powers(key: Words, out: Words) -> None:
    """out[i] = key^(n - i). key: uint64 (2,), out: uint64 (n, 2)."""
    parts = np.zeros(PARTS, np.uint64)
    n = out.shape[0]
    for i in range(n - 1, -1, -1):
        out[i] = key
        if i < n - 1:
            multiply_into(out[i], out[i + 1], parts)


@linked
def add_tile(tile: Words, powers: Words, first: int, parts: Words) -> None:
    """parts[i] += the products of tile[i]'s blocks with powers from ``first`` on.

    tile: uint64 (c, w), w even; parts: uint64 (c, *PARTS).
    """
    blocks = tile.shape[1] // 2
    for i in range(tile.shape[0]):
        add_products(tile, i * blocks, powers, first, blocks, parts[i])


@linked
def absorb(parts: Words, power: Words, hashes: Words) -> None:
    """hashes[i] = hashes[i] power + parts[i]: what was hashed before moves up by as many blocks as power counts."""
    spare = np.zeros(PARTS, np.uint64)
    for i in range(hashes.shape[0]):
        multiply_into(hashes[i], power, spare)
        reduce_into(parts[i], hashes[i])


@linked
def hash_tiles(tiles: Words, words: int, powers: Words, hashes: Words) -> None:
    """Goes on with the hashes of 128 columns by ``words`` words of each.

    tiles: uint64 (>= 128 words,): the columns in tiles, each (128, TILE) in C order, the last one narrower.
    powers: ``descending_powers`` of the key, words / 2 of them. hashes: uint64 (128, 2).
    No branch or index depends on tiles, powers or hashes.
    """
    if words % 2 or powers.shape[0] != words // 2:
        raise ValueError("a power for every block")
    parts = np.zeros((128, *PARTS), np.uint64)
    for first in range(0, words, TILE):
        n = min(TILE, words - first)
        add_tile(tiles[128 * first : 128 * (first + n)].reshape(128, n), powers, first // 2, parts)
    absorb(parts, powers[0], hashes)


@linked
def hash_blocks(blocks: Words, powers: Words, hashed: Words) -> None:
    """Goes on with one hash, uint64 (2,), by n blocks, uint64 (2 n,). powers: as for ``hash_tiles``."""
    n = powers.shape[0]
    if blocks.shape[0] != 2 * n:
        raise ValueError("a power for every block")
    parts = np.zeros((1, *PARTS), np.uint64)
    add_products(blocks, 0, powers, 0, n, parts[0])
    absorb(parts, powers[0], hashed.reshape(1, 2))
