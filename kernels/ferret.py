"""The rows of a silent OT extension: punctured trees for the noise, the sparse code for the rest, a tree at a time.

Output p of an iteration belongs to leaf p mod 2^depth of tree p // 2^depth. A tree's leaves and outputs stay in the
caches near the core, whatever the number of trees; any stretch of outputs can be made alone.

For the check of the trees (protocol/ot/ferret.py) leaf l of tree i counts r^(2^depth (i + 1) - l) times: ``powers``,
uint64 (2^depth, 2), are r's descending ones (gf128.py) and ``scales``, uint64 (trees, 2), are r^(2^depth i). The leaves
of a call's outputs are added to ``hashed``, uint64 (2,), unless powers is empty.

Everywhere: tree_keys and code_keys uint64 (11, 2), public. table: uint64 (2^b, 2), the code's input. 6 <= depth; 64
divides first and the number of rows. No branch or index depends on anything but lengths, first and the code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import errors
from numba.extending import intrinsic

from mpcd.kernels.cpu import linked
from mpcd.kernels.gf128 import PARTS, add_products, multiply_into, reduce_into
from mpcd.kernels.half_tree import grow, grow_punctured
from mpcd.kernels.lpn import encode

Words = npt.NDArray[np.uint64]


@linked
def sender_rows(
    tree_keys: Words,
    roots: Words,
    delta: Words,
    depth: int,
    code_keys: Words,
    table: Words,
    first: int,
    rows: Words,
    powers: Words,
    scales: Words,
    hashed: Words,
) -> None:
    """rows[i] = leaf ^ code at output first + i, for whole trees.

    roots: uint64 (trees, 2). delta: uint64 (2,), bit 0 set. table's rows have bit 0 clear. Writes rows: uint64 (n, 2),
    bit 0 clear.
    """
    size = 1 << depth
    n = rows.shape[0]
    _check(depth, first, n, roots.shape[0])
    spare = np.empty((1, size, 2), np.uint64)
    parts = np.zeros(PARTS, np.uint64)
    done = 0
    while done < n:
        tree, leaf = (first + done) >> depth, (first + done) & (size - 1)
        count = min(size - leaf, n - done)
        part = rows[done : done + count]
        if count == size:
            grow(tree_keys, roots[tree : tree + 1], delta, part.reshape(1, size, 2))
        else:
            grow(tree_keys, roots[tree : tree + 1], delta, spare)
            part[:] = spare[0, leaf : leaf + count]
        if powers.shape[0]:
            _add_leaves(part, powers, leaf, scales[tree], parts, hashed)
        encode(code_keys, table, first + done, part)
        done += count


@linked
def receiver_rows(
    tree_keys: Words,
    points: Words,
    siblings: Words,
    code_keys: Words,
    table: Words,
    first: int,
    rows: Words,
    choices: Words,
    powers: Words,
    scales: Words,
    hashed: Words,
) -> None:
    """rows[i] = punctured leaf ^ code at output first + i; bit i of choices is rows[i]'s bit 0.

    points: uint64 (trees,). siblings: uint64 (trees, depth, 2). Writes rows: uint64 (n, 2) and choices: uint64
    (n / 64,).
    """
    depth = siblings.shape[1]
    size = 1 << depth
    n = rows.shape[0]
    _check(depth, first, n, points.shape[0])
    if choices.shape[0] != n // 64:
        raise ValueError("a choice bit for every row")
    spare = np.empty((1, size, 2), np.uint64)
    parts = np.zeros(PARTS, np.uint64)
    done = 0
    while done < n:
        tree, leaf = (first + done) >> depth, (first + done) & (size - 1)
        count = min(size - leaf, n - done)
        part = rows[done : done + count]
        if count == size:
            whole = part.reshape(1, size, 2)
            grow_punctured(tree_keys, points[tree : tree + 1], siblings[tree : tree + 1], whole)
        else:
            grow_punctured(tree_keys, points[tree : tree + 1], siblings[tree : tree + 1], spare)
            part[:] = spare[0, leaf : leaf + count]
        if powers.shape[0]:
            _add_leaves(part, powers, leaf, scales[tree], parts, hashed)
        encode(code_keys, table, first + done, part)
        for i in range(0, count, 8):
            _low_bits(part, i, choices, done + i)
        done += count


@linked
def sender_hash(
    tree_keys: Words, roots: Words, delta: Words, first: int, powers: Words, scales: Words, hashed: Words
) -> None:
    """What ``sender_rows`` adds to hashed for all outputs from ``first`` on."""
    size = powers.shape[0]
    leaves = np.empty((1, size, 2), np.uint64)
    parts = np.zeros(PARTS, np.uint64)
    leaf = first % size
    for tree in range(first // size, roots.shape[0]):
        grow(tree_keys, roots[tree : tree + 1], delta, leaves)
        _add_leaves(leaves[0, leaf:], powers, leaf, scales[tree], parts, hashed)
        leaf = 0


@linked
def receiver_hash(
    tree_keys: Words, points: Words, siblings: Words, first: int, powers: Words, scales: Words, hashed: Words
) -> None:
    """What ``receiver_rows`` adds to hashed for all outputs from ``first`` on."""
    size = powers.shape[0]
    leaves = np.empty((1, size, 2), np.uint64)
    parts = np.zeros(PARTS, np.uint64)
    leaf = first % size
    for tree in range(first // size, points.shape[0]):
        grow_punctured(tree_keys, points[tree : tree + 1], siblings[tree : tree + 1], leaves)
        _add_leaves(leaves[0, leaf:], powers, leaf, scales[tree], parts, hashed)
        leaf = 0


@linked
def point_sum(points: Words, key: Words, depth: int, scales: Words, out: Words) -> None:
    """out ^= the sum, over all trees, of what the leaf at points[i] counts. key: r. No branch depends on points."""
    parts = np.zeros(PARTS, np.uint64)
    squares = np.empty((depth, 2), np.uint64)
    squares[0] = key
    for j in range(1, depth):
        squares[j] = squares[j - 1]
        multiply_into(squares[j], squares[j - 1], parts)
    count = np.empty(2, np.uint64)
    factor = np.empty(2, np.uint64)
    one = np.uint64(1)
    for i in range(points.shape[0]):
        count[:] = key
        # r^(2^depth - l) = r r^(2^depth - 1 - l), whose exponent's bits are l's, turned.
        for j in range(depth):
            chosen = np.uint64(0) - (~(points[i] >> np.uint64(j)) & one)
            factor[0] = (squares[j, 0] & chosen) | (one & ~chosen)
            factor[1] = squares[j, 1] & chosen
            multiply_into(count, factor, parts)
        add_products(count, 0, scales, i, 1, parts)
        reduce_into(parts, out)


@linked
def _add_leaves(leaves: Words, powers: Words, leaf: int, scale: Words, parts: Words, hashed: Words) -> None:
    """hashed ^= the sum of leaves[i] powers[leaf + i], times scale."""
    value = np.zeros(2, np.uint64)
    add_products(leaves, 0, powers, leaf, leaves.shape[0], parts)
    reduce_into(parts, value)
    multiply_into(value, scale, parts)
    hashed ^= value


@linked
def _check(depth: int, first: int, n: int, trees: int) -> None:
    if depth < 6 or first % 64 or n % 64:
        raise ValueError("rows come in blocks of 64")
    if first < 0 or first + n > trees << depth:
        raise ValueError("no such outputs")


def _low_bits_step() -> Callable[..., Any]:
    """Bits at, ..., at + 7 of words = bit 0 of rows[row], ..., rows[row + 7]; 8 divides at."""

    @intrinsic
    def step(typingctx: Any, rows: Any, row: Any, words: Any, at: Any) -> Any:
        for array in (rows, words):
            if not (isinstance(array, types.Array) and array.dtype == types.uint64 and array.layout == "C"):
                raise errors.TypingError("rows and bits are uint64 arrays in C order")

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def data(array: int) -> ir.Value:
                return context.make_array(signature.args[array])(context, builder, args[array]).data

            word, number, byte = ir.IntType(64), ir.IntType(32), ir.IntType(8)
            half = ir.VectorType(word, 8)
            start = builder.bitcast(
                builder.gep(data(0), [builder.shl(args[1], ir.Constant(word, 1))]), half.as_pointer()
            )
            four, others = (builder.load(builder.gep(start, [ir.Constant(word, i)]), align=8) for i in range(2))
            even = ir.Constant(ir.VectorType(number, 8), list(range(0, 16, 2)))
            bits = builder.trunc(builder.shuffle_vector(four, others, even), ir.VectorType(ir.IntType(1), 8))
            target = builder.bitcast(data(2), byte.as_pointer())
            place = builder.gep(target, [builder.lshr(args[3], ir.Constant(word, 3))])
            builder.store(builder.bitcast(bits, byte), place)
            return context.get_dummy_value()

        return types.void(rows, types.intp, words, types.intp), codegen

    return step


_low_bits = _low_bits_step()
