"""A unit's correlations on disk: written once, read once.

``units/<id>/matrix.bin`` holds the matrix triples in the plan's order. Everything that comes from oblivious transfer is
in ``pads.bin``, or in a compact unit its seeds in ``seeds.bin``: a fifth of the space and less (docs/ledger.md). Each
party keeps its units as it likes. ``expand`` turns seeds into pads ahead of their use; a unit opened before that is
expanded while it is read. A file is a header (magic, unit id; matrix.bin: this party's 16-byte mask seed) and sections
(section.py).

A reader needs the ledger's proof that the unit is spent for this very use, and unlinks the files as soon as they are
open: nothing is left to read a second time, not even after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from mpcd.daemon.errors import NotEnough
from mpcd.daemon.offline import section
from mpcd.daemon.offline.ledger import LedgerError, Spent
from mpcd.protocol.correlations import CorrelationError, MatrixNeed, Need
from mpcd.protocol.ot import compact

_MAGIC = b"mpcdunt3"
_HEADER = struct.Struct("<8s16s16s")
_MATRIX, _PADS, _SEEDS = "matrix.bin", "pads.bin", "seeds.bin"
_EXPANDING = "pads.new"


class UnitStore:
    """The folder of all units of a state folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()  # between a unit's being opened and its files' taking another form
        self._expanding = threading.Lock()
        self._expanded: bytes | None = None  # the unit in whose place seeds are being expanded
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def writer(self, unit: bytes, party: int, seed: bytes, plan: Sequence[Need], compact: bool = False) -> UnitWriter:
        return UnitWriter(self.root / unit.hex(), unit, party, seed, plan, compact)

    def open(self, spent: Spent, party: int) -> UnitReader:
        """Raises LedgerError unless ``spent`` is the ledger's own proof and has not been used to open before.

        Waits for a unit that is being expanded just now: nearer than beginning anew.
        """
        if self._expanded == spent.unit:
            with self._expanding:
                pass
        with self._lock:
            return UnitReader(self.root / spent.unit.hex(), spent, party)

    def complete(self, unit: bytes) -> bool:
        """Whether its files are there, in the format that this mpcd reads: an upgrade may have left others."""
        folder = self.root / unit.hex()
        return _ours(folder / _MATRIX) and any(_ours(folder / name) for name in (_PADS, _SEEDS))

    def is_compact(self, unit: bytes) -> bool:
        folder = self.root / unit.hex()
        return (folder / _SEEDS).is_file() and not (folder / _PADS).is_file()

    def expand(self, unit: bytes, party: int, given_up: Callable[[], bool]) -> bool:
        """Put pads in the place of seeds; whether that was done. Not when the unit is used or removed meanwhile.

        A crash in between leaves the seeds as they were. Raises NotEnough when the disk is full.
        """
        folder = self.root / unit.hex()
        with self._expanding, _naming_full_disk(folder):
            self._expanded = unit
            try:
                return self._expand(folder, unit, party, given_up)
            finally:
                self._expanded = None

    def _expand(self, folder: Path, unit: bytes, party: int, given_up: Callable[[], bool]) -> bool:
        try:
            with open(folder / _SEEDS, "rb") as source:
                _header(source, unit)
                kept, needs = section.read_seeds(source)
            with self._lock:
                file = open(folder / _EXPANDING, "wb", opener=_private)  # noqa: SIM115
        except FileNotFoundError:
            return False
        try:
            with file:  # closing it writes what is left in its buffer
                file.write(_HEADER.pack(_MAGIC, unit, bytes(16)))
                for need, correlation in zip(needs, compact.expand(party, kept, needs), strict=True):
                    if given_up() or not os.fstat(file.fileno()).st_nlink:
                        return False
                    section.write(file, need, correlation, party)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                os.rename(folder / _EXPANDING, folder / _PADS)
                _sync_folder(folder)
                os.unlink(folder / _SEEDS)
        except FileNotFoundError:
            return False
        finally:
            (folder / _EXPANDING).unlink(missing_ok=True)
        return True

    def remove(self, units: Sequence[bytes]) -> None:
        for unit in units:
            with self._lock:
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
    """Takes one unit's correlations as they are made: matrix triples first, then the others, in the plan's order.

    A ``compact`` one takes ``put_seeds`` in the place of the others.
    """

    def __init__(self, folder: Path, unit: bytes, party: int, seed: bytes, plan: Sequence[Need], compact: bool) -> None:
        if len(unit) != 16 or len(seed) != 16:
            raise ValueError("a unit's id and seed have 16 bytes each")
        self._party = party
        self._others: list[Need] = [need for need in plan if not isinstance(need, MatrixNeed)]
        self._expected: list[Need] = [need for need in plan if isinstance(need, MatrixNeed)]
        self._matrices = len(self._expected)
        self._expected += self._others
        self._next = 0
        self._lock = threading.Lock()
        self._folder = folder
        self._compact = compact
        self.bytes_written = 0
        self._files: list[BinaryIO] = []
        with _naming_full_disk(folder):
            folder.mkdir(mode=0o700)
            for name, own_seed in ((_MATRIX, seed), (_SEEDS if compact else _PADS, bytes(16))):
                self._files.append(open(folder / name, "xb", opener=_private))  # noqa: SIM115
                self._files[-1].write(_HEADER.pack(_MAGIC, unit, own_seed))

    def put(self, need: Need, correlation: Any) -> None:
        """Raises CorrelationError when ``need`` is not what comes next, NotEnough when the disk is full."""
        with self._lock:
            self._check_open()
            matrix = isinstance(need, MatrixNeed)
            if (
                self._next >= len(self._expected)
                or self._expected[self._next] != need
                or (self._compact and not matrix)
            ):
                raise CorrelationError(f"{need} is not what the plan has at place {self._next}")
            with _naming_full_disk(self._folder):
                self.bytes_written += section.write(self._files[not matrix], need, correlation, self._party)
            self._next += 1

    def put_seeds(self, kept: compact.Kept) -> None:
        """Raises CorrelationError unless a compact unit has all its matrix triples, NotEnough when the disk is full."""
        with self._lock:
            self._check_open()
            if not self._compact or self._next != self._matrices:
                raise CorrelationError("seeds are not what comes next")
            with _naming_full_disk(self._folder):
                self.bytes_written += section.write_seeds(self._files[1], kept, self._others)
            self._next = len(self._expected)

    def _check_open(self) -> None:
        if not self._files:
            raise CorrelationError("this unit was given up")

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
        self._lock = threading.Lock()
        self._files: list[BinaryIO] = []
        self._thread = ThreadPoolExecutor(1, "unit")
        others = _PADS if (folder / _PADS).is_file() else _SEEDS
        try:
            seeds = []
            for name in (_MATRIX, others):
                self._files.append(open(folder / name, "rb"))  # noqa: SIM115
                seeds.append(_header(self._files[-1], spent.unit))
        except OSError as error:
            self.close()
            raise CorrelationError(f"unit {spent.unit.hex()} cannot be read: {error.strerror}") from error
        except CorrelationError:
            self.close()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        matrix, other = self._files
        self._next = [
            _sections(matrix, party, seeds[0]),
            _sections(other, party, bytes(16)) if others == _PADS else _expanded(other, party),
        ]
        self._ahead = [self._thread.submit(next, each, (None, None)) for each in self._next]

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
            self._ahead[which] = self._thread.submit(next, self._next[which], (None, None))
        return correlation

    def close(self) -> None:
        with self._lock:
            self._thread.shutdown(wait=False, cancel_futures=True)
            for file in self._files:
                file.close()
            self._files = []


def _ours(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _header(file: BinaryIO, unit: bytes) -> bytes:
    """The mask seed in a file's header. Raises CorrelationError unless the file is this unit's."""
    magic, found, seed = _HEADER.unpack(section.exactly(file, _HEADER.size))
    if (magic, found) != (_MAGIC, unit):
        raise CorrelationError(f"the files of unit {unit.hex()} belong to another unit")
    return bytes(seed)


def _sections(file: BinaryIO, party: int, seed: bytes) -> Iterator[tuple[Need | None, Any]]:
    while (found := section.read(file, party, seed))[0] is not None:
        yield found


def _expanded(file: BinaryIO, party: int) -> Iterator[tuple[Need | None, Any]]:
    """What a compact unit's seeds grow into, one need at a time."""
    kept, needs = section.read_seeds(file)
    yield from zip(needs, compact.expand(party, kept, needs), strict=True)


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
