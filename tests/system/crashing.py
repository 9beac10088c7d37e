"""mpcd that dies (kill -9) at the n-th time it comes to a step of making units, and notes every step on its way.

    python tests/system/crashing.py NOTES [mpcd's options]

Steps count from the moment that the ledger hears of a batch. If there is a file NOTES.dies then, with the words STEP
and, after a line break, NUMBER, it is taken away and that is where this daemon dies. NOTES gets a line a step, and one
for every seed that units are made from.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpcd.daemon import main
from mpcd.daemon.network.peer_network import PeerNetwork
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.offline.ledger import Ledger
from mpcd.daemon.offline.store import UnitStore, UnitWriter


class Steps:
    def __init__(self, notes: Path) -> None:
        self._file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._order = notes.with_name(notes.name + ".dies")
        self._dies_at = ("", 0)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._begun = False

    def begin(self) -> None:
        self._begun = True
        self._counts.clear()
        self._dies_at = ("", 0)  # an order is for one batch, also when that had fewer steps
        if self._order.exists():
            step, number = self._order.read_text().splitlines()
            self._dies_at = (step, int(number))
            self._order.unlink()

    def note(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())

    def at(self, step: str) -> None:
        if not self._begun:
            return
        with self._lock:
            self._counts[step] += 1
            self.note(f"step {step}")
            if (step, self._counts[step]) == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: type, method: str, name: Callable[..., str | None]) -> None:
        """``name`` makes the step's name of the arguments, or None."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def plain(*args: Any, **kwargs: Any) -> Any:
            step = name(*args, **kwargs)
            if step is None:
                return original(*args, **kwargs)
            self.at(f"before {step}")
            result = original(*args, **kwargs)
            self.at(f"after {step}")
            return result

        @functools.wraps(original)
        async def waiting(*args: Any, **kwargs: Any) -> Any:
            step = name(*args, **kwargs)
            if step is None:
                return await original(*args, **kwargs)
            self.at(f"before {step}")
            result = await original(*args, **kwargs)
            self.at(f"after {step}")
            return result

        setattr(owner, method, waiting if inspect.iscoroutinefunction(original) else plain)


def arm(steps: Steps) -> None:
    def begin(*args: Any) -> str:
        steps.begin()
        return "begin"

    def seed(*args: Any, **kwargs: Any) -> str:
        steps.note("seed " + _WRITER.bind(*args, **kwargs).arguments["seed"].hex())
        return "writer"

    def call(self: PeerNetwork, peer: str, method: str, *args: Any, **kwargs: Any) -> str | None:
        return method if method in ("offline.begin", "offline.ready") else None

    steps.around(Ledger, "begin", begin)
    steps.around(Ledger, "ready", lambda *args: "ready")
    steps.around(UnitStore, "writer", seed)
    steps.around(UnitWriter, "put", lambda *args: "put")
    steps.around(UnitWriter, "finish", lambda *args: "finish")
    steps.around(PeerNetwork, "call", call)
    steps.around(Connection, "send_frame", lambda *args: "send")
    steps.around(Connection, "recv_frame", lambda *args: "receive")


if __name__ == "__main__":
    _WRITER = inspect.signature(UnitStore.writer)
    arm(Steps(Path(sys.argv.pop(1))))
    main.main()
