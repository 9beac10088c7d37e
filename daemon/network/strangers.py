"""What the operator hears of connections that come to nothing: a few lines of log, and who knocked lately.

Anybody can reach the port, so what is kept and logged of them is bounded, however many come.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.network.greeting import Hello
from mpcd.daemon.network.identity import grouped
from mpcd.daemon.network.peers import Peers

REMEMBERED = 32
LOG_PAUSE = 5.0  # seconds between two log lines of a kind

_log = log.get("link")


@dataclasses.dataclass(frozen=True, slots=True)
class Stranger:
    """Somebody who knocked: what they say of themselves, which nothing proves."""

    name: str
    fingerprint: str
    address: str
    time: float


class Strangers:
    """``on_event`` gets one of a few texts of ours, as often as one is logged."""

    def __init__(self, peers: Peers, on_event: Callable[[str], Any]) -> None:
        self._peers = peers
        self._on_event = on_event
        self._knocked: deque[Stranger] = deque(maxlen=REMEMBERED)
        self._logged: dict[str, float] = {}

    def lately(self) -> tuple[Stranger, ...]:
        """Who knocked, the last one last."""
        return tuple(self._knocked)

    def report(self, event: str, **details: Any) -> None:
        """Log, but do not let strangers fill the log. ``event``: one of a few texts of ours."""
        now = time.monotonic()
        if now - self._logged.get(event, float("-inf")) >= LOG_PAUSE:
            self._logged[event] = now
            _log.warning(event, **details)
            self._on_event(event)

    def knocked(self, theirs: Hello, address: str) -> None:
        stranger = Stranger(theirs.name, theirs.fingerprint, address.rpartition(":")[0], time.time())
        for old in [s for s in self._knocked if s.fingerprint == stranger.fingerprint]:
            self._knocked.remove(old)
        self._knocked.append(stranger)
        pinned = next((peer for peer in self._peers.list() if peer.name == theirs.name), None)
        self.report(
            "an unknown daemon knocked; nothing proves what it says",
            name=theirs.name,
            fingerprint=grouped(theirs.fingerprint),
            address=address,
            hint="to accept it, get its invite, compare the fingerprint, and run mpcctl peer add"
            if pinned is None
            else f"{pinned.name!r} is pinned as {grouped(pinned.fingerprint)}: if that changed, remove it first",
        )
