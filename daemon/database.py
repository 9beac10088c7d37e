"""A private SQLite file that knows its own format, and upgrades itself.

``PRAGMA user_version`` counts the migration steps that the file has been through. Opening it runs those it lacks, each
in one transaction together with its count, so that a crash leaves the file before or after a step, never inside one.
Before the first step on a file that holds something, a copy is put beside it (``NAME.format-N``): the way back, should
an older mpcd have to run again. A file with more steps than this mpcd knows is refused.

``synchronous=FULL``: when a transaction returns, it is on the disk. Thread-safe; a query does not wait for others'
transactions, and so not for the disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mpcd.daemon.errors import BadInput, MpcdError, NotEnough
from mpcd.daemon.files import CannotWrite

Step = str | Callable[[sqlite3.Connection], None]
"""SQL statements, or a function that executes some. Add steps at the end, change none: files out there count them."""


class NewerState(MpcdError):
    """The state folder was written by a newer mpcd."""

    code = "newer_state"
    exit_status = 9

    @classmethod
    def of(cls, what: Path, found: int, known: int) -> NewerState:
        return cls(
            f"{what} was written by a newer mpcd: its format is {found}, this mpcd reads formats up to {known}",
            "upgrade mpcd on this machine, or put back the state folder's copy from before the upgrade"
            " (docs/install.md, Going back)",
        )


class DatabaseDamaged(BadInput):
    """A database of the state folder cannot be read."""

    code = "damaged"


class Database:
    """``refusal`` makes the error out of what a CHECK or trigger says; without it sqlite3.IntegrityError comes out."""

    def __init__(
        self, path: Path, steps: Sequence[Step], refusal: Callable[[sqlite3.IntegrityError], Exception] | None = None
    ) -> None:
        self.path = path
        self._refusal = refusal
        self._lock, self._reading = threading.RLock(), threading.Lock()
        self._writer: int | None = None  # the thread whose transaction is open
        self._db, self._reader = _connect(path), _connect(path)
        try:
            os.chmod(path, 0o600)
            with self._naming_errors():
                self._db.execute("PRAGMA synchronous = FULL")
                self._migrate(steps)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._reader.execute("PRAGMA query_only = ON")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._reading:
            self._reader.close()
        with self._lock:
            self._db.close()

    @property
    def format(self) -> int:
        """How many steps the file has been through."""
        with self._lock:
            return _format(self._db)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing. Raises NotEnough, CannotWrite for a disk that takes nothing, what ``refusal`` makes."""
        with self._lock, self._naming_errors():
            self._db.execute("BEGIN IMMEDIATE")
            self._writer = threading.get_ident()
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._writer = None

    def query(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows, as of the last transaction, or of this thread's own if it is in one.

        Each is a tuple, and knows its columns' names. Raises CannotWrite: reading writes beside the file, too.
        """
        if self._writer == threading.get_ident():
            return self._db.execute(sql, values).fetchall()
        with self._reading, _naming_disk_errors(self.path):
            return self._reader.execute(sql, values).fetchall()

    def _migrate(self, steps: Sequence[Step]) -> None:
        before = _format(self._db)
        if before > len(steps):
            raise NewerState.of(self.path, before, len(steps))
        if before < len(steps) and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._copy(self.path.with_name(f"{self.path.name}.format-{before}"))
        for number, step in enumerate(steps[before:], before + 1):
            with self.transaction() as db:
                if callable(step):
                    step(db)
                else:
                    run_script(db, step)
                db.execute(f"PRAGMA user_version = {number}")

    def _copy(self, to: Path) -> None:
        scratch = to.with_name(f".{to.name}.new")
        scratch.unlink(missing_ok=True)
        with closing(_connect(scratch)) as copy:
            self._db.backup(copy)
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        scratch.replace(to)

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            with _naming_disk_errors(self.path):
                yield
        except sqlite3.IntegrityError as error:
            if self._refusal is None:
                raise
            raise self._refusal(error) from error
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise DatabaseDamaged(
                    f"{self.path} is damaged: {error}", "restore the whole state folder from a backup"
                ) from error
            raise


@contextmanager
def _naming_disk_errors(path: Path) -> Iterator[None]:
    """A full disk has many names: which one depends on the file that had to grow, and on who set the limit."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            raise NotEnough(
                f"the disk is full: {path.name} cannot be written",
                "Free some space in the state folder.",
                peer_text="the disk is full",
            ) from error
        if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise CannotWrite(
                f"cannot read or write {path}: {error} ({error.sqlite_errorname})",
                "check the disk's space and the folder's owner",
            ) from error
        raise


def run_script(db: sqlite3.Connection, script: str) -> None:
    """As executescript, but inside the transaction that is open."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    if statement.strip():
        raise ValueError(f"an SQL script ends in the middle of a statement: {statement.strip()[:60]}")


def _format(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _connect(path: Path) -> sqlite3.Connection:
    """This user's only from the first byte on, whatever the umask."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise CannotWrite.of(path, error) from error
    with _naming_disk_errors(path):
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
    db.row_factory = sqlite3.Row
    return db
