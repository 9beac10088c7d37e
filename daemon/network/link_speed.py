"""How fast the link to a peer is, and which OT extension that speaks for.

A COT costs computing at both parties, bytes between them, and with a silent extension a share of a round trip, each
hidden behind the others: its time is the greatest of the three. ``choose`` takes the extension for which that is least.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from mpcd.daemon.context import Context
from mpcd.daemon.errors import ProtocolViolation
from mpcd.protocol.ot import ferret
from mpcd.protocol.ot.correlate import EXTENSIONS, Extension

PROBE = 768 * 1024  # bytes in one call, which has at most 1 MiB
PROBES = 4
FRESH = 600.0  # seconds that a measurement holds


@dataclasses.dataclass(frozen=True, slots=True)
class Speed:
    """Of one link: bytes a second towards the peer, and seconds for a call and its answer."""

    bytes_per_second: float
    round_trip: float


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """A COT's nanoseconds of one core, its bytes, and how many are made in a round trip (0: any number)."""

    nanoseconds: float
    bytes: float
    per_round_trip: int = 0


# Measured by `mpcctl bench ot` (docs/performance.md), with the consistency checks and less PER_BYTE.
COSTS: dict[Extension, Cost] = {
    "iknp": Cost(8.2, 16.0),
    "softspoken2": Cost(10.6, 7.876),
    "softspoken4": Cost(12.9, 3.876),
    "softspoken8": Cost(32.8, 1.876),
    "silent": Cost(13.3, 0.172, ferret.SETS["2^16"].fresh),
    "silent17": Cost(17.1, 0.092, ferret.SETS["2^17"].fresh),
    "silent18": Cost(25.3, 0.050, ferret.SETS["2^18"].fresh),
}
COMPACT: tuple[Extension, ...] = ("silent17", "silent18")
PER_BYTE = 1.0  # nanoseconds of TLS and copying a byte at the slower end, not hidden behind computing


def choose(speed: Speed, compact: bool = False) -> Extension:
    """The extension with the least time a COT on such a link. ``compact``: one whose seeds are small."""

    def nanoseconds(extension: Extension) -> float:
        cost = COSTS[extension]
        waiting = speed.round_trip * 1e9 / cost.per_round_trip if cost.per_round_trip else 0.0
        return max(cost.nanoseconds + cost.bytes * PER_BYTE, cost.bytes * 1e9 / speed.bytes_per_second, waiting)

    return min(COMPACT if compact else COSTS, key=nanoseconds)


class LinkSpeed:
    """Both ends of ``link.probe``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._measured: dict[str, tuple[Speed, float]] = {}
        self.handlers = {"link.probe": self._serve_probe}

    async def extension(self, peer: str, compact: bool = False) -> Extension:
        """As configured, or for ``auto`` what suits the link, and compact units. Raises LinkError, PeerError."""
        configured = self._context.config.offline.extension
        if configured in EXTENSIONS:
            return configured
        return choose(await self.measure(peer), compact)

    async def measure(self, peer: str) -> Speed:
        """Over the control link; kept for a while."""
        known = self._measured.get(peer)
        if known is None or time.monotonic() - known[1] > FRESH:
            known = (await self._measure(peer), time.monotonic())
            self._measured[peer] = known
        return known[0]

    async def both_ways(self, peer: str) -> tuple[Speed, float]:
        """Measured anew: towards the peer, and bytes a second from it. Raises LinkError, PeerError."""
        self._measured.pop(peer, None)
        speed = await self.measure(peer)
        fastest = min([await self._probe(peer, b"", PROBE) for _ in range(PROBES)])
        return speed, _rate(fastest - speed.round_trip)

    async def _measure(self, peer: str) -> Speed:
        round_trip = min([await self._probe(peer, b"") for _ in range(3)])
        # TCP widens its window from call to call, so the fastest one counts.
        fastest = min([await self._probe(peer, bytes(PROBE)) for _ in range(PROBES)])
        return Speed(_rate(fastest - round_trip), round_trip)

    async def _probe(self, peer: str, data: bytes, wanted: int = 0) -> float:
        began = time.perf_counter()
        await self._context.net.call(peer, "link.probe", {"data": data, "wanted": wanted})
        return time.perf_counter() - began

    async def _serve_probe(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        wanted = params.get("wanted", 0)
        if not isinstance(params.get("data"), bytes) or type(wanted) is not int or not 0 <= wanted <= PROBE:
            raise ProtocolViolation("link.probe is malformed")
        return {"data": bytes(wanted)}


def _rate(seconds: float) -> float:
    """Bytes a second of a probe; the clock and the loop are not finer than a tenth of a millisecond."""
    return PROBE / max(seconds, 1e-4)
