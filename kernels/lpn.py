"""A random sparse linear code over 128-bit rows: every output adds D rows of a table ("local linear code").

Yang, Weng, Lan, Zhang and Wang, "Ferret" (CCS 2020, eprint 2020/924): learning parity with noise whose matrix
has D = 10 ones a row at uniform places (one that comes up twice drops out), here from AES-128 in counter mode under a
public key.

The table has 2^b rows. Outputs come in groups of GROUP = 4 whose 40 row numbers lie one after another in the
keystream, 16 bits each where b <= 16, else 32 bits, the low b bits counting; group g starts at block 5 g or 10 g. Row
numbers are public; no branch or index depends on rows.
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

from mpcd.kernels.aes import ctr_keystream
from mpcd.kernels.cpu import linked

Words = npt.NDArray[np.uint64]

D = 10
GROUP = 4
MAX_BITS = 32
# Outputs whose row numbers are drawn at a time: at most 10 KiB of keystream.
TILE = 256

_I64 = ir.IntType(64)
_BLOCK = ir.VectorType(_I64, 2)


def _group_step(width: int) -> Callable[..., Any]:
    """rows[at + g] ^= the D rows of table numbered by the ``width`` bits from keystream block ``block`` on, & mask.

    The 40 loads depend on nothing but the keystream, so a core keeps many under way at once.
    """

    @intrinsic
    def step(typingctx: Any, keystream: Any, block: Any, table: Any, mask: Any, rows: Any, at: Any) -> Any:
        for array in (keystream, table, rows):
            if not (
                isinstance(array, types.Array)
                and array.dtype == types.uint64
                and array.ndim == 2
                and array.layout == "C"
            ):
                raise errors.TypingError("rows are uint64 (n, 2) arrays in C order")

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def data(array: int) -> ir.Value:
                return context.make_array(signature.args[array])(context, builder, args[array]).data

            numbers = builder.gep(data(0), [builder.shl(args[1], ir.Constant(_I64, 1))])
            table = builder.bitcast(data(2), _BLOCK.as_pointer())
            outputs = builder.gep(builder.bitcast(data(4), _BLOCK.as_pointer()), [args[5]])
            used = 0
            for g in range(GROUP):
                place = builder.gep(outputs, [ir.Constant(_I64, g)])
                row = builder.load(place, align=8)
                for _ in range(D):
                    word, shift = divmod(used, 64)
                    if shift == 0:
                        number = builder.load(builder.gep(numbers, [ir.Constant(_I64, word)]), align=8)
                    index = builder.and_(builder.lshr(number, ir.Constant(_I64, shift)), args[3])
                    row = builder.xor(row, builder.load(builder.gep(table, [index]), align=8))
                    used += width
                builder.store(row, place, align=8)
            return context.get_dummy_value()

        index = types.intp
        return types.void(keystream, index, table, types.uint64, rows, index), codegen

    return step


_group_16 = _group_step(16)
_group_32 = _group_step(32)


@linked
def encode(round_keys: Words, table: Words, first: int, rows: Words) -> None:
    """rows[i] ^= output first + i of the code, in place.

    round_keys: uint64 (11, 2). table: uint64 (2^b, 2), b <= 32. rows: uint64 (n, 2). GROUP divides first and n.
    """
    n = rows.shape[0]
    size = table.shape[0]
    if first % GROUP or n % GROUP:
        raise ValueError("outputs come in groups")
    if size < 1 or size & (size - 1) or size > 1 << MAX_BITS:
        raise ValueError("a table has 2^b rows")
    mask = np.uint64(size - 1)
    narrow = size <= 1 << 16
    blocks = 5 if narrow else 10
    keystream = np.empty((blocks * (TILE // GROUP), 2), np.uint64)
    for start in range(0, n, TILE):
        count = min(TILE, n - start)
        groups = count // GROUP
        ctr_keystream(round_keys, (first + start) // GROUP * blocks, keystream[: blocks * groups])
        if narrow:
            for g in range(groups):
                _group_16(keystream, blocks * g, table, mask, rows, start + GROUP * g)
        else:
            for g in range(groups):
                _group_32(keystream, blocks * g, table, mask, rows, start + GROUP * g)
