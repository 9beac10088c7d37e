"""Transposition of bit matrices: from the columns of an OT extension to its rows.

Rounds of block swaps (Warren, Hacker's Delight, section 7-3) on LANES 64x64 matrices side by side, written as generic
LLVM vectors: each CPU gets its own widest instructions. No branch or index depends on the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import errors
from numba.extending import intrinsic

LANES = 8

_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)


def _three_rounds(widest: int) -> Callable[..., Any]:
    """Swap rounds of widths widest, widest / 2, widest / 4 on eight rows of LANES words, held in registers.

    Row i is read at element at + i * stride of source and written at element to + i * gap of target, both C order.
    """

    def swap(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, width: int) -> tuple[ir.Value, ir.Value]:
        """Bit c + width of x and bit c of y change places, for every c without the bit ``width``."""
        shift = ir.Constant(_VECTOR, [width] * LANES)
        mask = ir.Constant(_VECTOR, [sum(1 << c for c in range(64) if not c & width)] * LANES)
        moved = builder.and_(builder.xor(builder.lshr(x, shift), y), mask)
        return builder.xor(x, builder.shl(moved, shift)), builder.xor(y, moved)

    @intrinsic
    def step(typingctx: Any, source: Any, at: Any, stride: Any, target: Any, to: Any, gap: Any) -> Any:
        for array in (source, target):
            if not (isinstance(array, types.Array) and array.dtype == types.uint64 and array.layout == "C"):
                raise errors.TypingError("bits are transposed in uint64 arrays in C order")

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def places(array: int) -> list[ir.Value]:
                data = context.make_array(signature.args[array])(context, builder, args[array]).data
                start, step = args[array + 1], args[array + 2]
                offsets = [builder.add(start, builder.mul(step, ir.Constant(_I64, i))) for i in range(8)]
                return [builder.bitcast(builder.gep(data, [o]), _VECTOR.as_pointer()) for o in offsets]

            rows = [builder.load(place, align=8) for place in places(0)]
            for distance in (4, 2, 1):
                for i in range(8):
                    if not i & distance:
                        j = i + distance
                        rows[i], rows[j] = swap(builder, rows[i], rows[j], widest * distance // 4)
            for row, place in zip(rows, places(3), strict=True):
                builder.store(row, place, align=8)
            return context.get_dummy_value()

        index = types.intp
        return types.void(source, index, index, target, index, index), codegen

    return step


_far_rounds = _three_rounds(32)
_near_rounds = _three_rounds(4)


@njit(cache=True, nogil=True)
def transpose_64(a: npt.NDArray[np.uint64]) -> None:
    """In place, in every lane v: bit j of a[i, v] changes places with bit i of a[j, v].

    a: uint64 (64, LANES), C order.
    """
    if a.shape[0] != 64 or a.shape[1] != LANES:
        raise ValueError("not (64, LANES)")
    for r in range(8):
        _far_rounds(a, LANES * r, 8 * LANES, a, LANES * r, 8 * LANES)
    for r in range(8):
        _near_rounds(a, 8 * LANES * r, LANES, a, 8 * LANES * r, LANES)


@njit(cache=True, nogil=True)
def transpose_128_into(columns: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint64]) -> None:
    """Row j's bit i is bit j of column i.

    columns: uint64 (128, w), C order, bit j of a column at word j // 64, bit j % 64. Writes rows: uint64 (64 w, 2).
    """
    if columns.shape[0] != 128:
        raise ValueError("not 128 columns")
    words = columns.shape[1]
    if rows.shape[0] != 64 * words or rows.shape[1] != 2:
        raise ValueError("not a row for every bit of a column")
    halves = np.empty((2, 64, LANES), np.uint64)
    edge = np.zeros((128, LANES), np.uint64)
    for first in range(0, words, LANES):
        lanes = min(LANES, words - first)
        if lanes < LANES:
            for i in range(128):
                for v in range(lanes):
                    edge[i, v] = columns[i, first + v]
        for half in range(2):
            base = 64 * LANES * half
            for r in range(8):
                to = base + LANES * r
                if lanes == LANES:
                    _far_rounds(columns, (64 * half + r) * words + first, 8 * words, halves, to, 8 * LANES)
                else:
                    _far_rounds(edge, to, 8 * LANES, halves, to, 8 * LANES)
            for r in range(8):
                at = base + 8 * LANES * r
                _near_rounds(halves, at, LANES, halves, at, LANES)
        for v in range(lanes):
            for j in range(64):
                rows[64 * (first + v) + j, 0] = halves[0, j, v]
                rows[64 * (first + v) + j, 1] = halves[1, j, v]


@njit(cache=True, nogil=True)
def transpose_128(columns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """``transpose_128_into`` a new array."""
    rows = np.empty((64 * columns.shape[1], 2), np.uint64)
    transpose_128_into(columns, rows)
    return rows
