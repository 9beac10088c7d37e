"""Every format that a state folder's databases ever had opens after; a crash in between leaves one or the other."""

from __future__ import annotations

import functools
import json
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mpcd.daemon.database import Database, DatabaseDamaged, NewerState, run_script
from mpcd.daemon.errors import NotEnough
from mpcd.daemon.files import CannotWrite
from mpcd.daemon.offline import ledger
from mpcd.daemon.offline.ledger import Ledger, LedgerError, Stock
from mpcd.daemon.sessions import records
from mpcd.daemon.sessions.records import Records

FORMATS = Path(__file__).parent / "formats"  # the schemas as the commits of these names had them, user_version 0
STEPS = (
    "CREATE TABLE a (x INTEGER CHECK (x > 0));\nINSERT INTO a VALUES (1);",
    "ALTER TABLE a ADD COLUMN y TEXT NOT NULL DEFAULT 'old';\nCREATE TRIGGER keep BEFORE DELETE ON a BEGIN\n"
    "    SELECT RAISE(ABORT, 'rows stay');\nEND;\nINSERT INTO a VALUES (2, 'new');",
)
TERMS = {
    "model": "m", "images": 3, "reveal": "scores", "model_commitment": "c", "dataset_commitment": "d",
    "network_digest": "n", "recipe_digest": "r", "ring": "k=17 f=12 l=29", "protocol": 1,
}  # fmt: skip


def schema(path: Path) -> dict[str, object]:
    """Tables by their columns, whatever their order; everything else by its text."""
    found: dict[str, object] = {}
    with closing(sqlite3.connect(path)) as db:
        for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
            found[name] = " ".join(sql.split())
            if kind == "table":
                found[name] = {tuple(row[1:]) for row in db.execute(f"PRAGMA table_info ({name})")}
        found["user_version"] = db.execute("PRAGMA user_version").fetchone()
    return found


def old(path: Path, text: str, *rows: tuple[str, tuple[object, ...]]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(text)
        for sql, values in rows:
            db.execute(sql, values)


def test_a_new_file(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "a.sqlite", STEPS)) as db:
        assert [tuple(row) for row in db.query("SELECT * FROM a")] == [(1, "old"), (2, "new")]
        assert db.format == 2
        with db.transaction() as inside:
            assert inside.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert inside.execute("PRAGMA synchronous").fetchone()[0] == 2
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert [file.name for file in tmp_path.iterdir()] == ["a.sqlite"], "nothing to copy before the first step"


def test_an_earlier_file_is_copied_and_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with closing(Database(path, STEPS[:1])) as db, db.transaction() as inside:
        inside.execute("INSERT INTO a VALUES (7)")
    with closing(Database(path, STEPS)) as db:
        assert [tuple(row) for row in db.query("SELECT * FROM a")] == [(1, "old"), (7, "old"), (2, "new")]
    copy = tmp_path / "a.sqlite.format-1"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(Database(copy, STEPS[:1])) as db:  # what an older mpcd would open again
        assert [tuple(row) for row in db.query("SELECT * FROM a")] == [(1,), (7,)]
    before = copy.stat().st_mtime_ns
    Database(path, STEPS).close()
    assert copy.stat().st_mtime_ns == before, "an upgraded file is not copied again"


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    Database(path, STEPS).close()
    before = path.read_bytes()
    with pytest.raises(NewerState, match=r"a\.sqlite was written by a newer mpcd: its format is 2.* up to 1") as caught:
        Database(path, STEPS[:1])
    assert "upgrade mpcd on this machine" in caught.value.hint
    assert path.read_bytes() == before


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    Database(path, STEPS[:1]).close()
    before = schema(path)
    for bad in ("CREATE TABLE b (x);\nINSERT INTO nowhere VALUES (1);", "CREATE TABLE b (x);\nCREATE TABLE"):
        with pytest.raises((sqlite3.OperationalError, ValueError)):
            Database(path, (*STEPS[:1], bad))
        assert schema(path) == before


@pytest.mark.parametrize("moment", range(4))
def test_kill_in_the_middle_of_a_step(tmp_path: Path, moment: int) -> None:
    """A real kill -9, after each statement of the second step; then the file opens as if nothing had been."""
    path = tmp_path / "a.sqlite"
    Database(path, STEPS[:1]).close()
    before = schema(path)
    code = f"""
import os, signal, sys
from pathlib import Path
from mpcd.daemon.database import Database, run_script
class Counting:
    def __init__(self, db): self.db, self.left = db, {moment}
    def execute(self, sql):
        if self.left == 0: os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return self.db.execute(sql)
def step(db):
    counting = Counting(db)
    run_script(counting, {STEPS[1]!r})
    counting.execute("SELECT 1")
Database(Path(sys.argv[1]), ({STEPS[0]!r}, step))
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert schema(path) == before
    with closing(Database(path, STEPS)) as db:
        assert [tuple(row) for row in db.query("SELECT * FROM a")] == [(1, "old"), (2, "new")]
    assert (tmp_path / "a.sqlite.format-1").is_file()
    assert {file.name for file in tmp_path.iterdir()} <= {"a.sqlite", "a.sqlite.format-1"}


def test_a_copy_that_a_crash_cut_short_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    Database(path, STEPS[:1]).close()
    (tmp_path / ".a.sqlite.format-1.new").write_bytes(b"half")
    Database(path, STEPS).close()
    assert {file.name for file in tmp_path.iterdir()} == {"a.sqlite", "a.sqlite.format-1"}


def test_queries_see_what_is_written_and_wait_for_nobody(tmp_path: Path) -> None:
    """A thread in a transaction sees its own; the others what was before, at once, and what is written afterwards."""
    with closing(Database(tmp_path / "a.sqlite", STEPS)) as db, ThreadPoolExecutor(1) as other:
        count = functools.partial(db.query, "SELECT count(*) FROM a")
        with db.transaction() as inside:
            inside.execute("INSERT INTO a VALUES (3, 'mine')")
            assert count()[0][0] == 3
            assert other.submit(count).result(timeout=10)[0][0] == 2
        assert count()[0][0] == other.submit(count).result(timeout=10)[0][0] == 3
        with pytest.raises(sqlite3.IntegrityError), db.transaction() as inside:
            inside.executemany("INSERT INTO a VALUES (?, 'undone')", [(4,), (-1,)])
        assert count()[0][0] == 3
        with pytest.raises(CannotWrite, match="readonly"):
            db.query("INSERT INTO a VALUES (5, 'by a query')")


def test_errors_are_plain(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "a.sqlite", STEPS, lambda error: LedgerError(f"refused: {error}"))) as db:
        with pytest.raises(LedgerError, match="refused: CHECK"), db.transaction() as inside:
            inside.execute("INSERT INTO a VALUES (-1, '')")
        with pytest.raises(LedgerError, match="rows stay"), db.transaction() as inside:
            inside.execute("DELETE FROM a")
        with db.transaction() as inside:
            inside.execute("PRAGMA max_page_count = 5")
        with pytest.raises(NotEnough, match=r"the disk is full: a\.sqlite"), db.transaction() as inside:
            inside.execute("INSERT INTO a VALUES (9, ?)", ("x" * 100_000,))
        assert len(db.query("SELECT * FROM a")) == 2
    (tmp_path / "b.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(DatabaseDamaged, match=r"b\.sqlite is damaged"):
        Database(tmp_path / "b.sqlite", STEPS)
    with pytest.raises(CannotWrite, match=r"no/c\.sqlite"):
        Database(tmp_path / "no" / "c.sqlite", STEPS)


@contextmanager
def a_disk_that_takes_nothing() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    """Neither while it runs nor at its next start is it a bug of ours."""
    path = tmp_path / "a.sqlite"
    with closing(Database(path, STEPS)) as db:
        with (
            a_disk_that_takes_nothing(),
            pytest.raises(CannotWrite, match=r"a\.sqlite: disk I/O error \(SQLITE_IOERR_") as caught,
            db.transaction() as inside,
        ):
            inside.execute("INSERT INTO a VALUES (3, 'lost')")
        assert (caught.value.exit_status, caught.value.hint != "") == (10, True)
        assert len(db.query("SELECT * FROM a")) == 2
        with db.transaction() as inside:
            inside.execute("INSERT INTO a VALUES (4, 'there is room again')")
    with a_disk_that_takes_nothing(), pytest.raises(CannotWrite, match="SQLITE_IOERR_SHM"):
        Database(path, STEPS)
    with closing(Database(path, STEPS)) as db:
        assert len(db.query("SELECT * FROM a")) == 3
        db._db.execute("PRAGMA query_only = ON")
        with pytest.raises(CannotWrite, match="SQLITE_READONLY"), db.transaction() as inside:
            inside.execute("INSERT INTO a VALUES (5, 'lost')")
    (tmp_path / "a.sqlite-wal").mkdir()
    with pytest.raises(CannotWrite, match="SQLITE_CANTOPEN"):
        Database(path, STEPS)


def test_scripts_run_statement_by_statement() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("BEGIN")
        run_script(db, STEPS[0] + "\n" + STEPS[1])
        assert db.in_transaction
        with pytest.raises(ValueError, match="in the middle of a statement: CREATE TABLE z"):
            run_script(db, "CREATE TABLE z (\n")


# The files of the state folder, in every format that they had.


@pytest.mark.parametrize("commit", ["34c6f4b", "a4fbf3e", "f41de23"])
def test_ledgers_of_old(tmp_path: Path, commit: str) -> None:
    path = tmp_path / "ledger.sqlite"
    insert = (
        "INSERT INTO unit (id, peer, model, network, batch, state, created, changed) "
        "VALUES (?, 'p', 'm', 'n', x'00', 'making', 1, 1)"
    )
    units = [bytes([n]) * 16 for n in range(4)]
    ready = "UPDATE unit SET state = 'ready', bytes = 5 WHERE id <> ?"
    spend = "UPDATE unit SET state = 'spent', session = 's', image = 0 WHERE id = ?"
    old(
        path,
        (FORMATS / f"ledger-{commit}.sql").read_text(),
        *((insert, (unit,)) for unit in units),
        (ready, (units[0],)),
        (spend, (units[1],)),
        ("UPDATE unit SET opened = 1 WHERE id = ?", (units[1],)),
        ("UPDATE unit SET state = 'burnt' WHERE id = ?", (units[2],)),
    )
    with closing(Ledger(path)) as opened:
        assert [opened.state(unit) for unit in units] == ["making", "spent", "burnt", "ready"]
        assert opened.ready_units(Stock("p", "m", "n")) == [units[3]]
        assert opened.reuse_count() == 0
        with pytest.raises(LedgerError):
            opened.spend(units[1], "t", 0)
        with pytest.raises(LedgerError, match="the ledger refuses"):
            opened.begin(Stock("p", "m", "n"), b"", [units[2]])
        opened.spend(units[3], "t", 0).open()
        opened.made(b"batch", 1, 1.0, 1)
    Ledger(tmp_path / "new.sqlite").close()
    assert schema(path) == schema(tmp_path / "new.sqlite")
    assert (tmp_path / "ledger.sqlite.format-0").is_file()


@pytest.mark.parametrize("commit", ["d6edf13", "8720c12", "c9b6895", "f5c2578"])
def test_records_of_old(tmp_path: Path, commit: str) -> None:
    path = tmp_path / "sessions.sqlite"
    id = "ab" * 16
    old(
        path,
        (FORMATS / f"records-{commit}.sql").read_text(),
        (
            "INSERT INTO session (id, role, peer, state, terms, own, created) "
            "VALUES (?, 'data-owner', 'vendor', 'proposed', ?, '{}', 1)",
            (id, json.dumps(TERMS)),
        ),
        ("UPDATE session SET state = 'approved'", ()),
        ("INSERT INTO image VALUES (?, 0, '[1, -2]', 1)", (id,)),
        ("INSERT INTO rate VALUES ('vendor', 'online', 2.0)", ()),
    )
    with closing(Records(path)) as opened:
        assert opened.get(id).state == "approved"
        assert opened.get(id).terms.images == 3
        assert opened.results(id) == {0: [1, -2]}
        opened.learn_rate("vendor", "online/silent", 3.0)
        opened.reveal(id, 0)
        opened.set_told(id, "text")
        assert opened.move(id, "done").finished
    Records(tmp_path / "new.sqlite").close()
    assert schema(path) == schema(tmp_path / "new.sqlite")


def test_no_step_was_changed(tmp_path: Path) -> None:
    """After format 1 of either file, the schema that its commit had: a change needs a step of its own."""
    for steps, text in ((ledger.STEPS, "ledger-f41de23.sql"), (records.STEPS, "records-f5c2578.sql")):
        ours, theirs = tmp_path / f"ours-{text}", tmp_path / f"theirs-{text}"
        Database(ours, steps[:1]).close()
        old(theirs, (FORMATS / text).read_text() + "PRAGMA user_version = 1;")
        assert schema(ours) == schema(theirs)
