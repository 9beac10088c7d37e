"""Correlations as sections of a unit's file: bit-packed, in order, each with a checksum.

    u32 length of the need | need (msgpack) | payload, whole 8-byte words | 8 bytes of the payload's SHA-256

The checksum finds damage, not malice. It is SHA-256 because that looks nothing up by the pads' bits, as CRC-32 does.

Payload of n entries, each part packed to its own width and padded to 8 bytes:

    leaf OT, sender      n uses pads of 2 * 2^block bits     receiver    n of block + 2 uses bits (choice, then pads)
    bit triples          a, b, b2, c, c2: n bits each
    strings, sender      m0, m1: n of ``bits`` bits each     receiver    choices: n bits; m: n of ``bits`` bits
    matrix triple, P0    nothing (s comes from the seed)     P1          r, c at ``bits`` bits

Seeds (protocol/ot/compact.py) are one section of their own: u32 length | msgpack | checksum.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import msgpack
import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits
from mpcd.protocol import matrix_triple
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER
from mpcd.protocol.correlations import (
    AndNeed,
    AndTriples,
    CorrelationError,
    LeafNeed,
    LeafReceiver,
    LeafSender,
    MatrixClient,
    MatrixNeed,
    MatrixServer,
    Need,
    StringNeed,
    StringReceiver,
    StringSender,
)
from mpcd.protocol.ot.compact import Direction, Kept
from mpcd.protocol.ot.ferret import Seeds
from mpcd.protocol.ot.spcot import ReceiverSeeds, SenderSeeds

Words = npt.NDArray[np.uint64]

_LENGTH = struct.Struct("<I")
_CHECKSUM = 8
_CHUNK = 1 << 20  # entries packed at a time; a multiple of 64, so that chunks end on a word


def write(file: BinaryIO, need: Need, correlation: Any, party: int) -> int:
    """Append a section; the bytes of its payload. Raises CorrelationError when the correlation is not the need's."""
    described = _describe(need)
    file.write(_LENGTH.pack(len(described)) + described)
    checksum = hashlib.sha256()
    size = 0
    for words in _encode(need, correlation, party):
        data = words.view(np.uint8).data
        checksum.update(data)
        file.write(data)
        size += len(data)
    file.write(checksum.digest()[:_CHECKSUM])
    return size


def read(file: BinaryIO, party: int, seed: bytes) -> tuple[Need | None, Any]:
    """The file's next section, unpacked; (None, None) at its end. Raises CorrelationError when it is damaged."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None, None
    need = _need(exactly(file, _LENGTH.unpack(head)[0]))
    parts = [np.frombuffer(exactly(file, 8 * size), np.uint64) for size in _part_words(need, party)]
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part.view(np.uint8).data)
    if exactly(file, _CHECKSUM) != checksum.digest()[:_CHECKSUM]:
        raise CorrelationError(f"{need}: the unit's file is damaged")
    return need, _decode(need, parts, party, seed)


def write_seeds(file: BinaryIO, kept: Kept, needs: Sequence[Need]) -> int:
    """The only section of seeds.bin: the seeds, and the needs that they are for. Its payload's bytes."""
    data = msgpack.packb(
        [
            [_describe(need) for need in needs],
            kept.extension,
            kept.session_key,
            _direction(kept.sending),
            _direction(kept.receiving),
        ]
    )
    file.write(_LENGTH.pack(len(data)) + data + hashlib.sha256(data).digest()[:_CHECKSUM])
    return len(data)


def read_seeds(file: BinaryIO) -> tuple[Kept, list[Need]]:
    """Raises CorrelationError when the file is damaged."""
    data = exactly(file, _LENGTH.unpack(exactly(file, _LENGTH.size))[0])
    if exactly(file, _CHECKSUM) != hashlib.sha256(data).digest()[:_CHECKSUM]:
        raise CorrelationError("a unit's seeds are damaged")
    needs, extension, key, sending, receiving = msgpack.unpackb(data)
    return Kept(extension, key, _of_direction(sending), _of_direction(receiving)), [_need(need) for need in needs]


def _direction(direction: Direction) -> list[Any]:
    seeds, delta = direction.seeds, direction.delta
    table = None if seeds.table is None else seeds.table.tobytes()
    trees = [_trees(each) for each in seeds.trees]
    return [seeds.iteration, seeds.position, table, trees, direction.tweak, None if delta is None else delta.tobytes()]


def _of_direction(packed: list[Any]) -> Direction:
    iteration, position, table, trees, tweak, delta = packed
    seeds = Seeds(iteration, position, None if table is None else _rows(table), [_of_trees(each) for each in trees])
    return Direction(seeds, tweak, None if delta is None else np.frombuffer(delta, np.uint64))


def _trees(trees: SenderSeeds | ReceiverSeeds) -> list[bytes]:
    if isinstance(trees, SenderSeeds):
        return [trees.roots.tobytes()]
    return [trees.points.astype(np.uint16).tobytes(), trees.siblings.tobytes()]


def _of_trees(packed: list[bytes]) -> SenderSeeds | ReceiverSeeds:
    if len(packed) == 1:
        return SenderSeeds(_rows(packed[0]))
    points = np.frombuffer(packed[0], np.uint16).astype(np.uint64)
    return ReceiverSeeds(points, _rows(packed[1]).reshape(len(points), -1, 2))


def _rows(data: bytes) -> Words:
    return np.frombuffer(data, np.uint64).reshape(-1, 2)


def exactly(file: BinaryIO, size: int) -> bytes:
    """Raises CorrelationError when the file has fewer."""
    if size > os.fstat(file.fileno()).st_size - file.tell():
        raise CorrelationError("a unit's file is truncated")
    return file.read(size)


def _decode(need: Need, parts: list[Words], party: int, seed: bytes) -> Any:
    match need:
        case LeafNeed(block, n, uses) if party == MODEL_OWNER:
            return LeafSender(_unpack(parts[0], 2 << block, n * uses, np.uint32).reshape(n, uses))
        case LeafNeed(block, n, uses):
            both = _unpack(parts[0], block + 2 * uses, n, np.uint8 if uses == 1 else np.uint16)
            pads = [(both >> both.dtype.type(block + 2 * use) & 3).astype(np.uint8) for use in range(uses)]
            return LeafReceiver((both & ((1 << block) - 1)).astype(np.uint8), np.stack(pads, axis=1))
        case AndNeed():
            return AndTriples(*parts)
        case StringNeed(width, n, sender) if party == sender:
            return StringSender(*(bits.unpack_ring(part, width, n) for part in parts))
        case StringNeed(width, n):
            return StringReceiver(parts[0], bits.unpack_ring(parts[1], width, n))
        case MatrixNeed(op, width, _, shape) if party == MODEL_OWNER:
            return MatrixServer(matrix_triple.mask(seed, op, shape, width))
        case MatrixNeed(_, width, in_shape, out_shape):
            r, c = (
                bits.unpack_ring(part, width, math.prod(shape)).reshape(shape)
                for part, shape in zip(parts, (in_shape, out_shape), strict=True)
            )
            return MatrixClient(r, c)


def _describe(need: Need) -> bytes:
    return bytes(msgpack.packb([type(need).__name__, *dataclasses.astuple(need)]))


def _need(described: bytes) -> Need:
    """The inverse of _describe. Raises CorrelationError."""
    try:
        name, *fields = msgpack.unpackb(described, use_list=False)
        return {kind.__name__: kind for kind in (LeafNeed, AndNeed, StringNeed, MatrixNeed)}[name](*fields)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise CorrelationError("a unit's file is damaged: no such correlation") from error


def _words(n: int, width: int) -> int:
    return (n * width + 63) // 64


def _part_words(need: Need, party: int) -> list[int]:
    """Words of each part of a section's payload."""
    match need:
        case LeafNeed(block, n, uses):
            return [_words(n * uses, 2 << block) if party == MODEL_OWNER else _words(n, block + 2 * uses)]
        case AndNeed(n):
            return [_words(n, 1)] * 5
        case StringNeed(width, n, sender):
            return [_words(n, width if party == sender else 1), _words(n, width)]
        case MatrixNeed(_, width, in_shape, out_shape):
            return [_words(math.prod(shape), width) for shape in (in_shape, out_shape)] if party == DATA_OWNER else []


def _encode(need: Need, correlation: Any, party: int) -> Iterator[Words]:
    """The section's payload, piece by piece; the pieces of a part join on word boundaries."""
    match need:
        case LeafNeed(block, n, uses) if party == MODEL_OWNER:
            yield from _pack(_checked(correlation.pads, n, uses).reshape(-1), 2 << block)
        case LeafNeed(block, n, uses):
            pads = _checked(correlation.pads, n, uses)
            both = _checked(correlation.choices, n).astype(np.uint8 if uses == 1 else np.uint16)
            for use in range(uses):
                both = both | pads[:, use].astype(both.dtype) << both.dtype.type(block + 2 * use)
            yield from _pack(both, block + 2 * uses)
        case AndNeed(n):
            for part in (correlation.a, correlation.b, correlation.b2, correlation.c, correlation.c2):
                yield _checked(part, _words(n, 1))
        case StringNeed(width, n, sender) if party == sender:
            yield from _pack(_checked(correlation.m0, n), width)
            yield from _pack(_checked(correlation.m1, n), width)
        case StringNeed(width, n):
            yield _checked(correlation.choices, _words(n, 1))
            yield from _pack(_checked(correlation.m, n), width)
        case MatrixNeed(_, width, in_shape, out_shape) if party == DATA_OWNER:
            for part, shape in ((correlation.r, in_shape), (correlation.c, out_shape)):
                yield from _pack(_checked(np.ascontiguousarray(part).reshape(-1), math.prod(shape)), width)


def _checked(x: npt.NDArray[Any], *shape: int) -> npt.NDArray[Any]:
    if x.shape != shape:
        raise CorrelationError(f"a correlation has {x.shape} entries where {shape} were asked for")
    return np.ascontiguousarray(x)


def _pack(x: npt.NDArray[Any], width: int) -> Iterator[Words]:
    for start in range(0, len(x), _CHUNK):
        yield bits.pack_ring(x[start : start + _CHUNK].astype(np.uint64), width)


def _unpack(words: Words, width: int, n: int, dtype: Any) -> npt.NDArray[Any]:
    """As ``dtype``, chunk by chunk: eight bytes an entry would be too much at once."""
    out = np.empty(n, dtype)
    for start in range(0, n, _CHUNK):
        count = min(_CHUNK, n - start)
        out[start : start + count] = bits.unpack_ring(words[start * width // 64 :], width, count)
    return out
