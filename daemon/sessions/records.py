"""What this daemon knows about sessions, kept through crashes: one SQLite file.

A session's state moves along the arrows only (a trigger sees to it); an image's result is written once.

    proposed -> approved -> offline <-> online -> done
    proposed -> denied                  any but the final -> failed | cancelled

Where the two sides came to different ends before they heard of each other, both take the one that ``RANK`` puts higher.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mpcd.daemon.database import Database, run_script
from mpcd.daemon.errors import Conflict, NotFound, Refused
from mpcd.daemon.sessions.binding import Binding
from mpcd.daemon.sessions.policy import Asked
from mpcd.daemon.sessions.terms import Terms

DATA_OWNER_ROLE = "data-owner"
MODEL_OWNER_ROLE = "model-owner"
FINAL = ("done", "denied", "failed", "cancelled")
RUNNING = ("approved", "offline", "online")
OPEN = ("proposed", *RUNNING)
RANK = {"failed": 1, "denied": 2, "cancelled": 3, "done": 4}
# An image's scores are revealed once more when the data owner crashed before it wrote them down. The model owner cannot
# know that it is the same image: each counts as a query beyond the agreed ones.
MOST_AGAIN = 3  # of one image
MOST_REPEATS = 8  # of a session, and one more for every ten images

# IF NOT EXISTS, as there are files from before formats were counted.
_FORMAT_1 = """
CREATE TABLE IF NOT EXISTS session (
    id         TEXT PRIMARY KEY CHECK (length(id) = 32),
    role       TEXT NOT NULL CHECK (role IN ('data-owner', 'model-owner')),
    peer       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN
                   ('proposed', 'approved', 'offline', 'online', 'done', 'denied', 'failed', 'cancelled')),
    reason     TEXT NOT NULL DEFAULT '',
    terms      TEXT NOT NULL,
    own        TEXT NOT NULL,
    approved_by TEXT NOT NULL DEFAULT '',
    peer_software TEXT NOT NULL DEFAULT '',
    attempts   INTEGER NOT NULL DEFAULT 0,
    created    REAL NOT NULL,
    approved   REAL,
    started    REAL,
    finished   REAL,
    offline_seconds REAL NOT NULL DEFAULT 0,
    offline_bytes   INTEGER NOT NULL DEFAULT 0,
    online_seconds  REAL NOT NULL DEFAULT 0,
    online_bytes    INTEGER NOT NULL DEFAULT 0
);
CREATE TRIGGER IF NOT EXISTS session_moves BEFORE UPDATE OF state ON session BEGIN
    SELECT RAISE(ABORT, 'no such way from this state') WHERE OLD.state <> NEW.state AND (
        OLD.state IN ('done', 'denied', 'failed', 'cancelled')
        OR NEW.state = 'proposed'
        OR (NEW.state IN ('approved', 'denied') AND OLD.state <> 'proposed')
        OR (NEW.state IN ('offline', 'online', 'done') AND OLD.state = 'proposed')
    );
END;
CREATE TRIGGER IF NOT EXISTS terms_stay BEFORE UPDATE OF id, role, peer, terms ON session BEGIN
    SELECT RAISE(ABORT, 'what was agreed stays');
END;
CREATE TABLE IF NOT EXISTS image (
    session    TEXT NOT NULL REFERENCES session (id),
    number     INTEGER NOT NULL,
    logits     BLOB,
    at         REAL NOT NULL,
    PRIMARY KEY (session, number)
);
CREATE TRIGGER IF NOT EXISTS image_stays BEFORE UPDATE ON image BEGIN
    SELECT RAISE(ABORT, 'a result is written once');
END;
CREATE TABLE IF NOT EXISTS reveal (
    session    TEXT NOT NULL REFERENCES session (id),
    number     INTEGER NOT NULL,
    at         REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS reveal_by_session ON reveal (session, number);
CREATE TRIGGER IF NOT EXISTS reveal_stays BEFORE UPDATE ON reveal BEGIN
    SELECT RAISE(ABORT, 'what was revealed stays');
END;
CREATE TRIGGER IF NOT EXISTS reveal_is_kept BEFORE DELETE ON reveal BEGIN
    SELECT RAISE(ABORT, 'what was revealed stays');
END;
CREATE TABLE IF NOT EXISTS told (
    session    TEXT PRIMARY KEY REFERENCES session (id),
    text       TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS rate (
    peer       TEXT NOT NULL,
    phase      TEXT NOT NULL,
    per_second REAL NOT NULL,
    PRIMARY KEY (peer, phase)
);
"""


def _format_1(db: sqlite3.Connection) -> None:
    """Also from the earliest files, which lack the time of approval and bind rates to two phases."""
    columns = {row["name"] for row in db.execute("PRAGMA table_info (session)")}
    if columns and "approved" not in columns:
        db.execute("ALTER TABLE session ADD COLUMN approved REAL")
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'rate' AND sql LIKE '%CHECK%'").fetchone():
        db.execute("DROP TABLE rate")  # speeds are measured anew
    run_script(db, _FORMAT_1)


_FORMAT_2 = """
ALTER TABLE session ADD COLUMN peer_id TEXT NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN bound TEXT NOT NULL DEFAULT '';
CREATE INDEX session_open ON session (state) WHERE state IN ('proposed', 'approved', 'offline', 'online');
CREATE TRIGGER bound_stays BEFORE UPDATE OF bound, peer_id ON session
WHEN (OLD.bound NOT IN ('', NEW.bound) AND OLD.state <> 'proposed') OR NEW.peer_id <> OLD.peer_id BEGIN
    SELECT RAISE(ABORT, 'what was agreed stays');
END;
DROP TRIGGER session_moves;
CREATE TRIGGER session_moves BEFORE UPDATE OF state ON session BEGIN
    SELECT RAISE(ABORT, 'no such way from this state') WHERE OLD.state <> NEW.state AND (
        NEW.state = 'proposed'
        OR (NEW.state IN ('approved', 'denied') AND OLD.state NOT IN ('proposed', 'failed'))
        OR (NEW.state = 'approved' AND OLD.state = 'failed')
        OR (NEW.state IN ('offline', 'online', 'done') AND OLD.state = 'proposed')
        OR (NEW.state IN ('offline', 'online', 'failed') AND OLD.state IN ('done', 'denied', 'failed', 'cancelled'))
        OR (NEW.state = 'cancelled' AND OLD.state = 'done')
    );
END;
"""


def _format_2(db: sqlite3.Connection) -> None:
    run_script(db, _FORMAT_2)


STEPS = (_format_1, _format_2)  # see daemon/database.py: add at the end, change none


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """One row. ``own``: what is nobody else's business (the data set's name). ``bound``: by the approval."""

    id: str
    role: str
    peer: str
    state: str
    reason: str
    terms: Terms
    own: dict[str, Any]
    peer_id: str
    bound: Binding | None
    approved_by: str
    peer_software: str
    attempts: int
    created: float
    approved: float | None
    started: float | None
    finished: float | None
    offline_seconds: float
    offline_bytes: int
    online_seconds: float
    online_bytes: int
    done: int

    @property
    def over(self) -> bool:
        return self.state in FINAL


class Witness(Protocol):
    """Is told of what is about to be written, and keeps it from being written by raising (daemon/audit)."""

    def proposed(self, session: Session) -> None: ...
    def moved(self, before: Session, after: Session, told: str, revealed: int) -> None: ...
    def revealed(self, session: Session, image: int, count: int) -> None: ...


class Records:
    """Thread-safe. Writing waits for the disk."""

    def __init__(self, path: Path, witness: Witness | None = None) -> None:
        self._db = Database(path, STEPS)
        self._witness = witness

    def close(self) -> None:
        self._db.close()

    def add(
        self, id: str, role: str, peer: str, terms: Terms, own: dict[str, Any], software: str, peer_id: str = ""
    ) -> Session:
        """``peer_id``: of the peer as it is known now, whatever bears its name later."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO session (id, role, peer, state, terms, own, peer_software, created, peer_id) "
                "VALUES (?, ?, ?, 'proposed', ?, ?, ?, ?, ?)",
                (id, role, peer, json.dumps(terms.as_dict()), json.dumps(own), software, time.time(), peer_id),
            )
            session = self.get(id)
            if self._witness is not None:
                self._witness.proposed(session)
        return session

    def get(self, id: str) -> Session:
        """Raises NotFound."""
        found = self._select("WHERE session.id = ?", id)
        if not found:
            raise NotFound(f"there is no session {id}", "mpcctl session list shows them")
        return found[0]

    def find(self, beginning: str) -> Session:
        """By an unambiguous beginning of its id. Raises NotFound, Conflict."""
        if not beginning or any(c not in "0123456789abcdef" for c in beginning):
            raise NotFound(f"{beginning!r} is not a session's id", "mpcctl session list shows them")
        found = self._select("WHERE session.id >= ? AND session.id < ?", beginning, beginning + "g")
        if not found:
            raise NotFound(f"there is no session {beginning}", "mpcctl session list shows them")
        if len(found) > 1:
            raise Conflict(f"{len(found)} sessions begin with {beginning}", "give more of the id")
        return found[0]

    def all(self) -> list[Session]:
        """Newest first."""
        return self._select("ORDER BY created DESC")

    def open(self) -> list[Session]:
        """Those that are not over, newest first."""
        return self._select(f"WHERE state IN {OPEN} ORDER BY created DESC")

    def models(self) -> dict[str, str]:
        """Names of the models of all sessions, by their commitments."""
        commitment, name = "json_extract(terms, '$.model_commitment')", "json_extract(terms, '$.model')"
        return dict(self._db.query(f"SELECT DISTINCT {commitment}, {name} FROM session"))

    def ended(self, peer: str, since: float) -> list[Session]:
        """Those with this peer that ended after ``since``, the earliest first."""
        return self._select("WHERE peer = ? AND finished >= ? ORDER BY finished", peer, since)

    def move(self, id: str, state: str, reason: str = "", approved_by: str | None = None) -> Session:
        """Raises Conflict when the session's state does not allow it. To the state it has: only the reason changes."""
        return self._move(id, (*OPEN, state), state, reason, approved_by)

    def outrank(self, id: str, state: str, reason: str) -> Session:
        """Give an ended session the other side's end. Raises Conflict where ours ranks as high."""
        return self._move(id, [each for each in FINAL if RANK[each] < RANK[state]], state, reason, None)

    def _move(self, id: str, old: Sequence[str], state: str, reason: str, approved_by: str | None) -> Session:
        now = time.time()
        try:
            with self._db.transaction() as db:
                before = self.get(id)
                if before.state not in old:
                    raise Conflict(f"session {id[:12]} is {before.state}: it cannot become {state}")
                db.execute(
                    "UPDATE session SET state = ?, reason = ?, approved_by = coalesce(?, approved_by), "
                    "approved = CASE WHEN ? AND approved IS NULL THEN ? ELSE approved END, "
                    "started = CASE WHEN ? AND started IS NULL THEN ? ELSE started END, "
                    "finished = CASE WHEN ? AND finished IS NULL THEN ? ELSE finished END WHERE id = ?",
                    (
                        *(state, reason[:500], approved_by),
                        *(state == "approved", now),
                        *(state in ("offline", "online"), now),
                        *(state in FINAL, now),
                        id,
                    ),
                )
                after = self.get(id)
                if self._witness is not None and after.state != before.state:
                    self._witness.moved(before, after, self.told(id), self.revealed(id))
        except sqlite3.IntegrityError as error:
            raise Conflict(f"session {id[:12]} is {self.get(id).state}: it cannot become {state}") from error
        return after

    def bind(self, id: str, binding: Binding) -> None:
        """What the approval binds, before it is given. Raises Conflict where a given one binds something else."""
        bound = json.dumps(binding.as_dict())
        try:
            with self._db.transaction() as db:
                db.execute("UPDATE session SET bound = ? WHERE id = ?", (bound, id))
        except sqlite3.IntegrityError:
            raise Conflict(f"the approval of session {id[:12]} binds something else") from None

    def note(self, id: str, reason: str) -> None:
        """What it waits for or last met with; the state stays."""
        with self._db.transaction() as db:
            db.execute("UPDATE session SET reason = ? WHERE id = ?", (reason[:500], id))

    def set_peer_software(self, id: str, software: str) -> None:
        with self._db.transaction() as db:
            db.execute("UPDATE session SET peer_software = ? WHERE id = ?", (software[:100], id))

    def attempt(self, id: str) -> None:
        with self._db.transaction() as db:
            db.execute("UPDATE session SET attempts = attempts + 1 WHERE id = ?", (id,))

    def spent_time(self, id: str, phase: str, seconds: float, size: int) -> None:
        assert phase in ("offline", "online")
        with self._db.transaction() as db:
            db.execute(
                f"UPDATE session SET {phase}_seconds = {phase}_seconds + ?, {phase}_bytes = {phase}_bytes + ? "
                "WHERE id = ?",
                (seconds, size, id),
            )

    def image_done(self, id: str, number: int, logits: Sequence[int] | None) -> None:
        """The data owner's integers of one image, or (model owner) only that it was served; the first time counts."""
        blob = None if logits is None else json.dumps([int(x) for x in logits]).encode()
        with self._db.transaction() as db:
            db.execute("INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?)", (id, number, blob, time.time()))

    def reveal(self, id: str, number: int) -> None:
        """Model owner: its share of this image's scores goes out next. Raises Refused where that is too often."""
        with self._db.transaction() as db:
            self.check_reveal(id, number)
            db.execute("INSERT INTO reveal VALUES (?, ?, ?)", (id, number, time.time()))
            if self._witness is not None:
                self._witness.revealed(self.get(id), number, self.revealed(id))

    def revealed(self, id: str) -> int:
        """How many times this side's share of an image's scores went out."""
        return int(self._db.query("SELECT count(*) FROM reveal WHERE session = ?", (id,))[0][0])

    def check_reveal(self, id: str, number: int) -> None:
        """Raise Refused where ``reveal`` would."""
        counts = dict(self._db.query("SELECT number, count(*) FROM reveal WHERE session = ? GROUP BY 1", (id,)))
        again = counts.get(number, 0)
        repeats = sum(counts.values()) - len(counts)
        if again > MOST_AGAIN or (again and repeats >= MOST_REPEATS + self.get(id).terms.images // 10):
            raise Refused(
                f"session {id[:12]}: the scores of image {number} were revealed {again} times,"
                f" and {repeats} of this session's a second time or more",
                "start a new session",
            )

    def set_told(self, id: str, text: str) -> None:
        """What the peer may hear about the end of this session; the reason itself is ours."""
        with self._db.transaction() as db:
            db.execute("INSERT OR REPLACE INTO told VALUES (?, ?)", (id, text[:500]))

    def told(self, id: str) -> str:
        rows = self._db.query("SELECT text FROM told WHERE session = ?", (id,))
        return str(rows[0]["text"]) if rows else ""

    def results(self, id: str) -> dict[int, list[int] | None]:
        rows = self._db.query("SELECT number, logits FROM image WHERE session = ?", (id,))
        return {row["number"]: None if row["logits"] is None else json.loads(row["logits"]) for row in rows}

    def asked(self, peer: str, peer_id: str, model: str, model_commitment: str, since: float = 0) -> Asked:
        """This peer's sessions with this model that were approved, whatever became of them, and their images; where
        more scores than that were revealed, those.

        A peer or model that was removed and added again is the same by its name, one under another name by its key or
        commitment. ``since``: only sessions that were approved or went on after this time.
        """
        (row,) = self._db.query(
            "SELECT coalesce(sum(max(images, done, revealed)), 0), count(*) FROM ("
            "SELECT json_extract(terms, '$.images') AS images, "
            "(SELECT count(*) FROM image WHERE session = id) AS done, "
            "(SELECT count(*) FROM reveal WHERE session = id) AS revealed FROM session "
            f"WHERE role = '{MODEL_OWNER_ROLE}' AND (peer = ? OR peer_id = nullif(?, '')) "
            "AND (json_extract(terms, '$.model') = ? OR json_extract(terms, '$.model_commitment') = ?) "
            f"AND (approved IS NOT NULL OR attempts > 0 OR state IN {(*RUNNING, 'done')}) "
            f"AND (state NOT IN {FINAL} OR coalesce(finished, 0) >= ?))",
            (peer, peer_id, model, model_commitment, since),
        )
        return Asked(*row)

    def all_revealed(self, id: str) -> bool:
        """Model owner: whether the scores of every image went out."""
        rows = self._db.query("SELECT count(DISTINCT number) FROM reveal WHERE session = ?", (id,))
        return int(rows[0][0]) >= self.get(id).terms.images

    def learn_rate(self, peer: str, phase: str, per_second: float) -> None:
        """A measured speed with a peer; newer measurements count half."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO rate VALUES (?, ?, ?) ON CONFLICT (peer, phase) "
                "DO UPDATE SET per_second = (per_second + excluded.per_second) / 2",
                (peer, phase, per_second),
            )

    def rate(self, peer: str, phase: str) -> float | None:
        rows = self._db.query("SELECT per_second FROM rate WHERE peer = ? AND phase = ?", (peer, phase))
        return float(rows[0][0]) if rows else None

    def _select(self, where: str, *values: object) -> list[Session]:
        rows = self._db.query(
            "SELECT *, (SELECT count(*) FROM image WHERE image.session = session.id) AS done FROM session " + where,
            values,
        )
        sessions = []
        for row in rows:
            fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates over values
            fields["terms"] = Terms(**json.loads(fields["terms"]))
            fields["own"] = json.loads(fields["own"])
            fields["bound"] = Binding(**json.loads(fields["bound"])) if fields["bound"] else None
            sessions.append(Session(**fields))
        return sessions
