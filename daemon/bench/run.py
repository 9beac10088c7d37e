"""One party's process: connect, warm up, measure; the data owner's prints the result of both as JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, cast

import uvloop

from mpcd.daemon.bench import machine, results
from mpcd.daemon.bench.options import Options
from mpcd.daemon.bench.party import Party, connect, listen
from mpcd.protocol.channel import MODEL_OWNER

Check = Callable[[], bool]


class Subject(Protocol):
    """A module that measures one thing."""

    DERIVED: tuple[tuple[str, tuple[str, ...]], ...]

    def once(self, party: Party, options: Options, small: bool) -> Awaitable[Check | None]:
        """Everything once. ``small``: as little as compiles all kernels. May return a check to be made at the end."""
        ...


def main(number: int, options: Options, host: str, port: int, folder: Path) -> None:
    """Measure with the party at the other end; ``folder`` has both identities. Raises MpcdError."""
    result = uvloop.run(_measure(number, options, host, port, folder))
    if result is not None:
        json.dump(result, sys.stdout)


async def _measure(number: int, options: Options, host: str, port: int, folder: Path) -> dict[str, Any] | None:
    subject = cast(Subject, importlib.import_module(f"mpcd.daemon.bench.{options.what}"))
    meet = listen if number == MODEL_OWNER else connect
    party = Party(number, await meet(folder, host, port, 1 + options.in_flight), folder / str(number))
    try:
        await party.agree({**options.to_wire(), "model": Path(options.model).name}, "thing")
        load, began = os.getloadavg(), time.time()
        check = await _all_runs(subject, party, options)
        own = {"machine": machine.describe(), "peak_memory_bytes": machine.peak_memory()}
        ours: dict[str, Any] = {"party": own, "rows": results.rows_of(party.rows)}
        if number == MODEL_OWNER:
            await party.tell(ours)
            await party.hear()  # the other has it
            return None
        theirs = await party.hear()
        await party.tell("thanks")
        return {
            "format": results.FORMAT,
            "what": options.what,
            "options": options.to_wire(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "load": {"before": load, "after": os.getloadavg()},
            "parties": [theirs["party"], ours["party"]],
            "rows": results.merged((theirs["rows"], ours["rows"]), subject.DERIVED),
            "exact": None if check is None or not options.check else check(),
        }
    finally:
        await party.close()


async def _all_runs(subject: Subject, party: Party, options: Options) -> Check | None:
    party.say(f"{options.what}: compiling and warming up")
    party.warming = True
    await subject.once(party, options, True)
    party.warming = False
    check = None
    for i in range(options.measured_runs):
        party.say(f"{options.what}: run {i + 1} of {options.measured_runs}")
        check = await subject.once(party, options, False)
    return check
