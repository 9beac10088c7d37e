"""What goes to support: enough to find a fault, and nothing of patients, images, labels, weights, keys or addresses.

Every file is made of fields chosen here, not of all there are; texts go through daemon/operations/redact.py besides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import platform
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from mpcd.daemon.bench import machine as bench_machine
from mpcd.daemon.config import Config, Paths, split_address
from mpcd.daemon.errors import MpcdError
from mpcd.daemon.network.peers import FILE_NAME as PEERS_FILE
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.operations import doctor, folder
from mpcd.daemon.operations.checks import Check
from mpcd.daemon.operations.redact import Redactor, stand_ins

JOURNAL = ("journalctl", "--unit=mpcd", "--lines=1000", "--output=cat", "--no-pager", "--quiet")
LOG_LINES = 1000
SESSIONS = 500

CONTENTS = """\
A bundle of mpcd for support. It was made for you to read before you send it.

{}

Not in it: images, labels, scores, weights, keys, salts, invites, UIDs, names of persons, patients, hosts, peers, models
and data sets, addresses and paths. Names are replaced by the same stand-in everywhere.
"""
FILES = {
    "versions.json": "mpcd, Python, libraries, processor, memory",
    "config.json": "settings that are numbers or one of a few words; names and addresses only as set or not",
    "doctor.json": "what mpcctl doctor says",
    "status.json": "what runs: peers as peer-1, peer-2, ...",
    "ledger.json": "how many units are in which state, how long batches took",
    "sessions.json": "of every session: state, number of images, times and bytes",
    "log.jsonl": "the last lines of the log",
}


def online(
    paths: Paths, config: Config, checks: Sequence[Check], status: Mapping[str, Any], lines: Iterable[str]
) -> dict[str, str]:
    """Name and text of every file, of the daemon that runs."""
    redactor = Redactor(known_words(paths, config))
    return _with_contents(
        {
            **_files(paths, config, checks, redactor),
            "status.json": _json(_status(status, redactor)),
            "log.jsonl": log_lines(lines, redactor),
        }
    )


def offline(paths: Paths) -> dict[str, str]:
    """The same without the daemon: no status, and the journal's lines instead of the daemon's memory."""
    config = Config.default()
    with contextlib.suppress(MpcdError):
        config = Config.load(paths.config)
    redactor = Redactor(known_words(paths, config))
    files = _files(paths, config, [*doctor.offline(paths)], redactor)
    return _with_contents({**files, "log.jsonl": log_lines(_journal(), redactor)})


def known_words(paths: Paths, config: Config) -> dict[str, str]:
    """Every name that the state folder knows."""
    words: dict[str, str] = {}
    hosts = [socket.gethostname(), socket.gethostname().split(".")[0], config.listen.host]
    users = [os.environ.get("USER", "")]
    with contextlib.suppress(OSError, KeyError):
        users.append(getpass.getuser())
    peers = []
    with contextlib.suppress(MpcdError):
        peers = list(Peers(paths.state / PEERS_FILE).list())
    for address in (config.advertise, *(peer.address for peer in peers)):
        with contextlib.suppress(ValueError):
            hosts.append(split_address(address)[0])
    models, datasets, places = set[str](), set[str](), [str(paths.state), str(paths.runtime), str(paths.cache)]
    with contextlib.suppress(OSError):
        models |= {folder.name for folder in (paths.state / "models").iterdir()}
        datasets |= {file.stem for file in (paths.state / "datasets").glob("*.json")}
    with contextlib.suppress(sqlite3.Error), closing(folder.read(paths.state / folder.RECORDS)) as db:
        for terms, own in db.execute("SELECT terms, own FROM session"):
            models.add(str(json.loads(terms).get("model", "")))
            datasets.add(str(json.loads(own).get("dataset", "")))
    words |= stand_ins("user", users) | stand_ins("host", hosts) | stand_ins("place", places)
    words |= stand_ins("data-set", sorted(datasets)) | stand_ins("model", sorted(models))
    words |= stand_ins("peer", [peer.name for peer in peers]) | {config.name: "this-daemon"}
    return words


def _files(paths: Paths, config: Config, checks: Sequence[Check], redactor: Redactor) -> dict[str, str]:
    return {
        "versions.json": _json(_versions()),
        "config.json": _json(settings(config)),
        "doctor.json": _json([redactor.value(check.as_dict()) for check in checks]),
        "ledger.json": _json(_ledger(paths)),
        "sessions.json": _json(_sessions(paths, redactor)),
    }


def _with_contents(files: dict[str, str]) -> dict[str, str]:
    """And one that says what each of them is."""
    lines = [f"{name:<15} {FILES[name]}" for name in files]
    return {"CONTENTS.txt": CONTENTS.format("\n".join(lines)), **files}


def _versions() -> dict[str, Any]:
    found = bench_machine.describe()
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {**found, "system": release.get("PRETTY_NAME", ""), "memory_available": psutil.virtual_memory().available}


def settings(config: Any) -> dict[str, Any]:
    """Numbers, switches and words of a choice as they are; of free texts only whether they are set."""
    shown: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            shown[field.name] = settings(value)
        elif isinstance(value, (bool, int, float)) or "one_of" in field.metadata:
            shown[field.name] = value
        else:
            shown[field.name] = "<set>" if value else "<not set>"
    return shown


def _status(status: Mapping[str, Any], redactor: Redactor) -> dict[str, Any]:
    plain = (
        "version", "protocol_version", "software", "started", "threads", "memory_available_bytes", "disk_free_bytes",
        "kernels",
    )  # fmt: skip
    jobs = ("stage", "done", "total", "eta_seconds")
    units = ("ready", "making", "spent", "burnt", "disk_bytes")
    return {
        **{key: status[key] for key in plain},
        "now": time.time(),
        "listens": status["listen"] is not None,
        "health": [redactor.value(check) for check in status["health"]],
        "peers": [
            {
                "connected": peer["connected"],
                "address": bool(peer["address"]),
                **{key: redactor.text(peer[key]) for key in ("name", "error")},
            }
            for peer in status["peers"]
        ],
        "units": [
            {"peer": redactor.text(stock["peer"]), **{key: stock[key] for key in units}} for stock in status["units"]
        ],
        "jobs": [{key: job[key] for key in jobs} for job in status["jobs"]],
    }


def _ledger(paths: Paths) -> dict[str, Any]:
    try:
        with closing(folder.read(paths.state / folder.LEDGER)) as db:
            counts = dict(db.execute("SELECT state, count(*) FROM unit GROUP BY state").fetchall())
            batches = db.execute("SELECT units, seconds, moved FROM batch ORDER BY rowid DESC LIMIT 200").fetchall()
            version = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        return {"error": type(error).__name__}
    last = [{"units": units, "seconds": seconds, "bytes": moved} for units, seconds, moved in batches]
    return {"format": version, "units": counts, "last_batches": last}


def _sessions(paths: Paths, redactor: Redactor) -> list[dict[str, Any]]:
    columns = (
        "id", "role", "state", "attempts", "created", "approved", "started", "finished", "offline_seconds",
        "offline_bytes", "online_seconds", "online_bytes", "peer", "reason",
    )  # fmt: skip
    try:
        with closing(folder.read(paths.state / folder.RECORDS)) as db:
            rows = db.execute(
                f"SELECT {', '.join(columns)}, json_extract(terms, '$.images'), json_extract(terms, '$.ring'),"
                " (SELECT count(*) FROM image WHERE image.session = session.id) FROM session"
                f" ORDER BY created DESC LIMIT {SESSIONS}"
            ).fetchall()
    except sqlite3.Error as error:
        return [{"error": type(error).__name__}]
    found = []
    for *values, images, ring, done in rows:
        session: dict[str, Any] = dict(zip(columns, values, strict=True))
        for key in ("id", "peer", "reason"):
            session[key] = redactor.text(session[key])
        found.append({**session, "images": images, "done": done, "ring": ring})
    return found


def _journal() -> list[str]:
    """The service's last lines, where there is a journal that this user may read."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(JOURNAL, capture_output=True, text=True, timeout=20, check=False, errors="replace")
        return done.stdout.splitlines()
    return []


def log_lines(lines: Iterable[str], redactor: Redactor) -> str:
    """JSON lines of ours, redacted; what a library or a crash wrote between them is only counted."""
    kept, foreign = [], 0
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event:
            kept.append(json.dumps(redactor.event(event), default=str))
        else:
            foreign += 1
    kept = kept[-LOG_LINES:]
    if foreign:
        kept.append(json.dumps({"event": "lines left out that are not of the log", "lines": foreign}))
    return "".join(line + "\n" for line in kept)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"
