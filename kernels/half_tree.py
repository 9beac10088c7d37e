"""Correlated GGM trees ("half trees"): the two children of a node add up to it, and every level to the same offset.

Guo, Yang, Wang, Zhang, Xie, Liu and Zhao, "Half-Tree: Halving the Cost of Tree Expansion in COT and DPF" (EUROCRYPT
2023, eprint 2022/1431), figure 3. Level 1 of a tree is root, root ^ delta. A node p has the children

    left = H(p),  right = p ^ H(p),  H(x) = pi(s(x)) ^ s(x),  s(high, low) = (high ^ low, high),

pi AES under a public key: one block for two children. H is circular correlation robust where pi is ideal (Guo, Katz,
Wang and Yu, S&P 2020, eprint 2019/074, section 7.3).

A level is stored split, left children first: at level l a node is numbered by the low l bits of its leaves' numbers,
so the children of node x are nodes x and x + 2^(l-1) of level l. Leaves have bit 0 cleared: a choice bit lives there.

Everywhere: round_keys uint64 (11, 2); a block is uint64 (2,), low half first; 2 <= depth. No branch or index depends on
keys, nodes, offset or points. The steps around AES are generic LLVM vectors: each CPU gets its own widest instructions.
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

from mpcd.kernels.aes import encrypt_blocks
from mpcd.kernels.cpu import linked

Words = npt.NDArray[np.uint64]

# Nodes hashed at a time: two buffers of 4 KiB stay in the first-level cache.
TILE = 256
# Blocks that a wide step takes at once.
_WIDE = 16

_I64, _I32 = ir.IntType(64), ir.IntType(32)
_ONES = (1 << 64) - 1


class _Emitter:
    """Writes the LLVM code of a step on ``count`` vectors of ``lanes`` blocks."""

    def __init__(self, context: Any, builder: ir.IRBuilder, lanes: int, count: int) -> None:
        self.context = context
        self.builder = builder
        self.count = count
        self.words = 2 * lanes
        self.vector = ir.VectorType(_I64, self.words)

    def places(self, array_type: types.Array, array: ir.Value, row: ir.Value | None = None) -> list[ir.Value]:
        """Where the vectors from row ``row`` (0) on lie in a uint64 (n, 2) array."""
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        if row is not None:
            data = self.builder.gep(data, [self.builder.shl(row, ir.Constant(_I64, 1))])
        start = self.builder.bitcast(data, self.vector.as_pointer())
        return [self.builder.gep(start, [ir.Constant(_I64, i)]) for i in range(self.count)]

    def load(self, places: list[ir.Value]) -> list[ir.Value]:
        return [self.builder.load(place, align=8) for place in places]

    def store(self, values: list[ir.Value], places: list[ir.Value]) -> None:
        for value, place in zip(values, places, strict=True):
            self.builder.store(value, place, align=8)

    def xor(self, a: list[ir.Value], b: list[ir.Value]) -> list[ir.Value]:
        return [self.builder.xor(x, y) for x, y in zip(a, b, strict=True)]

    def mask(self, a: list[ir.Value], mask: ir.Value) -> list[ir.Value]:
        return [self.builder.and_(x, mask) for x in a]

    def constant(self, *pattern: int) -> ir.Constant:
        return ir.Constant(self.vector, [pattern[i % len(pattern)] for i in range(self.words)])

    def block(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """The block (low, high) in every lane."""
        pair = ir.Constant(ir.VectorType(_I64, 2), ir.Undefined)
        pair = self.builder.insert_element(pair, low, ir.Constant(_I32, 0))
        pair = self.builder.insert_element(pair, high, ir.Constant(_I32, 1))
        spread = ir.Constant(ir.VectorType(_I32, self.words), [i % 2 for i in range(self.words)])
        return self.builder.shuffle_vector(pair, pair, spread)

    def add_to(self, total: ir.Value, values: list[ir.Value]) -> None:
        """XORs all ``values`` into the vector at ``total``."""
        value = self.builder.load(total, align=8)
        for other in values:
            value = self.builder.xor(value, other)
        self.builder.store(value, total, align=8)


def _check_blocks(*arrays: Any) -> None:
    for array in arrays:
        if not (
            isinstance(array, types.Array) and array.dtype == types.uint64 and array.ndim == 2 and array.layout == "C"
        ):
            raise errors.TypingError("trees are uint64 (n, 2) arrays in C order")


def _swap_step(lanes: int, count: int) -> Callable[..., Any]:
    """out[to:] = s(x[at:])."""

    @intrinsic
    def step(typingctx: Any, x: Any, at: Any, out: Any, to: Any) -> Any:
        _check_blocks(x, out)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(context, builder, lanes, count)
            values = emit.load(emit.places(signature.args[0], args[0], args[1]))
            exchange = ir.Constant(ir.VectorType(_I32, emit.words), [i ^ 1 for i in range(emit.words)])
            exchanged = [builder.shuffle_vector(v, v, exchange) for v in values]
            result = emit.xor(exchanged, emit.mask(values, emit.constant(0, _ONES)))
            emit.store(result, emit.places(signature.args[2], args[2], args[3]))
            return context.get_dummy_value()

        return types.void(x, types.intp, out, types.intp), codegen

    return step


def _split_step(lanes: int, count: int) -> Callable[..., Any]:
    """Children of nodes[at:] to nodes[at:] and nodes[to:], from s(x) and pi(s(x)) at ``from``; adds up lefts and all.

    ``keep`` masks the low words of the children as they are stored. totals: uint64 (2, 8), a vector for either sum.
    """

    @intrinsic
    def step(
        typingctx: Any, nodes: Any, at: Any, to: Any, s: Any, encrypted: Any, tile: Any, keep: Any, totals: Any
    ) -> Any:
        _check_blocks(nodes, s, encrypted, totals)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(context, builder, lanes, count)
            kinds = signature.args
            places = emit.places(kinds[0], args[0], args[1])
            parents = emit.load(places)
            swapped = emit.load(emit.places(kinds[3], args[3], args[5]))
            left = emit.xor(emit.load(emit.places(kinds[4], args[4], args[5])), swapped)
            right = emit.xor(parents, left)
            kept = emit.block(args[6], ir.Constant(_I64, _ONES))
            emit.store(emit.mask(left, kept), places)
            emit.store(emit.mask(right, kept), emit.places(kinds[0], args[0], args[2]))
            emit.add_to(emit.places(kinds[7], args[7])[0], left)
            emit.add_to(emit.places(kinds[7], args[7], ir.Constant(_I64, 4))[0], parents)
            return context.get_dummy_value()

        index = types.intp
        return types.void(nodes, index, index, s, encrypted, index, types.uint64, totals), codegen

    return step


def _sum_step(lanes: int, count: int) -> Callable[..., Any]:
    """Adds the left children, from s(x) and pi(s(x)), to totals[0]."""

    @intrinsic
    def step(typingctx: Any, s: Any, encrypted: Any, tile: Any, totals: Any) -> Any:
        _check_blocks(s, encrypted, totals)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(context, builder, lanes, count)
            swapped = emit.load(emit.places(signature.args[0], args[0], args[2]))
            encrypted_values = emit.load(emit.places(signature.args[1], args[1], args[2]))
            emit.add_to(emit.places(signature.args[3], args[3])[0], emit.xor(encrypted_values, swapped))
            return context.get_dummy_value()

        return types.void(s, encrypted, types.intp, totals), codegen

    return step


def _correct_step(lanes: int, count: int) -> Callable[..., Any]:
    """nodes[i] ^= (low, high) for the one i = place, where it is one of nodes[at:]."""

    @intrinsic
    def step(typingctx: Any, nodes: Any, at: Any, place: Any, low: Any, high: Any) -> Any:
        _check_blocks(nodes)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(context, builder, lanes, count)
            places = emit.places(signature.args[0], args[0], args[1])
            distance = builder.sub(args[2], args[1])
            wanted = emit.block(distance, distance)
            value = emit.block(args[3], args[4])
            result = []
            for i, node in enumerate(emit.load(places)):
                numbers = ir.Constant(emit.vector, [i * lanes + j // 2 for j in range(emit.words)])
                here = builder.icmp_unsigned("==", wanted, numbers)
                result.append(builder.xor(node, builder.select(here, value, emit.constant(0))))
            emit.store(result, places)
            return context.get_dummy_value()

        word = types.uint64
        return types.void(nodes, types.intp, word, word, word), codegen

    return step


_swap_wide, _swap_four, _swap_two = _swap_step(4, 4), _swap_step(4, 1), _swap_step(2, 1)
_split_wide, _split_four, _split_two = _split_step(4, 4), _split_step(4, 1), _split_step(2, 1)
_sum_wide, _sum_four, _sum_two = _sum_step(4, 4), _sum_step(4, 1), _sum_step(2, 1)
_correct_wide, _correct_four = _correct_step(4, 4), _correct_step(4, 1)


@linked
def _hash_tile(round_keys: Words, nodes: Words, first: int, n: int, space: Words) -> None:
    """space[0, :n] = s(x), space[1, :n] = pi(s(x)) for x = nodes[first : first + n]; n is 2, 4, 8 or 16 i."""
    if n >= _WIDE:
        for i in range(0, n, _WIDE):
            _swap_wide(nodes, first + i, space[0], i)
    elif n >= 4:
        for i in range(0, n, 4):
            _swap_four(nodes, first + i, space[0], i)
    else:
        _swap_two(nodes, first, space[0], 0)
    encrypt_blocks(round_keys, space[0, :n], space[1, :n])


@linked
def _grow_level(
    round_keys: Words, nodes: Words, half: int, keep: int, space: Words, totals: Words, sums: Words
) -> None:
    """From the level in nodes[:half] to the next in nodes[: 2 * half]. sums[b] = XOR of all children b.

    ``keep`` masks the low words of the children as they are stored, not in the sums. Scratch: space (2, TILE, 2),
    totals (8, 2).
    """
    mask = np.uint64(keep)
    totals[:] = 0
    for first in range(0, half, TILE):
        n = min(TILE, half - first)
        _hash_tile(round_keys, nodes, first, n, space)
        if n >= _WIDE:
            for i in range(0, n, _WIDE):
                _split_wide(nodes, first + i, half + first + i, space[0], space[1], i, mask, totals)
        elif n >= 4:
            for i in range(0, n, 4):
                _split_four(nodes, first + i, half + first + i, space[0], space[1], i, mask, totals)
        else:
            _split_two(nodes, first, half + first, space[0], space[1], 0, mask, totals)
    for v in range(2):
        sums[0, v] = totals[0, v] ^ totals[1, v] ^ totals[2, v] ^ totals[3, v]
        sums[1, v] = totals[4, v] ^ totals[5, v] ^ totals[6, v] ^ totals[7, v] ^ sums[0, v]


@linked
def _sum_level(round_keys: Words, nodes: Words, half: int, space: Words, totals: Words, sums: Words) -> None:
    """sums = XOR of the left children of nodes[:half]. Scratch as in ``_grow_level``."""
    totals[:] = 0
    for first in range(0, half, TILE):
        n = min(TILE, half - first)
        _hash_tile(round_keys, nodes, first, n, space)
        if n >= _WIDE:
            for i in range(0, n, _WIDE):
                _sum_wide(space[0], space[1], i, totals)
        elif n >= 4:
            for i in range(0, n, 4):
                _sum_four(space[0], space[1], i, totals)
        else:
            _sum_two(space[0], space[1], 0, totals)
    for v in range(2):
        sums[v] = totals[0, v] ^ totals[1, v] ^ totals[2, v] ^ totals[3, v]


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
    space = np.empty((2, TILE, 2), np.uint64)
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
            _grow_level(round_keys, nodes, half, _kept(2 * half == count), space, totals, sums)
            half *= 2


@linked
def left_sums(round_keys: Words, roots: Words, delta: Words, sums: Words) -> None:
    """sums[i, l - 1] = XOR of the left nodes, those numbered below 2^(l-1), of level l of tree i.

    roots: uint64 (trees, 2). delta: uint64 (2,). Writes sums: uint64 (trees, depth, 2). No leaf is stored.
    """
    depth = sums.shape[1]
    _check_count(1 << depth)
    nodes = np.empty((1 << (depth - 1), 2), np.uint64)
    space = np.empty((2, TILE, 2), np.uint64)
    totals = np.empty((8, 2), np.uint64)
    both = np.empty((2, 2), np.uint64)
    for i in range(roots.shape[0]):
        for v in range(2):
            sums[i, 0, v] = roots[i, v]
            nodes[0, v] = roots[i, v]
            nodes[1, v] = roots[i, v] ^ delta[v]
        for level in range(2, depth):
            _grow_level(round_keys, nodes, 1 << (level - 1), _kept(False), space, totals, both)
            sums[i, level - 1] = both[0]
        _sum_level(round_keys, nodes, 1 << (depth - 1), space, totals, sums[i, depth - 1])


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
    space = np.empty((2, TILE, 2), np.uint64)
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
            _grow_level(round_keys, nodes, half, _kept(level == depth), space, totals, sums)
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
