"""A unit's correlations on disk: bit-packed, written once, read once.

``units/<id>/matrix.bin`` holds the matrix triples in the plan's order, ``units/<id>/pads.bin`` everything that came
from oblivious transfer. A file is a header (magic, unit id; matrix.bin: this party's 16-byte mask seed) and sections:

    u32 length of the need | need (msgpack) | payload, whole 8-byte words | 8 bytes of the payload's SHA-256

The checksum finds damage, not malice. It is SHA-256 because that looks nothing up by the pads' bits, as CRC-32 does.

Payload of n entries, each part packed to its own width and padded to 8 bytes:

    leaf OT, sender      n pads of 2 * 2^block bits          receiver    n of block + 2 bits (choice, then pad)
    bit triples          a, b, b2, c, c2: n bits each
    strings, sender      m0, m1: n of ``bits`` bits each     receiver    choices: n bits; m: n of ``bits`` bits
    matrix triple, P0    nothing (s comes from the seed)     P1          r, c at ``bits`` bits

A reader needs the ledger's proof that the unit is spent for this very use, and unlinks the files as soon as they are
open: nothing is left to read a second time, not even after a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import math
import os
import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
import numpy.typing as npt

from mpcd.daemon.errors import NotEnough
from mpcd.daemon.offline.ledger import LedgerError, Spent
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

Words = npt.NDArray[np.uint64]

_MAGIC = b"mpcdunt2"
_HEADER = struct.Struct("<8s16s16s")
_LENGTH = struct.Struct("<I")
_CHECKSUM = 8
_CHUNK = 1 << 20  # entries packed at a time; a multiple of 64, so that chunks end on a word
FILES = ("matrix.bin", "pads.bin")


class UnitStore:
    """The folder of all units of a state folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def writer(self, unit: bytes, party: int, seed: bytes, plan: Sequence[Need]) -> UnitWriter:
        return UnitWriter(self.root / unit.hex(), unit, party, seed, plan)

    def open(self, spent: Spent, party: int) -> UnitReader:
        """Raises LedgerError unless ``spent`` is the ledger's own proof and has not been used to open before."""
        return UnitReader(self.root / spent.unit.hex(), spent, party)

    def complete(self, unit: bytes) -> bool:
        return all((self.root / unit.hex() / name).is_file() for name in FILES)

    def remove(self, units: Sequence[bytes]) -> None:
        for unit in units:
            shutil.rmtree(self.root / unit.hex(), ignore_errors=True)

    def sweep(self, keep: Sequence[bytes]) -> int:
        """Remove every unit but these; the number removed."""
        names = {unit.hex() for unit in keep}
        removed = 0
        for folder in self.root.iterdir():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free


class UnitWriter:
    """Takes one unit's correlations as they are made: matrix triples first, then the others, in the plan's order."""

    def __init__(self, folder: Path, unit: bytes, party: int, seed: bytes, plan: Sequence[Need]) -> None:
        if len(unit) != 16 or len(seed) != 16:
            raise ValueError("a unit's id and seed have 16 bytes each")
        self._party = party
        self._expected: list[Need] = [need for need in plan if isinstance(need, MatrixNeed)]
        self._expected += [need for need in plan if not isinstance(need, MatrixNeed)]
        self._next = 0
        self._lock = threading.Lock()
        self._folder = folder
        self.bytes_written = 0
        folder.mkdir(mode=0o700)
        self._files: list[BinaryIO] = []
        for name, own_seed in zip(FILES, (seed, bytes(16)), strict=True):
            self._files.append(open(folder / name, "xb", opener=_private))  # noqa: SIM115
            self._files[-1].write(_HEADER.pack(_MAGIC, unit, own_seed))

    def put(self, need: Need, correlation: Any) -> None:
        """Raises CorrelationError when ``need`` is not what comes next, NotEnough when the disk is full."""
        with self._lock:
            if not self._files:
                raise CorrelationError("this unit was given up")
            if self._next >= len(self._expected) or self._expected[self._next] != need:
                raise CorrelationError(f"{need} is not what the plan has at place {self._next}")
            file = self._files[not isinstance(need, MatrixNeed)]
            with _naming_full_disk(self._folder):
                described = _describe(need)
                file.write(_LENGTH.pack(len(described)) + described)
                checksum = hashlib.sha256()
                for words in _encode(need, correlation, self._party):
                    data = words.view(np.uint8).data
                    checksum.update(data)
                    file.write(data)
                    self.bytes_written += len(data)
                file.write(checksum.digest()[:_CHECKSUM])
            self._next += 1

    def finish(self) -> None:
        """On the disk when this returns. Raises CorrelationError when the unit lacks something."""
        with self._lock:
            if self._next != len(self._expected):
                raise CorrelationError(f"only {self._next} of {len(self._expected)} correlations were made")
            with _naming_full_disk(self._folder):
                for file in self._files:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
            self._files = []
            _sync_folder(self._folder)
            _sync_folder(self._folder.parent)

    def discard(self) -> None:
        """Give up; also while another thread still writes. Harmless after ``finish``, but for the files."""
        with self._lock:
            for file in self._files:
                with contextlib.suppress(OSError):  # closing writes the buffer, which a full disk refuses
                    file.close()
            self._files = []
            shutil.rmtree(self._folder, ignore_errors=True)


class UnitReader:
    """Source of one spent unit. The next correlation of each file is unpacked while its forerunner is used."""

    def __init__(self, folder: Path, spent: Spent, party: int) -> None:
        if not isinstance(spent, Spent):
            raise LedgerError("a unit is read only with the ledger's proof that it is spent")
        spent.open()
        self._party = party
        self._lock = threading.Lock()
        self._files: list[BinaryIO] = []
        self._thread = ThreadPoolExecutor(1, "unit")
        try:
            headers = []
            for name in FILES:
                self._files.append(open(folder / name, "rb"))  # noqa: SIM115
                headers.append(_HEADER.unpack(_exactly(self._files[-1], _HEADER.size)))
        except OSError as error:
            self.close()
            raise CorrelationError(f"unit {spent.unit.hex()} cannot be read: {error.strerror}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if any(header[:2] != (_MAGIC, spent.unit) for header in headers):
            self.close()
            raise CorrelationError(f"the files of unit {spent.unit.hex()} belong to another unit")
        self._seed: bytes = headers[0][2]
        self._ahead = [self._thread.submit(self._read, file) for file in self._files]

    def take(self, need: Need) -> Any:
        """The next correlation. Raises CorrelationError when it is not ``need`` or does not have its checksum."""
        with self._lock:
            if not self._files:
                raise CorrelationError("this unit is closed")
            which = int(not isinstance(need, MatrixNeed))
            found, correlation = self._ahead[which].result()
            if found is None:
                raise CorrelationError(f"{need} was asked for, the unit has no more")
            if found != need:
                raise CorrelationError(f"{need} was asked for, the unit has {found}")
            self._ahead[which] = self._thread.submit(self._read, self._files[which])
        return correlation

    def close(self) -> None:
        with self._lock:
            self._thread.shutdown(wait=False, cancel_futures=True)
            for file in self._files:
                file.close()
            self._files = []

    def _read(self, file: BinaryIO) -> tuple[Need | None, Any]:
        """The file's next section, unpacked; None at its end."""
        head = file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None, None
        need = _need(_exactly(file, _LENGTH.unpack(head)[0]))
        parts = [np.frombuffer(_exactly(file, 8 * size), np.uint64) for size in _part_words(need, self._party)]
        checksum = hashlib.sha256()
        for part in parts:
            checksum.update(part.view(np.uint8).data)
        if _exactly(file, _CHECKSUM) != checksum.digest()[:_CHECKSUM]:
            raise CorrelationError(f"{need}: the unit's file is damaged")
        return need, self._decode(need, parts)

    def _decode(self, need: Need, parts: list[Words]) -> Any:
        match need:
            case LeafNeed(block, n) if self._party == MODEL_OWNER:
                return LeafSender(_unpack(parts[0], 2 << block, n, np.uint32))
            case LeafNeed(block, n):
                both = _unpack(parts[0], block + 2, n, np.uint8)
                return LeafReceiver(both & np.uint8((1 << block) - 1), both >> np.uint8(block))
            case AndNeed():
                return AndTriples(*parts)
            case StringNeed(width, n, sender) if self._party == sender:
                return StringSender(*(bits.unpack_ring(part, width, n) for part in parts))
            case StringNeed(width, n):
                return StringReceiver(parts[0], bits.unpack_ring(parts[1], width, n))
            case MatrixNeed(op, width, _, shape) if self._party == MODEL_OWNER:
                return MatrixServer(matrix_triple.mask(self._seed, op, shape, width))
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
        case LeafNeed(block, n):
            return [_words(n, 2 << block if party == MODEL_OWNER else block + 2)]
        case AndNeed(n):
            return [_words(n, 1)] * 5
        case StringNeed(width, n, sender):
            return [_words(n, width if party == sender else 1), _words(n, width)]
        case MatrixNeed(_, width, in_shape, out_shape):
            return [_words(math.prod(shape), width) for shape in (in_shape, out_shape)] if party == DATA_OWNER else []


def _encode(need: Need, correlation: Any, party: int) -> Iterator[Words]:
    """The section's payload, piece by piece; the pieces of a part join on word boundaries."""
    match need:
        case LeafNeed(block, n) if party == MODEL_OWNER:
            yield from _pack(_checked(correlation.pads, n), 2 << block)
        case LeafNeed(block, n):
            both = _checked(correlation.choices, n) | (_checked(correlation.pads, n) << np.uint8(block))
            yield from _pack(both, block + 2)
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


def _checked(x: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    if x.shape != (n,):
        raise CorrelationError(f"a correlation has {x.shape} entries where {n} were asked for")
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


def _exactly(file: BinaryIO, size: int) -> bytes:
    if size > os.fstat(file.fileno()).st_size - file.tell():
        raise CorrelationError("a unit's file is truncated")
    return file.read(size)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _naming_full_disk(folder: Path) -> Iterator[None]:
    """ENOSPC and EDQUOT as NotEnough."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NotEnough(
            f"the disk is full: {folder.parent} has no room for more units",
            "Free some space, or ask for fewer images; the unit in the making was given up, the others are good.",
            peer_text="the disk is full",
        ) from error
