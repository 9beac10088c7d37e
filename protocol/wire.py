"""Messages as frozen dataclasses, and their one encoding: a msgpack header and raw array buffers.

A frame is ``Frame(header, payload)``. The header is msgpack ``[kind, sequence, [[dtype, shape], ...], {scalars}]``
and at most ``MAX_HEADER`` bytes; the payload is the arrays' little-endian C-order bytes, one after another.
How the two parts lie on a socket is the daemon's matter (docs/wire-format.md).

The decoder trusts nothing: the receiver names the message class and the exact shape of every array before it looks,
and anything else (kind, sequence, dtype, rank, shape, missing or surplus bytes) is a ``WireError``. No pickle, ever.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

import msgpack
import numpy as np

MAX_HEADER = 16 * 1024
DTYPES = ("<u8", "<u4", "<u2", "|u1")

_KINDS: dict[str, type] = {}
M = TypeVar("M")


class WireError(ValueError):
    """The peer sent something that is not the message this step of the protocol expects."""


class Deviation(WireError):
    """The peer deviated from the protocol: its messages have the right form, but a check shows that they are false."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One encoded message. ``payload`` is a list of buffers so that bulk data is not joined in Python."""

    header: bytes
    payload: tuple[memoryview, ...]

    @property
    def payload_size(self) -> int:
        return sum(part.nbytes for part in self.payload)


def array(dtype: str, rank: int) -> Any:
    """A dataclass field that holds an array of this dtype ('uint64', 'uint32', 'uint16', 'uint8') and rank."""
    wire_dtype = np.dtype(dtype).newbyteorder("<").str
    if wire_dtype not in DTYPES:
        raise TypeError(f"dtype {dtype} has no wire form")
    return dataclasses.field(metadata={"dtype": wire_dtype, "rank": rank})


def blob(size: int) -> Any:
    """A dataclass field that holds exactly ``size`` bytes (a seed, a digest, a group element)."""
    return dataclasses.field(metadata={"blob": size})


@dataclass_transform(frozen_default=True, field_specifiers=(array, blob))
def message(kind: str) -> Callable[[type[M]], type[M]]:
    """Class decorator: a frozen dataclass of ``array`` and ``blob`` fields that travels as ``kind``."""

    def register(cls: type[M]) -> type[M]:
        cls = dataclasses.dataclass(frozen=True, slots=True)(cls)
        if kind in _KINDS and _KINDS[kind].__qualname__ != cls.__qualname__:
            raise TypeError(f"message kind {kind!r} is defined twice")
        cls.__wire_kind__ = kind  # type: ignore[attr-defined]
        _KINDS[kind] = cls
        return cls

    return register


def encode(msg: Any, sequence: int) -> Frame:
    """Frame of ``msg``. Raises TypeError if a field does not hold what its class declares."""
    arrays: list[list[Any]] = []
    blobs: dict[str, bytes] = {}
    payload: list[memoryview] = []
    for f in dataclasses.fields(msg):
        value = getattr(msg, f.name)
        if "blob" in f.metadata:
            if len(value) != f.metadata["blob"]:
                raise TypeError(f"{f.name} must have {f.metadata['blob']} bytes, not {len(value)}")
            blobs[f.name] = bytes(value)
            continue
        if value.dtype.str != f.metadata["dtype"] or value.ndim != f.metadata["rank"]:
            raise TypeError(f"{f.name} is {value.dtype.str} of rank {value.ndim}, declared {dict(f.metadata)}")
        arrays.append([value.dtype.str, list(value.shape)])
        if value.size:
            payload.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    header = msgpack.packb([msg.__wire_kind__, sequence, arrays, blobs])
    return Frame(header, tuple(payload))


def expected_size(cls: type, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Payload bytes of a ``cls`` whose arrays have these shapes: the limit a driver reads up to."""
    total = 0
    for f in dataclasses.fields(cls):
        if "dtype" in f.metadata:
            total += np.dtype(f.metadata["dtype"]).itemsize * math.prod(shapes[f.name])
    return total


def decode(
    cls: type[M],
    header: bytes,
    payload: memoryview | bytes,
    sequence: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> M:
    """The ``cls`` in this frame, or WireError. Arrays are views of ``payload`` (read-only when that is)."""
    kind: str = cls.__wire_kind__  # type: ignore[attr-defined]
    if len(header) > MAX_HEADER:
        raise WireError(f"header of {len(header)} bytes, at most {MAX_HEADER} allowed")
    try:
        parts = msgpack.unpackb(header, max_array_len=4096, max_map_len=256)
        got_kind, got_sequence, arrays, blobs = parts
    except Exception as error:
        raise WireError(f"header of a {kind} message does not decode") from error
    if got_kind != kind:
        raise WireError(f"expected a {kind} message, got {str(got_kind)[:80]!r}")
    if got_sequence != sequence:
        raise WireError(f"expected message number {sequence}, got {str(got_sequence)[:40]}")
    if not isinstance(arrays, list) or not isinstance(blobs, dict):
        raise WireError(f"header of a {kind} message is malformed")
    fields: dict[str, Any] = {}
    view = memoryview(payload).cast("B") if len(payload) else memoryview(b"")
    offset = 0
    remaining = list(arrays)
    expected_blobs = 0
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if "blob" in f.metadata:
            expected_blobs += 1
            value = blobs.get(f.name)
            if not isinstance(value, bytes) or len(value) != f.metadata["blob"]:
                raise WireError(f"{kind}.{f.name} must be {f.metadata['blob']} bytes")
            fields[f.name] = value
            continue
        if not remaining:
            raise WireError(f"{kind}.{f.name} is missing")
        declared = remaining.pop(0)
        want = [f.metadata["dtype"], list(shapes[f.name])]
        if declared != want:
            raise WireError(f"{kind}.{f.name} should be {want}, peer sent {str(declared)[:80]}")
        dtype = np.dtype(f.metadata["dtype"])
        size = dtype.itemsize * math.prod(shapes[f.name])
        if offset + size > len(view):
            raise WireError(f"{kind}.{f.name} is truncated")
        fields[f.name] = np.frombuffer(view[offset : offset + size], dtype).reshape(shapes[f.name])
        offset += size
    if remaining or len(blobs) != expected_blobs or offset != len(view):
        raise WireError(f"a {kind} message carries surplus data")
    return cls(**fields)
