"""The audit log in the state folder: appended to, never rewritten.

``audit/`` has the log's segments, ``FIRST-SEQ.jsonl``, one chain through all of them (daemon/audit/chain.py), and
``kept.sqlite``: what the log must hold, so that a log cut off at its end is found: the last entry's hash, and the
references that the peers have or gave (daemon/audit/exchange.py). An entry is on the disk when ``append`` returns.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.audit import chain
from mpcd.daemon.audit.chain import Bad, Entry, Verdict
from mpcd.daemon.database import Database
from mpcd.daemon.errors import MpcdError, NotEnough
from mpcd.daemon.files import CannotWrite

SEGMENT = 16 * 1024 * 1024
CHUNK = 256 * 1024

_FORMAT_1 = """
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL);
CREATE TABLE noted (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE reference (
    session TEXT NOT NULL, event TEXT NOT NULL, peer TEXT NOT NULL,
    seq INTEGER NOT NULL, hash TEXT NOT NULL, peer_seq INTEGER, peer_hash TEXT,
    PRIMARY KEY (session, event)
);
CREATE INDEX reference_missing ON reference (peer) WHERE peer_hash IS NULL;
"""
STEPS = (_FORMAT_1,)

_log = log.get("audit")


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """One of our entries of an event that both parties have, and the peer's entry as far as it told."""

    session: str
    event: str
    peer: str
    seq: int
    hash: str
    peer_seq: int | None
    peer_hash: str | None


class Journal:
    """The one audit log of a state folder. Thread-safe; writing waits for the disk."""

    def __init__(self, folder: Path, segment: int = SEGMENT) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.folder = folder
        self._segment = segment
        self._lock = threading.RLock()
        self._kept = Database(folder / "kept.sqlite", STEPS)
        self._file = -1
        self._size = 0
        self._last: tuple[int, str] = (0, chain.GENESIS)
        self._whole = False
        self.mend()

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file, self._whole = -1, False
            self._kept.close()

    @property
    def head(self) -> tuple[int, str]:
        """``seq`` and hash of the last entry; (0, zeros) for none."""
        with self._lock:
            return self._last

    def append(self, event: str, fields: Mapping[str, Any]) -> tuple[int, str]:
        """Its ``seq`` and hash; on the disk when this returns. Raises CannotWrite, NotEnough: then nothing counts.

        An entry of a shared event has ``session`` and ``who.peer``, and waits for the peer's reference from now on.
        """
        with self._lock:
            if not self._whole:
                self.mend()
            return self._append(event, fields)

    # What is noted beside the log

    def noted(self, name: str) -> str:
        rows = self._kept.query("SELECT value FROM noted WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else ""

    def note(self, name: str, value: str) -> None:
        with self._kept.transaction() as db:
            db.execute("INSERT OR REPLACE INTO noted VALUES (?, ?)", (name, value))

    def reference(self, session: str, event: str) -> Reference | None:
        found = self._references("WHERE session = ? AND event = ?", session, event)
        return found[0] if found else None

    def unmatched(self, peer: str, most: int) -> list[Reference]:
        """The newest of our entries whose counterpart this peer has not told."""
        return self._references("WHERE peer = ? AND peer_hash IS NULL ORDER BY seq DESC LIMIT ?", peer, most)

    def matched(self, reference: Reference, peer_seq: int, peer_hash: str, who: Mapping[str, Any]) -> None:
        """The peer told its entry: that goes into our log. The first answer counts."""
        with self._lock:
            known = self.reference(reference.session, reference.event)
            if known is None or known.peer_hash is not None:
                return
            self.append(
                "peer.reference",
                {
                    "who": who,
                    "session": known.session,
                    "of": known.event,
                    "entry": known.seq,
                    "entry_hash": known.hash,
                    "peer_seq": peer_seq,
                    "peer_hash": peer_hash,
                },
            )
            with self._kept.transaction() as db:
                db.execute(
                    "UPDATE reference SET peer_seq = ?, peer_hash = ? WHERE session = ? AND event = ?",
                    (peer_seq, peer_hash, known.session, known.event),
                )

    def count_references(self) -> tuple[int, int]:
        """Of our entries that the peer has, too: how many it has told its own of, and how many not yet."""
        (row,) = self._kept.query("SELECT count(peer_hash), count(*) FROM reference")
        return int(row[0]), int(row[1]) - int(row[0])

    # Reading

    def verify(self) -> tuple[Verdict, str]:
        """And in which segment and line of it the first bad line is; '' for none."""
        with self._lock:
            self._require_open()
            kept = dict(self._kept.query("SELECT seq, hash FROM reference"))
            kept |= dict(self._kept.query("SELECT seq, hash FROM head"))
            size = self.size()
        verdict = chain.verify(self.read(0, size), kept)
        return verdict, where(segments(self.folder), verdict.bad) if verdict.bad else ""

    def entries(self) -> Iterator[Entry]:
        """Those that are whole, oldest first."""
        for line, ended in chain.lines_of(self.read(0, self.size())):
            if ended and (entry := chain.opened(line)) is not None:
                yield entry

    def size(self) -> int:
        return sum(file.stat().st_size for file in segments(self.folder))

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes of the log as one, all segments after each other."""
        at = 0
        for file in segments(self.folder):
            size = file.stat().st_size
            if at < end and start < at + size:
                with file.open("rb") as opened:
                    opened.seek(max(0, start - at))
                    place = max(start, at)
                    while place < end and (data := opened.read(min(CHUNK, end - place))):
                        yield data
                        place += len(data)
            at += size

    # Writing

    def _append(self, event: str, fields: Mapping[str, Any], before: bytes = b"") -> tuple[int, str]:
        seq, previous = self._last[0] + 1, self._last[1]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line, digest = chain.seal({"seq": seq, "time": now, "event": event, **fields, "prev": previous})
        if len(line) > chain.MAX_LINE:
            raise ValueError(f"an audit entry of {len(line)} bytes")
        data = before + line + b"\n"
        try:
            full = self._size + len(data) > self._segment and event != chain.REPAIRED
            if self._file < 0 or (self._size and full):
                self._begin_segment(seq)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        self._write(data)
        self._last = seq, digest
        with self._kept.transaction() as db:
            db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", self._last)
            if event in chain.SHARED:
                db.execute(
                    "INSERT OR IGNORE INTO reference (session, event, peer, seq, hash) VALUES (?, ?, ?, ?, ?)",
                    (fields["session"], event, fields["who"]["peer"], seq, digest),
                )
        return self._last

    def _write(self, data: bytes) -> None:
        """To the disk; what fails half way is mended before the next entry."""
        self._whole = False
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        self._size += len(data)
        self._whole = True

    def _begin_segment(self, seq: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self.folder / f"{seq:012d}.jsonl", flags, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = file, os.fstat(file).st_size
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def mend(self) -> None:
        """Find the log's end. What a crash left torn there is said to be torn; entries that are gone are said to be."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file, self._size, self._last = -1, 0, (0, chain.GENESIS)
            torn, ended = b"", True
            files = segments(self.folder)
            for file in reversed(files):
                last, rest, ended_here = _tail(file)
                if file == files[-1]:
                    torn, ended = rest, ended_here
                if last is not None:
                    self._last = last.seq, last.hash
                    break
            try:
                if files:
                    self._file = os.open(files[-1], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                    self._size = os.fstat(self._file).st_size
            except OSError as error:
                raise CannotWrite.of(files[-1], error) from error
            self._whole = True
            kept = self._kept.query("SELECT seq, hash FROM head")
            if torn:
                _log.warning("the audit log's last line was torn by a crash", size=len(torn))
                lines = torn.removesuffix(b"\n").split(b"\n")
                self._append(chain.REPAIRED, chain.fragment(lines), before=b"" if ended else b"\n")
            elif not ended:
                self._write(b"\n")  # all of an entry but its end
            if kept and not self._holds(*kept[0]):
                _log.error("the audit log is not as it was left", entry=kept[0][0])
                self._append(chain.DAMAGED, {"kept_seq": kept[0][0], "kept_hash": kept[0][1]})

    def _holds(self, seq: int, digest: str) -> bool:
        """Whether the entry that was the last one when this was kept is still there. The log may have grown since."""
        for file in reversed(segments(self.folder)):
            if int(file.stem) <= seq:
                with file.open("rb") as opened:
                    for line, ended in chain.lines_of(iter(lambda: opened.read(CHUNK), b"")):
                        if ended and (entry := chain.opened(line)) is not None and entry.seq == seq:
                            return entry.hash == digest
                return False
        return False

    def _references(self, where: str, *values: object) -> list[Reference]:
        rows = self._kept.query(
            "SELECT session, event, peer, seq, hash, peer_seq, peer_hash FROM reference " + where, values
        )
        return [Reference(*row) for row in rows]

    def _require_open(self) -> None:
        if not self._whole:
            self.mend()


def segments(folder: Path) -> list[Path]:
    """The log's files in their order."""
    return sorted(file for file in folder.glob("*.jsonl") if file.stem.isdigit())


def where(files: list[Path], bad: Bad) -> str:
    """``FILE line N`` of a line of the whole log."""
    before = 0
    for number, file in enumerate(files, 1):
        with file.open("rb") as opened:
            lines = sum(1 for _ in chain.lines_of(iter(lambda: opened.read(CHUNK), b"")))
        if bad.line <= before + lines or number == len(files):
            return f"{file.name} line {bad.line - before}"
        before += lines
    return ""


def _cannot_write(folder: Path, error: OSError) -> MpcdError:
    if error.errno == errno.ENOSPC:
        return NotEnough(
            "the disk is full: the audit log cannot be written",
            "Free some space in the state folder.",
            peer_text="the disk is full",
        )
    return CannotWrite.of(folder, error)


def _tail(file: Path) -> tuple[Entry | None, bytes, bool]:
    """The last whole entry of a segment, the bytes after it, and whether these end as a line does."""
    last: Entry | None = None
    torn: list[bytes] = []
    ended = True
    with file.open("rb") as opened:
        for line, has_end in chain.lines_of(iter(lambda: opened.read(CHUNK), b"")):
            entry, ended = chain.opened(line), has_end
            if entry is None:
                torn.append(line)
            else:
                last, torn = entry, []
    return last, b"\n".join(torn) + (b"\n" if torn and ended else b""), ended
