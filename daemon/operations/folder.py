"""What can be told from the state folder, daemon or not. Everything is only read, the databases too."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from mpcd.daemon.audit import chain, journal
from mpcd.daemon.config import Config, Paths
from mpcd.daemon.errors import MpcdError
from mpcd.daemon.network import authority, identity
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.network.peers import FILE_NAME as PEERS_FILE
from mpcd.daemon.offline.capacity import BATCH, GIB, size
from mpcd.daemon.offline.ledger import REUSED
from mpcd.daemon.operations.checks import Check, of_error, ok, problem, warning
from mpcd.daemon.sessions import policy as policies
from mpcd.daemon.sessions.records import RUNNING

LEDGER, RECORDS, AUDIT = "ledger.sqlite", "sessions.sqlite", "audit"
UNIT_STATES = ("making", "ready", "spent", "burnt")


def checks(paths: Paths, config: Config) -> Iterator[Check]:
    yield state_folder(paths)
    if not paths.state.is_dir():
        return
    yield configuration(paths)
    yield key(paths, config)
    yield certificates(paths, config)
    yield policy(paths)
    yield disk(paths, config)
    yield ledger(paths)
    yield records(paths)
    yield audit(paths)


def state_folder(paths: Paths) -> Check:
    """The state folder and what is in it belong to this user alone."""
    state = paths.state
    if not state.is_dir():
        return problem("state folder", f"{state} is not there", "start the daemon once, or set MPCD_STATE")
    if not os.access(state, os.W_OK | os.X_OK):
        return problem("state folder", f"{state} cannot be written by this user", "run as the daemon's user")
    open_to_others = [
        path.name
        for path in (state, *(state / name for name in (identity.FILE_NAME, PEERS_FILE, LEDGER, RECORDS)))
        if path.exists() and path.stat().st_mode & 0o077
    ]
    if open_to_others:
        return problem(
            "state folder",
            f"others may read {', '.join(open_to_others)} in {state}",
            f"chmod -R go= {state}",
        )
    return ok("state folder", str(state))


def configuration(paths: Paths) -> Check:
    """The file as it is now; the daemon may have read an older one."""
    try:
        Config.load(paths.config)
    except MpcdError as error:
        return of_error("configuration", error)
    return ok("configuration", str(paths.config) if paths.config.exists() else "no file: the defaults")


def key(paths: Paths, config: Config) -> Check:
    try:
        found = _identity(paths, config)
    except MpcdError as error:
        return of_error("key", error)
    whose = "the site's authority's" if config.tls.mode == "ca" else "its own"
    return ok("key", f"fingerprint {found.fingerprint[:16]}..., {whose}, readable by this user only")


def _identity(paths: Paths, config: Config) -> Identity:
    return authority.load(config.tls) if config.tls.mode == "ca" else Identity.load(paths.state / identity.FILE_NAME)


def certificates(paths: Paths, config: Config, peers: Mapping[str, float | None] | None = None) -> Check:
    """When ours and the ``peers``' end, as far as they do: those that daemons make for themselves never do."""
    try:
        ours = authority.expires(_identity(paths, config).certificate) if config.tls.mode == "ca" else None
    except MpcdError as error:
        return of_error("certificates", error)
    ends = {name: end for name, end in {**(peers or {}), "ours": ours}.items() if end is not None}
    if not ends:
        return ok("certificates", "pinned ones: they do not end")
    first = min(ends, key=lambda name: ends[name])
    text = f"{first}: until {authority.date(ends[first])}"
    hint = "have it renewed by your authority" if first == "ours" else f"ask {first} to renew its certificate"
    left = ends[first] - time.time()
    if left < 0:
        return problem("certificates", f"{text}, which is over", hint)
    return warning("certificates", text, hint) if left < authority.WARN else ok("certificates", text)


def policy(paths: Paths) -> Check:
    file = paths.state / "policy.toml"
    try:
        policies.load(file)
    except MpcdError as error:
        return problem(
            "policy",
            f"the policy has a mistake, so nothing runs and nothing is reported: {error}",
            error.hint or "mend the file",
        )
    return ok("policy", str(file) if file.exists() else "none: every session waits for mpcctl approve")


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """Units that running sessions still need, and what they will take of the disk as far as that is known."""

    units: int
    disk_bytes: int


def disk(paths: Paths, config: Config) -> Check:
    free, reserve = shutil.disk_usage(paths.state).free, int(config.limits.disk_reserve_gib * GIB)
    units = planned(paths)
    text = f"{size(free)} free, {size(reserve)} of it kept in reserve"
    if units.units:
        text += f"; running sessions still need {units.units} units"
    if units.disk_bytes:
        text += f", {size(units.disk_bytes)} at a time"
    mend = "free some space, move the state folder, or lower limits.disk_reserve_gib"
    if free <= reserve:
        return problem("disk", f"{text}: no unit can be made", mend)
    if free - reserve < units.disk_bytes:
        return warning("disk", f"{text}: too little for them", mend)
    return ok("disk", text)


def planned(paths: Paths) -> Planned:
    """A session makes at most a batch at a time, and uses it up before the next."""
    try:
        with closing(read(paths.state / RECORDS)) as db:
            rows = db.execute(
                "SELECT json_extract(terms, '$.model_commitment'), json_extract(terms, '$.images') -"
                f" (SELECT count(*) FROM image WHERE session = session.id) FROM session WHERE state IN {RUNNING}"
            ).fetchall()
        with closing(read(paths.state / LEDGER)) as db:
            ready = dict(db.execute("SELECT model, sum(units) FROM stock WHERE state = 'ready' GROUP BY 1").fetchall())
            each = dict(db.execute("SELECT model, max(bytes / units) FROM stock WHERE units > 0 GROUP BY 1").fetchall())
    except sqlite3.Error:  # not there yet, or damaged: another check tells
        return Planned(0, 0)
    missing: dict[str, int] = {}
    for model, images in rows:
        missing[model] = missing.get(model, 0) + images
    missing = {model: max(0, images - ready.get(model, 0)) for model, images in missing.items()}
    at_once = sum(min(BATCH, images) * each.get(model, 0) for model, images in missing.items())
    return Planned(sum(missing.values()), at_once)


def ledger(paths: Paths) -> Check:
    """Whole, and nothing in it was used twice."""
    file = paths.state / LEDGER
    if not file.exists():
        return ok("ledger", "none yet")
    try:
        with closing(read(file)) as db:
            damage = [str(row[0]) for row in db.execute("PRAGMA quick_check(5)")]
            counts = dict(db.execute("SELECT state, count(*) FROM unit GROUP BY state").fetchall())
            reused = int(db.execute(REUSED.format("")).fetchone()[0])
    except sqlite3.Error as error:
        return _damaged("ledger", str(error))
    if damage != ["ok"]:
        return _damaged("ledger", "; ".join(damage))
    text = ", ".join(f"{counts.get(state, 0)} {state}" for state in UNIT_STATES) + f"; used twice: {reused}"
    if reused:
        return problem("ledger", text, "stop using this daemon and tell its makers")
    return ok("ledger", text)


def records(paths: Paths) -> Check:
    file = paths.state / RECORDS
    if not file.exists():
        return ok("sessions", "none yet")
    try:
        with closing(read(file)) as db:
            damage = [str(row[0]) for row in db.execute("PRAGMA quick_check(5)")]
            counts = db.execute("SELECT state, count(*) FROM session GROUP BY state ORDER BY state").fetchall()
    except sqlite3.Error as error:
        return _damaged("sessions", str(error))
    if damage != ["ok"]:
        return _damaged("sessions", "; ".join(damage))
    return ok("sessions", ", ".join(f"{count} {state}" for state, count in counts) or "none yet")


def audit(paths: Paths) -> Check:
    """Without what the daemon has noted of it elsewhere: a log cut short at an entry's end looks whole."""
    files = journal.segments(paths.state / AUDIT)
    if not files:
        return ok("audit log", "none yet")
    try:
        verdict = chain.verify(_chunks(files))
    except OSError as error:
        return problem("audit log", f"it cannot be read: {error.strerror}", "run as the daemon's user")
    return audit_log(verdict, journal.where(files, verdict.bad) if verdict.bad else "")


def _chunks(files: Sequence[Path]) -> Iterator[bytes]:
    for file in files:
        with file.open("rb") as opened:
            while chunk := opened.read(journal.CHUNK):
                yield chunk


def audit_log(verdict: chain.Verdict, where: str) -> Check:
    if verdict.bad is not None:
        return problem(
            "audit log",
            f"{where}: {verdict.bad.problem}",
            "somebody or something changed it: keep a copy of the state folder, and find out who",
        )
    return ok("audit log", f"{verdict.entries} entries, each in its place")


def _damaged(name: str, how: str) -> Check:
    return problem(
        name,
        f"the file is damaged: {how}"[:300],
        "stop the daemon, look at the disk's health, and restore the whole state folder from a backup",
    )


def read(file: Path) -> sqlite3.Connection:
    """Nothing is written, nor a file made beside it. Raises sqlite3.Error where there is no such file."""
    how = "mode=ro" if file.with_name(file.name + "-wal").exists() else "mode=ro&immutable=1"
    return sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True, timeout=10)
