"""Sums of carry-less products by the CPU's instruction, on 512-bit vectors or blocks (Intel SDM volume 2, PCLMULQDQ).

Constant time: the instruction is. Only loads, stores and loop bounds that depend on public lengths besides.
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

from mpcd.kernels.cpu import CLMUL_PATH, linked

Words = npt.NDArray[np.uint64]

_I8, _I64 = ir.IntType(8), ir.IntType(64)

# Blocks in a vector, and vectors of one step.
LANES = 4 if CLMUL_PATH == "vpclmul512" else 1
_COUNT = 8
_WIDE = LANES * _COUNT


def _products_step(lanes: int, count: int) -> Callable[..., Any]:
    """parts += the products of ``count`` vectors of x from block i on and of y from block j on."""
    suffix = {1: "", 4: ".512"}[lanes]

    @intrinsic
    def step(typingctx: Any, x: Any, i: Any, y: Any, j: Any, parts: Any) -> Any:
        for array in (x, y, parts):
            if not (isinstance(array, types.Array) and array.dtype == types.uint64 and array.layout == "C"):
                raise errors.TypingError("products are of uint64 arrays in C order")

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(_I64, 2 * lanes)

            def place(array: int, word: ir.Value) -> ir.Value:
                data = context.make_array(signature.args[array])(context, builder, args[array]).data
                return builder.bitcast(builder.gep(data, [word]), vector.as_pointer())

            def load(start: ir.Value, n: int) -> ir.Value:
                return builder.load(builder.gep(start, [ir.Constant(_I64, n)]), align=8)

            kind = ir.FunctionType(vector, [vector, vector, _I8])
            name = f"llvm.x86.pclmulqdq{suffix}"
            known = builder.module.globals.get(name)
            multiply = known if known is not None else ir.Function(builder.module, kind, name)
            left, right = (place(array, builder.shl(args[array + 1], ir.Constant(_I64, 1))) for array in (0, 2))
            sums = [place(4, ir.Constant(_I64, 2 * LANES * part)) for part in range(3)]
            totals = [builder.load(at, align=8) for at in sums]
            for n in range(count):
                a, b = load(left, n), load(right, n)
                for part, halves in ((0, 0x00), (1, 0x01), (1, 0x10), (2, 0x11)):
                    totals[part] = builder.xor(totals[part], builder.call(multiply, [a, b, ir.Constant(_I8, halves)]))
            for total, at in zip(totals, sums, strict=True):
                builder.store(total, at, align=8)
            return context.get_dummy_value()

        return types.void(x, types.intp, y, types.intp, parts), codegen

    return step


_products_wide, _products_one = _products_step(LANES, _COUNT), _products_step(1, 1)


@linked
def add_products(x: Words, i: int, y: Words, j: int, n: int, parts: Words) -> None:
    """parts += the carry-less products of blocks i, ..., i + n - 1 of x and j, ..., j + n - 1 of y, not reduced.

    x, y: uint64, C order, two words a block, low half first. parts: uint64 (3, 2 LANES): in every lane the sums of the
    products of low halves, of low with high ones, and of high halves. No branch or index depends on x or y.
    """
    whole = n - n % _WIDE
    for k in range(0, whole, _WIDE):
        _products_wide(x, i + k, y, j + k, parts)
    for k in range(whole, n):
        _products_one(x, i + k, y, j + k, parts)
