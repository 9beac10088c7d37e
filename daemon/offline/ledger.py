"""Which units of correlated randomness exist, and that none is used twice.

A unit is a one-time pad for one image: reuse is the worst bug this program can have. So the ledger is SQLite with
``synchronous=FULL``: when ``spend`` returns, the mark is on the disk. What may happen to a unit is in the schema below
as CHECKs and triggers, not only in Python: no program that opens this file can take a unit out of ``spent`` or
``burnt``, delete it, or insert it again.

    making --ready()--> ready --spend()--> spent (then opened once)
       \\--burn()-------/ \\--burn()--> burnt

Thread-safe; every method that writes waits for the disk, so the event loop calls them through a thread.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mpcd.daemon.database import Database
from mpcd.daemon.errors import InternalError

# REPLACE deletes the row in its way without firing its delete triggers (unless a connection sets recursive_triggers):
# hence the triggers that look for such a row before.
# IF NOT EXISTS, as there are files from before formats were counted.
_FORMAT_1 = """
CREATE TABLE IF NOT EXISTS unit (
    id       BLOB PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    peer     TEXT NOT NULL,
    model    TEXT NOT NULL,
    network  TEXT NOT NULL,
    batch    BLOB NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('making', 'ready', 'spent', 'burnt')),
    session  TEXT,
    image    INTEGER,
    opened   INTEGER NOT NULL DEFAULT 0 CHECK (opened IN (0, 1)),
    bytes    INTEGER NOT NULL DEFAULT 0,
    reason   TEXT NOT NULL DEFAULT '',
    created  REAL NOT NULL,
    changed  REAL NOT NULL,
    CHECK ((state = 'spent') = (session IS NOT NULL)),
    CHECK ((session IS NULL) = (image IS NULL)),
    CHECK (opened = 0 OR state = 'spent')
);
CREATE INDEX IF NOT EXISTS unit_by_state ON unit (state, peer, model);

CREATE TABLE IF NOT EXISTS batch (
    id       BLOB PRIMARY KEY,
    units    INTEGER NOT NULL CHECK (units > 0),
    seconds  REAL NOT NULL,
    moved    INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS step (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    unit     BLOB NOT NULL,
    step     TEXT NOT NULL,
    at       REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS step_by_unit ON step (unit);

CREATE TRIGGER IF NOT EXISTS unit_begins BEFORE INSERT ON unit BEGIN
    SELECT RAISE(ABORT, 'a unit begins in the state making') WHERE NEW.state <> 'making';
    SELECT RAISE(ABORT, 'a unit of this id was there before')
        WHERE EXISTS (SELECT 1 FROM step WHERE unit = NEW.id);
END;
CREATE TRIGGER IF NOT EXISTS unit_replaces_none BEFORE INSERT ON unit BEGIN
    SELECT RAISE(ABORT, 'a unit takes no other''s place')
        WHERE EXISTS (SELECT 1 FROM unit WHERE rowid = NEW.rowid OR id = NEW.id);
END;
CREATE TRIGGER IF NOT EXISTS unit_keeps_its_place BEFORE UPDATE ON unit WHEN NEW.rowid <> OLD.rowid BEGIN
    SELECT RAISE(ABORT, 'a unit takes no other''s place');
END;
CREATE TRIGGER IF NOT EXISTS unit_begun AFTER INSERT ON unit BEGIN
    INSERT INTO step (unit, step, at) VALUES (NEW.id, NEW.state, NEW.changed);
END;
CREATE TRIGGER IF NOT EXISTS unit_stays BEFORE DELETE ON unit BEGIN
    SELECT RAISE(ABORT, 'the ledger forgets no unit');
END;
CREATE TRIGGER IF NOT EXISTS unit_is_what_it_is
BEFORE UPDATE OF id, peer, model, network, batch, created ON unit BEGIN
    SELECT RAISE(ABORT, 'a unit stays what it is');
END;
CREATE TRIGGER IF NOT EXISTS unit_moves BEFORE UPDATE OF state ON unit BEGIN
    SELECT RAISE(ABORT, 'no such way from this state')
        WHERE (OLD.state || '>' || NEW.state) NOT IN
            ('making>ready', 'making>burnt', 'ready>spent', 'ready>burnt');
END;
CREATE TRIGGER IF NOT EXISTS unit_moved AFTER UPDATE OF state ON unit BEGIN
    INSERT INTO step (unit, step, at) VALUES (NEW.id, NEW.state, NEW.changed);
END;
CREATE TRIGGER IF NOT EXISTS unit_use_is_final BEFORE UPDATE OF session, image ON unit BEGIN
    SELECT RAISE(ABORT, 'a use is written once') WHERE OLD.state <> 'ready';
END;
CREATE TRIGGER IF NOT EXISTS unit_opens_once BEFORE UPDATE OF opened ON unit BEGIN
    SELECT RAISE(ABORT, 'a spent unit is opened once')
        WHERE OLD.state <> 'spent' OR OLD.opened <> 0 OR NEW.opened <> 1;
END;
CREATE TRIGGER IF NOT EXISTS unit_opened AFTER UPDATE OF opened ON unit BEGIN
    INSERT INTO step (unit, step, at) VALUES (NEW.id, 'opened', NEW.changed);
END;
CREATE TRIGGER IF NOT EXISTS step_replaces_none BEFORE INSERT ON step BEGIN
    SELECT RAISE(ABORT, 'history stays') WHERE EXISTS (SELECT 1 FROM step WHERE number = NEW.number);
END;
CREATE TRIGGER IF NOT EXISTS step_stays BEFORE DELETE ON step BEGIN
    SELECT RAISE(ABORT, 'history stays');
END;
CREATE TRIGGER IF NOT EXISTS step_is_fixed BEFORE UPDATE ON step BEGIN
    SELECT RAISE(ABORT, 'history stays');
END;
"""

# How many units there are of each kind, kept as units come and move: counting them takes longer every year.
_FORMAT_2 = """
CREATE TABLE stock (
    peer     TEXT NOT NULL,
    model    TEXT NOT NULL,
    network  TEXT NOT NULL,
    state    TEXT NOT NULL,
    units    INTEGER NOT NULL CHECK (units >= 0),
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (peer, model, network, state)
) WITHOUT ROWID;
INSERT INTO stock SELECT peer, model, network, state, count(*), sum(bytes) FROM unit GROUP BY 1, 2, 3, 4;
CREATE TRIGGER unit_counted AFTER INSERT ON unit BEGIN
    INSERT INTO stock VALUES (NEW.peer, NEW.model, NEW.network, NEW.state, 1, NEW.bytes)
        ON CONFLICT DO UPDATE SET units = units + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER unit_counted_anew AFTER UPDATE OF state, bytes ON unit BEGIN
    UPDATE stock SET units = units - 1, bytes = bytes - OLD.bytes
        WHERE peer = OLD.peer AND model = OLD.model AND network = OLD.network AND state = OLD.state;
    INSERT INTO stock VALUES (NEW.peer, NEW.model, NEW.network, NEW.state, 1, NEW.bytes)
        ON CONFLICT DO UPDATE SET units = units + 1, bytes = bytes + excluded.bytes;
END;
CREATE INDEX unit_by_session ON unit (session) WHERE session IS NOT NULL;
"""

STEPS = (_FORMAT_1, _FORMAT_2)  # see daemon/database.py: add at the end, change none

# Of units ever spent or opened twice, opened unspent, or both spent and burnt. ``{}``: of which units.
REUSED = """
SELECT count(*) FROM (
    SELECT unit FROM step {} GROUP BY unit HAVING
        sum(step = 'spent') > 1 OR sum(step = 'opened') > 1
        OR (sum(step = 'opened') = 1 AND sum(step = 'spent') = 0)
        OR (sum(step = 'spent') > 0 AND sum(step = 'burnt') > 0)
)
"""
_SINCE = "WHERE unit IN (SELECT unit FROM step WHERE number > ?)"


class LedgerError(InternalError):
    """A unit of correlated randomness was about to be used in a way that the ledger does not allow."""

    code = "ledger"


@dataclasses.dataclass(frozen=True, slots=True)
class Stock:
    """What units are for: a peer (its id), a model's commitment, a network's digest."""

    peer: str
    model: str
    network: str


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """Row of a spent unit."""

    unit: bytes
    session: str
    image: int


_KEY = object()


class Spent:
    """Proof that the ledger has marked a unit spent for this use. Opens the unit's files, once."""

    __slots__ = ("_ledger", "image", "session", "unit")

    def __init__(self, ledger: Ledger, unit: bytes, session: str, image: int, key: object) -> None:
        if key is not _KEY:
            raise LedgerError("only the ledger says that a unit is spent")
        self._ledger, self.unit, self.session, self.image = ledger, unit, session, image

    def open(self) -> None:
        """Raises LedgerError the second time, also in another process and after a restart."""
        self._ledger._open(self)


class Ledger:
    """The one ledger of a state folder."""

    def __init__(self, path: Path, told: Callable[[str, Stock, int], None] | None = None) -> None:
        """``told`` hears how many units of a stock were ``made`` or ``burnt``, once that is written."""
        self._told = told
        self._db = Database(path, STEPS, lambda error: LedgerError(f"the ledger refuses: {error}"))
        self._counting = threading.Lock()
        self._reuse = (0, 0)  # the newest step that reuse_count has seen, and its answer

    def close(self) -> None:
        self._db.close()

    def begin(self, stock: Stock, batch: bytes, units: Sequence[bytes]) -> None:
        """Note units whose making starts now. Raises LedgerError when one of the ids was there before."""
        now = time.time()
        with self._db.transaction() as db:
            db.executemany(
                "INSERT INTO unit (id, peer, model, network, batch, state, created, changed) "
                "VALUES (?, ?, ?, ?, ?, 'making', ?, ?)",
                [(u, stock.peer, stock.model, stock.network, batch, now, now) for u in units],
            )

    def ready(self, units: Iterable[bytes], size: int = 0) -> None:
        """Their files are complete and on the disk. All of them, or LedgerError and none."""
        units = list(units)
        with self._db.transaction() as db:
            for unit in units:
                self._move(
                    db, unit, "making", "UPDATE unit SET state = 'ready', bytes = ?, changed = ?", size, time.time()
                )
        self._tell("made", units)

    def made(self, batch: bytes, units: int, seconds: float, moved: int) -> None:
        """What making a batch took: seconds, and bytes over the link."""
        with self._db.transaction() as db:
            db.execute("INSERT OR REPLACE INTO batch VALUES (?, ?, ?, ?)", (batch, units, seconds, moved))

    def cost(self, session: str) -> tuple[float, int]:
        """Seconds and bytes that the making of this session's spent units took, whenever that was."""
        (row,) = self._db.query(
            "SELECT total(b.seconds / b.units), total(b.moved * 1.0 / b.units) "
            "FROM unit JOIN batch AS b ON b.id = unit.batch WHERE unit.session = ?",
            (session,),
        )
        return float(row[0]), round(row[1])

    def spend(self, unit: bytes, session: str, image: int) -> Spent:
        """Mark a ready unit spent for one image of one session; on the disk when this returns."""
        with self._db.transaction() as db:
            self._move(
                db,
                unit,
                "ready",
                "UPDATE unit SET state = 'spent', session = ?, image = ?, changed = ?",
                session,
                image,
                time.time(),
            )
        return Spent(self, unit, session, image, _KEY)

    def burn(self, units: Iterable[bytes], reason: str) -> list[bytes]:
        """Give up units that are making or ready; those that are spent or burnt stay as they are."""
        burnt = []
        with self._db.transaction() as db:
            for unit in units:
                cursor = db.execute(
                    "UPDATE unit SET state = 'burnt', reason = ?, changed = ? "
                    "WHERE id = ? AND state IN ('making', 'ready')",
                    (reason[:500], time.time(), unit),
                )
                if cursor.rowcount:
                    burnt.append(unit)
        self._tell("burnt", burnt)
        return burnt

    def _tell(self, what: str, units: list[bytes]) -> None:
        if self._told is None:
            return
        query = "SELECT peer, model, network FROM unit WHERE id = ?"
        for stock, count in Counter(Stock(*self._db.query(query, (unit,))[0]) for unit in units).items():
            self._told(what, stock, count)

    def burn_unfinished(self) -> list[bytes]:
        """At start: whatever was in the making when the daemon ended is given up."""
        return self.burn(self._ids("state = 'making'"), "unfinished when the daemon ended")

    def state(self, unit: bytes) -> str | None:
        rows = self._db.query("SELECT state FROM unit WHERE id = ?", (unit,))
        return str(rows[0][0]) if rows else None

    def ready_units(self, stock: Stock) -> list[bytes]:
        """Oldest first."""
        where = "state = 'ready' AND peer = ? AND model = ? AND network = ?"
        return self._ids(where, stock.peer, stock.model, stock.network)

    def units_in_making(self, stock: Stock) -> list[bytes]:
        """Oldest first."""
        where = "state = 'making' AND peer = ? AND model = ? AND network = ?"
        return self._ids(where, stock.peer, stock.model, stock.network)

    def all_ready(self) -> list[bytes]:
        return self._ids("state = 'ready'")

    def counts(self) -> dict[Stock, dict[str, int]]:
        """Units per state, and ``bytes`` of the ready ones, for each stock that was ever made."""
        rows = self._db.query("SELECT peer, model, network, state, units, bytes FROM stock")
        found: dict[Stock, dict[str, int]] = {}
        for peer, model, network, state, count, size in rows:
            entry = found.setdefault(
                Stock(peer, model, network), {"making": 0, "ready": 0, "spent": 0, "burnt": 0, "bytes": 0}
            )
            entry[state] = count
            if state == "ready":
                entry["bytes"] = size
        return found

    def ready_counts(self) -> dict[Stock, int]:
        """Ready units of each stock that has some."""
        rows = self._db.query("SELECT peer, model, network, units FROM stock WHERE state = 'ready' AND units > 0")
        return {Stock(peer, model, network): count for peer, model, network, count in rows}

    def uses(self) -> list[Use]:
        """Every unit ever spent: what both parties' ledgers must agree on."""
        rows = self._db.query("SELECT id, session, image FROM unit WHERE state = 'spent' ORDER BY changed")
        return [Use(bytes(unit), session, image) for unit, session, image in rows]

    def reuse_count(self) -> int:
        """Units that were ever spent or opened twice, opened unspent, or both spent and burnt: 0, from the history.

        The history only grows: of units that were found right, those are looked at again that went on since.
        """
        with self._counting:
            newest = int(self._db.query("SELECT coalesce(max(number), 0) FROM step")[0][0])
            seen, count = self._reuse
            if newest != seen or count:
                rows = self._db.query(REUSED.format("")) if count else self._db.query(REUSED.format(_SINCE), (seen,))
                self._reuse = newest, int(rows[0][0])
            return self._reuse[1]

    def _open(self, spent: Spent) -> None:
        with self._db.transaction() as db:
            cursor = db.execute(
                "UPDATE unit SET opened = 1, changed = ? WHERE id = ? AND session = ? AND image = ? AND opened = 0",
                (time.time(), spent.unit, spent.session, spent.image),
            )
            if cursor.rowcount != 1:
                raise LedgerError(f"unit {spent.unit.hex()} was opened before")

    def _move(self, db: sqlite3.Connection, unit: bytes, state: str, update: str, *values: object) -> None:
        cursor = db.execute(f"{update} WHERE id = ? AND state = ?", (*values, unit, state))
        if cursor.rowcount != 1:
            raise LedgerError(f"unit {unit.hex()} is {self.state(unit) or 'unknown'}, not {state}")

    def _ids(self, where: str, *values: object) -> list[bytes]:
        rows = self._db.query(f"SELECT id FROM unit WHERE {where} ORDER BY created, id", values)
        return [bytes(row[0]) for row in rows]
