"""The format of the state folder as a whole, written in its ``version.json``.

The databases count their own steps (daemon/database.py); this counts what no database holds: the files of peers,
models, data sets and units. It is looked at before anything in the folder is opened: a folder of a newer format is
refused whole, one of an older format goes through the steps that it lacks, each of which may be interrupted and run
again.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.database import NewerState
from mpcd.daemon.errors import BadInput
from mpcd.daemon.files import write_private
from mpcd.daemon.version import software_version

FILE_NAME = "version.json"
MOST_HISTORY = 100  # upgrades remembered

Step = Callable[[Path], None]

_log = log.get("state")


class StateError(BadInput):
    """The state folder cannot be used."""

    code = "state"


def upgrade(state: Path) -> None:
    """Bring ``state`` to this mpcd's format. Raises NewerState, StateError."""
    run(state, STEPS)


def run(state: Path, steps: Sequence[Step]) -> None:
    file = state / FILE_NAME
    found = _read(file)
    before = int(found["format"])
    if before > len(steps):
        raise NewerState.of(state, before, len(steps))
    for number, step in enumerate(steps[before:], before + 1):
        step(state)
        _write(file, {**found, "format": number})
    software = software_version()
    if before != len(steps) or found["software"] != software:
        _log.info("state folder", format=len(steps), was=before, software=software, written_by=found["software"])
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        history = [*found["history"], {"software": software, "format": len(steps), "at": now}]
        _write(file, {"format": len(steps), "software": software, "history": history[-MOST_HISTORY:]})


def _read(file: Path) -> dict[str, Any]:
    """Format 0: a folder from before formats were written, or an empty one."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {"format": 0, "software": "", "history": []}
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error.strerror}") from error
    try:
        table: Any = json.loads(text)
        if type(table["format"]) is not int or table["format"] < 0:
            raise ValueError("no format")
        return {"software": "", "history": [], **table}
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{file} is damaged: {error}", "restore the whole state folder from a backup") from error


def _write(file: Path, table: dict[str, Any]) -> None:
    write_private(file, (json.dumps(table, indent=2) + "\n").encode())


def _format_1(state: Path) -> None:
    """version.json itself is what is new; no other file changes."""


STEPS: tuple[Step, ...] = (_format_1,)  # add at the end, change none
