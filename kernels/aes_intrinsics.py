"""AES-128 by the CPU's instructions: VAES on 512-bit vectors, or AES-NI (Intel SDM volume 2, AESENC).

Constant time: the instructions are. Only loads, stores and loop bounds that depend on public lengths besides.
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

from mpcd.kernels.aes_arguments import check_blocks
from mpcd.kernels.cpu import AES_PATH, linked

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BLOCK = ir.VectorType(_I64, 2)

# Blocks in a vector, and vectors in flight: enough to hide the instruction's latency.
_LANES = 4 if AES_PATH == "vaes512" else 1
_WIDE = 16 if AES_PATH == "vaes512" else 8


class Emitter:
    """Writes the LLVM code for one kernel step on ``count`` vectors of ``lanes`` blocks each."""

    def __init__(self, context: Any, builder: ir.IRBuilder, lanes: int, count: int) -> None:
        self.context = context
        self.builder = builder
        self.lanes = lanes
        self.count = count
        self.vector = ir.VectorType(_I64, 2 * lanes)

    def pointer(self, array_type: types.Array, array: ir.Value, row: ir.Value | int) -> ir.Value:
        """Where row ``row`` of a uint64 (n, 2) array begins."""
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        if isinstance(row, int):
            return self.builder.gep(data, [ir.Constant(_I64, 2 * row)])
        return self.builder.gep(data, [self.builder.shl(row, ir.Constant(row.type, 1))])

    def load(self, array_type: types.Array, array: ir.Value, row: ir.Value) -> list[ir.Value]:
        start = self.builder.bitcast(self.pointer(array_type, array, row), self.vector.as_pointer())
        return [self.builder.load(self.builder.gep(start, [ir.Constant(_I64, i)]), align=8) for i in range(self.count)]

    def store(self, array_type: types.Array, array: ir.Value, row: ir.Value, values: list[ir.Value]) -> None:
        start = self.builder.bitcast(self.pointer(array_type, array, row), self.vector.as_pointer())
        for i, value in enumerate(values):
            self.builder.store(value, self.builder.gep(start, [ir.Constant(_I64, i)]), align=8)

    def round_keys(self, array_type: types.Array, array: ir.Value, row: ir.Value | None = None) -> list[ir.Value]:
        """The eleven round keys from row ``row`` (0) on, each repeated in every lane."""
        keys = []
        for r in range(11):
            place = r if row is None else self.builder.add(row, ir.Constant(_I64, r))
            at = self.builder.bitcast(self.pointer(array_type, array, place), _BLOCK.as_pointer())
            repeat = ir.Constant(ir.VectorType(_I32, 2 * self.lanes), [0, 1] * self.lanes)
            key = self.builder.load(at, align=8)
            keys.append(self.builder.shuffle_vector(key, ir.Constant(_BLOCK, ir.Undefined), repeat))
        return keys

    def counters(self, start: ir.Value) -> list[ir.Value]:
        """start, start + 1, ... as little-endian 128-bit numbers."""
        first = self.builder.insert_element(
            ir.Constant(self.vector, [0] * (2 * self.lanes)), start, ir.Constant(_I32, 0)
        )
        spread = ir.Constant(ir.VectorType(_I32, 2 * self.lanes), [0, 1] * self.lanes)
        first = self.builder.shuffle_vector(first, first, spread)
        steps = [[v for lane in range(self.lanes) for v in (i * self.lanes + lane, 0)] for i in range(self.count)]
        return [self.builder.add(first, ir.Constant(self.vector, step)) for step in steps]

    def xor(self, a: list[ir.Value], b: list[ir.Value]) -> list[ir.Value]:
        return [self.builder.xor(x, y) for x, y in zip(a, b, strict=True)]

    def instruction(self, name: str) -> ir.Function:
        suffix = {1: "", 2: ".256", 4: ".512"}[self.lanes]
        kind = ir.FunctionType(self.vector, [self.vector, self.vector])
        return _declare(self.builder.module, f"llvm.x86.aesni.{name}{suffix}", kind)

    def encrypt(self, keys: list[ir.Value], state: list[ir.Value]) -> list[ir.Value]:
        """FIPS 197 section 5.1, the vectors round by round side by side."""
        state = [self.builder.xor(s, keys[0]) for s in state]
        for r in range(1, 11):
            step = self.instruction("aesenc" if r < 10 else "aesenclast")
            state = [self.builder.call(step, [s, keys[r]]) for s in state]
        return state


def _declare(module: ir.Module, name: str, kind: ir.FunctionType) -> ir.Function:
    known = module.globals.get(name)
    return known if known is not None else ir.Function(module, kind, name)


def _check_blocks(*arrays: Any) -> None:
    for array in arrays:
        if not (
            isinstance(array, types.Array) and array.dtype == types.uint64 and array.ndim == 2 and array.layout == "C"
        ):
            raise errors.TypingError("AES works on uint64 (n, 2) arrays in C order")


def _encrypt_step(lanes: int, count: int) -> Callable[..., Any]:
    @intrinsic
    def step(typingctx: Any, round_keys: Any, x: Any, out: Any, row: Any) -> Any:
        _check_blocks(round_keys, x, out)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, lanes, count)
            keys = emit.round_keys(signature.args[0], args[0])
            result = emit.encrypt(keys, emit.load(signature.args[1], args[1], args[3]))
            emit.store(signature.args[2], args[2], args[3], result)
            return context.get_dummy_value()

        return types.void(round_keys, x, out, types.intp), codegen

    return step


def _counter_step(lanes: int, count: int) -> Callable[..., Any]:
    @intrinsic
    def step(typingctx: Any, round_keys: Any, counter: Any, out: Any, row: Any) -> Any:
        _check_blocks(round_keys, out)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, lanes, count)
            keys = emit.round_keys(signature.args[0], args[0])
            counters = emit.counters(builder.add(args[1], args[3]))
            emit.store(signature.args[2], args[2], args[3], emit.encrypt(keys, counters))
            return context.get_dummy_value()

        return types.void(round_keys, types.uint64, out, types.intp), codegen

    return step


def _hash_step(lanes: int, count: int) -> Callable[..., Any]:
    @intrinsic
    def step(typingctx: Any, round_keys: Any, x: Any, tweak: Any, out: Any, row: Any) -> Any:
        _check_blocks(round_keys, x, out)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, lanes, count)
            keys = emit.round_keys(signature.args[0], args[0])
            once = emit.encrypt(keys, emit.load(signature.args[1], args[1], args[4]))
            tweaked = emit.xor(once, emit.counters(builder.add(args[2], args[4])))
            result = emit.xor(emit.encrypt(keys, tweaked), once)
            emit.store(signature.args[3], args[3], args[4], result)
            return context.get_dummy_value()

        return types.void(round_keys, x, types.uint64, out, types.intp), codegen

    return step


def _schedule_step() -> Callable[..., Any]:
    """Round keys 1 to 10 from row 0, FIPS 197 section 5.2, by AESKEYGENASSIST."""

    @intrinsic
    def step(typingctx: Any, round_keys: Any) -> Any:
        _check_blocks(round_keys)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, 1, 1)
            words = ir.VectorType(_I32, 4)
            zero = ir.Constant(words, [0] * 4)
            assist = _declare(builder.module, "llvm.x86.aesni.aeskeygenassist", ir.FunctionType(_BLOCK, [_BLOCK, _I8]))
            row = ir.Constant(_I64, 0)
            (key,) = emit.load(signature.args[0], args[0], row)
            for r, constant in enumerate((0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1B, 0x36), start=1):
                substituted = builder.bitcast(builder.call(assist, [key, ir.Constant(_I8, constant)]), words)
                last = builder.shuffle_vector(substituted, zero, ir.Constant(words, [3] * 4))
                word = builder.bitcast(key, words)
                total = builder.xor(last, word)
                for gap in (1, 2, 3):
                    # Words moved up by ``gap``: 4 and above select from zero.
                    moved = [i - gap if i >= gap else 4 for i in range(4)]
                    total = builder.xor(total, builder.shuffle_vector(word, zero, ir.Constant(words, moved)))
                key = builder.bitcast(total, _BLOCK)
                emit.store(signature.args[0], args[0], ir.Constant(_I64, r), [key])
            return context.get_dummy_value()

        return types.void(round_keys), codegen

    return step


_schedule = _schedule_step()
_encrypt_wide, _encrypt_one = _encrypt_step(_LANES, _WIDE // _LANES), _encrypt_step(1, 1)
_counter_wide, _counter_one = _counter_step(_LANES, _WIDE // _LANES), _counter_step(1, 1)
_hash_wide, _hash_one = _hash_step(_LANES, _WIDE // _LANES), _hash_step(1, 1)


@linked
def expand_key(key: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Round keys of AES-128, FIPS 197 section 5.2.

    key: uint8 (16,). Returns uint64 (11, 2), each round key's bytes in order, little endian.
    """
    if key.shape[0] != 16:
        raise ValueError("a key has 16 bytes")
    round_keys = np.zeros((11, 2), np.uint64)
    for p in range(16):
        round_keys[0, p // 8] |= np.uint64(key[p]) << np.uint64(8 * (p % 8))
    _schedule(round_keys)
    return round_keys


@linked
def encrypt_blocks(round_keys: npt.NDArray[np.uint64], x: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> None:
    """out[i] = AES(x[i]). round_keys: uint64 (11, 2); x, out: uint64 (n, 2), C order, may be one array."""
    check_blocks(round_keys, x, out)
    n = x.shape[0]
    whole = n - n % _WIDE
    for i in range(0, whole, _WIDE):
        _encrypt_wide(round_keys, x, out, i)
    for i in range(whole, n):
        _encrypt_one(round_keys, x, out, i)


@linked
def ctr_keystream(round_keys: npt.NDArray[np.uint64], counter: int, out: npt.NDArray[np.uint64]) -> None:
    """out[i] = AES(counter + i), the counter a little-endian 128-bit number.

    round_keys: uint64 (11, 2); 0 <= counter, counter + n <= 2^63; out: uint64 (n, 2), C order.
    """
    check_blocks(round_keys, out, out)
    n = out.shape[0]
    whole = n - n % _WIDE
    for i in range(0, whole, _WIDE):
        _counter_wide(round_keys, np.uint64(counter), out, i)
    for i in range(whole, n):
        _counter_one(round_keys, np.uint64(counter), out, i)


@linked
def tccr_hash(
    round_keys: npt.NDArray[np.uint64], x: npt.NDArray[np.uint64], tweak: int, out: npt.NDArray[np.uint64]
) -> None:
    """out[i] = pi(pi(x[i]) ^ (tweak + i)) ^ pi(x[i]), pi = AES under a fixed public key.

    TMMO (Guo, Katz, Wang, Yu 2019/074, section 7.4): tweakable circular correlation robust where pi is ideal.
    round_keys: uint64 (11, 2); 0 <= tweak, tweak + n <= 2^63; x, out: uint64 (n, 2), C order, may be one array.
    """
    check_blocks(round_keys, x, out)
    n = x.shape[0]
    whole = n - n % _WIDE
    for i in range(0, whole, _WIDE):
        _hash_wide(round_keys, x, np.uint64(tweak), out, i)
    for i in range(whole, n):
        _hash_one(round_keys, x, np.uint64(tweak), out, i)
