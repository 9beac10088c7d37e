"""A level of a half tree by the CPU's AES instructions: hash, children and sums without leaving the registers.

half_tree.py says what the functions are. Constant time: loads, stores and loop bounds depend on public lengths alone.
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

from mpcd.kernels.aes_intrinsics import Emitter
from mpcd.kernels.cpu import AES_PATH, linked

Words = npt.NDArray[np.uint64]

_I64, _I32 = ir.IntType(64), ir.IntType(32)
_ONES = (1 << 64) - 1


class _TreeEmitter(Emitter):
    """One vector's blocks are words 2 i (low) and 2 i + 1 (high)."""

    def masked(self, values: list[ir.Value], low: ir.Value, high: int) -> list[ir.Value]:
        mask = ir.Constant(self.vector, [0, high] * self.lanes)
        for lane in range(self.lanes):
            mask = self.builder.insert_element(mask, low, ir.Constant(_I32, 2 * lane))
        return [self.builder.and_(value, mask) for value in values]

    def hashed(self, keys: list[ir.Value], values: list[ir.Value]) -> list[ir.Value]:
        """H(x) = pi(s(x)) ^ s(x), s(high, low) = (high ^ low, high), of every block."""
        exchange = ir.Constant(ir.VectorType(_I32, 2 * self.lanes), [i ^ 1 for i in range(2 * self.lanes)])
        exchanged = [self.builder.shuffle_vector(value, value, exchange) for value in values]
        s = self.xor(exchanged, self.masked(values, ir.Constant(_I64, 0), _ONES))
        return self.xor(self.encrypt(keys, s), s)

    def add_to(self, array_type: types.Array, array: ir.Value, row: int, values: list[ir.Value]) -> None:
        """XORs all of ``values`` into the vector that begins at a row."""
        place = self.builder.bitcast(self.pointer(array_type, array, row), self.vector.as_pointer())
        total = self.builder.load(place, align=8)
        for value in values:
            total = self.builder.xor(total, value)
        self.builder.store(total, place, align=8)


def _check_blocks(*arrays: Any) -> None:
    for array in arrays:
        if not (
            isinstance(array, types.Array) and array.dtype == types.uint64 and array.ndim == 2 and array.layout == "C"
        ):
            raise errors.TypingError("trees are uint64 (n, 2) arrays in C order")


def _split_step(lanes: int, count: int) -> Callable[..., Any]:
    """Lefts of nodes[at:] to nodes[at:], rights to nodes[to:]; totals' two vectors take lefts and parents."""

    @intrinsic
    def step(typingctx: Any, round_keys: Any, nodes: Any, at: Any, to: Any, keep: Any, totals: Any) -> Any:
        _check_blocks(round_keys, nodes, totals)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _TreeEmitter(context, builder, lanes, count)
            kinds = signature.args
            parents = emit.load(kinds[1], args[1], args[2])
            left = emit.hashed(emit.round_keys(kinds[0], args[0]), parents)
            emit.store(kinds[1], args[1], args[2], emit.masked(left, args[4], _ONES))
            emit.store(kinds[1], args[1], args[3], emit.masked(emit.xor(parents, left), args[4], _ONES))
            emit.add_to(kinds[5], args[5], 0, left)
            emit.add_to(kinds[5], args[5], 4, parents)
            return context.get_dummy_value()

        return types.void(round_keys, nodes, types.intp, types.intp, types.uint64, totals), codegen

    return step


def _sum_step(lanes: int, count: int) -> Callable[..., Any]:
    """totals' first vector takes the lefts of nodes[at:]."""

    @intrinsic
    def step(typingctx: Any, round_keys: Any, nodes: Any, at: Any, totals: Any) -> Any:
        _check_blocks(round_keys, nodes, totals)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _TreeEmitter(context, builder, lanes, count)
            parents = emit.load(signature.args[1], args[1], args[2])
            emit.add_to(
                signature.args[3], args[3], 0, emit.hashed(emit.round_keys(signature.args[0], args[0]), parents)
            )
            return context.get_dummy_value()

        return types.void(round_keys, nodes, types.intp, totals), codegen

    return step


# Lanes and vectors for 2, 4, 8 and 16 nodes.
_SHAPES = ((2, 1), (4, 1), (4, 2), (4, 4)) if AES_PATH == "vaes512" else ((1, 2), (1, 4), (1, 8), (1, 8))
_LARGEST = _SHAPES[3][0] * _SHAPES[3][1]
_split_2, _split_4, _split_8, _split_most = (_split_step(*shape) for shape in _SHAPES)
_sum_2, _sum_4, _sum_8, _sum_most = (_sum_step(*shape) for shape in _SHAPES)


@linked
def split_level(round_keys: Words, nodes: Words, half: int, keep: np.uint64, totals: Words) -> None:
    """nodes[:half] become their left children, nodes[half : 2 * half] the right ones; low words are masked by keep.

    half: 2, 4, 8, ... totals: uint64 (8, 2). XORs all left children into the XOR of its rows 0 to 3, all parents into
    that of 4 to 7.
    """
    if half >= _LARGEST:
        for i in range(0, half, _LARGEST):
            _split_most(round_keys, nodes, i, half + i, keep, totals)
    elif half == 8:
        _split_8(round_keys, nodes, 0, half, keep, totals)
    elif half == 4:
        _split_4(round_keys, nodes, 0, half, keep, totals)
    else:
        _split_2(round_keys, nodes, 0, half, keep, totals)


@linked
def sum_level(round_keys: Words, nodes: Words, half: int, totals: Words) -> None:
    """XORs all left children of nodes[:half] into the XOR of totals' rows 0 to 3. half: 2, 4, 8, ..."""
    if half >= _LARGEST:
        for i in range(0, half, _LARGEST):
            _sum_most(round_keys, nodes, i, totals)
    elif half == 8:
        _sum_8(round_keys, nodes, 0, totals)
    elif half == 4:
        _sum_4(round_keys, nodes, 0, totals)
    else:
        _sum_2(round_keys, nodes, 0, totals)
