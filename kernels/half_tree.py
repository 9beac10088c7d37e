"""Correlated GGM trees ("half trees"): the two children of a node add up to it, and every level to the same offset.

Guo, Yang, Wang, Zhang, Xie, Liu and Zhao, "Half-Tree: Halving the Cost of Tree Expansion in COT and DPF" (EUROCRYPT
2023, eprint 2022/1431), figure 3. Level 1 of a tree is root, root ^ delta. A node p has the children

    left = H(p),  right = p ^ H(p),  H(x) = pi(s(x)) ^ s(x),  s(high, low) = (high ^ low, high),

pi AES under a public key: one block for two children. H is circular correlation robust where pi is ideal (Guo, Katz,
Wang and Yu, S&P 2020, eprint 2019/074, section 7.3).

A level is stored split, left children first: at level l a node is numbered by the low l bits of its leaves' numbers,
so the children of node x are nodes x and x + 2^(l-1) of level l. Leaves have bit 0 cleared: a choice bit lives there.

Everywhere: round_keys uint64 (11, 2); a block is uint64 (2,), low half first; 2 <= depth. No branch or index depends on
keys, nodes, offset or points.
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

from mpcd.kernels.cpu import AES_PATH, linked

if AES_PATH == "portable":
    from mpcd.kernels.half_tree_portable import split_level, sum_level
else:
    from mpcd.kernels.half_tree_intrinsics import split_level, sum_level

Words = npt.NDArray[np.uint64]

_I64, _I32 = ir.IntType(64), ir.IntType(32)
# Nodes in a vector, as generic LLVM: each CPU gets its own widest instructions.
_LANES = 4
_WIDE = 4 * _LANES


def _correct_step(count: int) -> Callable[..., Any]:
    """nodes[place] ^= (low, high), where place is one of the ``count`` vectors from ``at`` on."""

    @intrinsic
    def step(typingctx: Any, nodes: Any, at: Any, place: Any, low: Any, high: Any) -> Any:
        if not (isinstance(nodes, types.Array) and nodes.dtype == types.uint64 and nodes.layout == "C"):
            raise errors.TypingError("trees are uint64 (n, 2) arrays in C order")

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(_I64, 2 * _LANES)

            def block(*words: ir.Value) -> ir.Value:
                value = ir.Constant(vector, ir.Undefined)
                for i in range(2 * _LANES):
                    value = builder.insert_element(value, words[i % 2], ir.Constant(_I32, i))
                return value

            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            start = builder.bitcast(
                builder.gep(data, [builder.shl(args[1], ir.Constant(_I64, 1))]), vector.as_pointer()
            )
            distance = builder.sub(args[2], args[1])
            wanted, value = block(distance, distance), block(args[3], args[4])
            for i in range(count):
                node = builder.gep(start, [ir.Constant(_I64, i)])
                numbers = ir.Constant(vector, [_LANES * i + j // 2 for j in range(2 * _LANES)])
                here = builder.icmp_unsigned("==", wanted, numbers)
                change = builder.select(here, value, ir.Constant(vector, [0] * (2 * _LANES)))
                builder.store(builder.xor(builder.load(node, align=8), change), node, align=8)
            return context.get_dummy_value()

        word = types.uint64
        return types.void(nodes, types.intp, word, word, word), codegen

    return step


_correct_wide, _correct_four = _correct_step(_WIDE // _LANES), _correct_step(1)


@linked
def _grow_level(round_keys: Words, nodes: Words, half: int, keep: int, totals: Words, sums: Words) -> None:
    """From the level in nodes[:half] to the next in nodes[: 2 * half]. sums[b] = XOR of all children b.

    ``keep`` masks the low words of the children as they are stored, not in the sums. totals: scratch (8, 2).
    """
    totals[:] = 0
    split_level(round_keys, nodes, half, np.uint64(keep), totals)
    for v in range(2):
        sums[0, v] = totals[0, v] ^ totals[1, v] ^ totals[2, v] ^ totals[3, v]
        sums[1, v] = totals[4, v] ^ totals[5, v] ^ totals[6, v] ^ totals[7, v] ^ sums[0, v]


@linked
def _correct(nodes: Words, count: int, place: int, low: int, high: int) -> None:
    """nodes[place] ^= (low, high), by a mask over all of nodes[:count]; count a power of two from 4 on."""
    if count >= _WIDE:
        for i in range(0, count, _WIDE):
            _correct_wide(nodes, i, np.uint64(place), np.uint64(low), np.uint64(high))
    else:
        for i in range(0, count, 4):
            _correct_four(nodes, i, np.uint64(place), np.uint64(low), np.uint64(high))


@linked
def grow(round_keys: Words, roots: Words, delta: Words, leaves: Words) -> None:
    """All leaves, bit 0 cleared, of the trees with level 1 root, root ^ delta.

    roots: uint64 (trees, 2). delta: uint64 (2,). Writes leaves: uint64 (trees, 2^depth, 2).
    """
    totals = np.empty((8, 2), np.uint64)
    sums = np.empty((2, 2), np.uint64)
    count = leaves.shape[1]
    _check_count(count)
    for i in range(roots.shape[0]):
        nodes = leaves[i]
        for v in range(2):
            nodes[0, v] = roots[i, v]
            nodes[1, v] = roots[i, v] ^ delta[v]
        half = 2
        while half < count:
            _grow_level(round_keys, nodes, half, _kept(2 * half == count), totals, sums)
            half *= 2


@linked
def left_sums(round_keys: Words, roots: Words, delta: Words, sums: Words) -> None:
    """sums[i, l - 1] = XOR of the left nodes, those numbered below 2^(l-1), of level l of tree i.

    roots: uint64 (trees, 2). delta: uint64 (2,). Writes sums: uint64 (trees, depth, 2). No leaf is stored.
    """
    depth = sums.shape[1]
    _check_count(1 << depth)
    nodes = np.empty((1 << (depth - 1), 2), np.uint64)
    totals = np.empty((8, 2), np.uint64)
    both = np.empty((2, 2), np.uint64)
    for i in range(roots.shape[0]):
        for v in range(2):
            sums[i, 0, v] = roots[i, v]
            nodes[0, v] = roots[i, v]
            nodes[1, v] = roots[i, v] ^ delta[v]
        for level in range(2, depth):
            _grow_level(round_keys, nodes, 1 << (level - 1), _kept(False), totals, both)
            sums[i, level - 1] = both[0]
        totals[:] = 0
        sum_level(round_keys, nodes, 1 << (depth - 1), totals)
        for v in range(2):
            sums[i, depth - 1, v] = totals[0, v] ^ totals[1, v] ^ totals[2, v] ^ totals[3, v]


@linked
def grow_punctured(round_keys: Words, points: Words, siblings: Words, leaves: Words) -> None:
    """As ``grow`` but that leaf points[i] of tree i is XORed with delta, bit 0 of which is set. Needs no delta.

    points: uint64 (trees,), below 2^depth. siblings: uint64 (trees, depth, 2), at [i, l - 1] the XOR of those nodes of
    level l whose own bit (bit l - 1 of the number) is not that of points[i]. Writes leaves: uint64 (trees, 2^depth, 2).

    The node above the point is unknown at each level. What stands in for it grows like the rest; then the child that
    can be known is corrected. Every level adds up to delta, so the XOR of all other leaves is the point's ^ delta.
    """
    depth = siblings.shape[1]
    count = leaves.shape[1]
    _check_count(count)
    if count != 1 << depth:
        raise ValueError("leaves and siblings differ in depth")
    totals = np.empty((8, 2), np.uint64)
    sums = np.empty((2, 2), np.uint64)
    fix = np.empty(2, np.uint64)
    rest = np.empty(2, np.uint64)
    one = np.uint64(1)
    for i in range(points.shape[0]):
        nodes = leaves[i]
        point = points[i]
        away = ~point & one
        for v in range(2):
            nodes[0, v] = siblings[i, 0, v] & (away - one)
            nodes[1, v] = siblings[i, 0, v] & (np.uint64(0) - away)
        for level in range(2, depth + 1):
            half = 1 << (level - 1)
            _grow_level(round_keys, nodes, half, _kept(level == depth), totals, sums)
            away = (~point >> np.uint64(level - 1)) & one
            for v in range(2):
                wrong = sums[0, v] ^ ((sums[0, v] ^ sums[1, v]) & (np.uint64(0) - away))
                fix[v] = siblings[i, level - 1, v] ^ wrong
                rest[v] = sums[0, v] ^ sums[1, v] ^ fix[v]
            sibling = (point & np.uint64(half - 1)) | (away << np.uint64(level - 1))
            _correct(nodes, 2 * half, sibling, fix[0] & np.uint64(_kept(level == depth)), fix[1])
        _correct(nodes, count, point, rest[0] | one, rest[1])


@linked
def _kept(last: bool) -> np.uint64:
    """The bits of a low word that stay: leaves lose bit 0."""
    return ~np.uint64(1) if last else ~np.uint64(0)


@linked
def _check_count(count: int) -> None:
    if count < 4 or count & (count - 1):
        raise ValueError("a tree has 2^depth leaves, 2 <= depth")
