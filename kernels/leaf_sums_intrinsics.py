"""The leaves' weighted sums by the CPU's AES instructions: no keystream ever leaves the registers."""

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

_I64 = ir.IntType(64)

# Blocks in a vector, and vectors of one leaf: prefix, one sum and the state must fit into the registers.
_LANES = 4 if AES_PATH == "vaes512" else 1
_COUNT = 4
_STEP = 2 * _LANES * _COUNT


def _leaves_step(lanes: int, count: int) -> Callable[..., Any]:
    """Adds leaves leaf, ..., leaf + 3 to ``sums``, uint64 (k + 2, 2 * lanes * count): k + 1 ruler sums, then P.

    ``ruler`` is leaf + 4's ruler number; those of leaf + 1, + 2 and + 3 are 0, 1 and 0 as leaf is a multiple of 4.
    """

    @intrinsic
    def step(typingctx: Any, keys: Any, leaf: Any, counter: Any, sums: Any, ruler: Any, prefix: Any) -> Any:
        for array, dimensions in ((keys, 3), (sums, 2)):
            if not (
                isinstance(array, types.Array)
                and array.dtype == types.uint64
                and array.ndim == dimensions
                and array.layout == "C"
            ):
                raise errors.TypingError("leaves are summed in uint64 arrays in C order")

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, lanes, count)
            keys_type, sums_type = signature.args[0], signature.args[3]
            leaf, counter, sums, ruler, prefix = args[1:]

            def at(row: ir.Value) -> ir.Value:
                return builder.mul(row, ir.Constant(_I64, lanes * count))

            def add(row: ir.Value, values: list[ir.Value]) -> None:
                emit.store(sums_type, sums, at(row), emit.xor(emit.load(sums_type, sums, at(row)), values))

            first, second = ir.Constant(_I64, 0), ir.Constant(_I64, 1)
            counters = emit.counters(counter)
            running = emit.load(sums_type, sums, at(prefix))
            often = emit.load(sums_type, sums, at(first))
            for i in range(4):
                key_row = builder.mul(builder.add(leaf, ir.Constant(_I64, i)), ir.Constant(_I64, 11))
                running = emit.xor(running, emit.encrypt(emit.round_keys(keys_type, args[0], key_row), counters))
                if i % 2 == 0:
                    often = emit.xor(often, running)
                elif i == 1:
                    add(second, running)
                else:
                    add(ruler, running)
            emit.store(sums_type, sums, at(first), often)
            emit.store(sums_type, sums, at(prefix), running)
            return context.get_dummy_value()

        index = types.intp
        return types.void(keys, index, types.uint64, sums, index, index), codegen

    return step


_add_leaves = _leaves_step(_LANES, _COUNT)


@linked
def leaf_sums(keys: Words, counter: int, columns: Words, total: Words) -> None:
    """columns_j = XOR of G(keys_x) over the x with bit j;  total = XOR of G(keys_x) over all x.

    G(key) is AES-CTR from block ``counter`` on. keys: uint64 (2^k, 11, 2), round keys, k >= 2. Writes columns: uint64
    (k, n) and total: uint64 (n,), n even, C order. Stream 0 is in total only. No branch or index depends on keys.
    """
    depth, n = columns.shape
    if depth < 2 or keys.shape[0] != 1 << depth or keys.shape[1] != 11 or keys.shape[2] != 2:
        raise ValueError("round keys are uint64 (2^k, 11, 2) for k >= 2 columns")
    sums = np.empty((depth + 2, _STEP), np.uint64)
    for first in range(0, n, _STEP):
        sums[:] = 0
        for leaf in range(0, 1 << depth, 4):
            ruler = 2
            while (leaf + 4) >> ruler & 1 == 0:
                ruler += 1
            _add_leaves(keys, leaf, np.uint64(counter + first // 2), sums, ruler, depth + 1)
        width = min(_STEP, n - first)
        for v in range(width):
            total[first + v] = sums[depth, v]
        for j in range(depth - 1, -1, -1):
            for v in range(width):
                sums[j, v] ^= sums[j + 1, v]
                columns[j, first + v] = sums[j, v]
