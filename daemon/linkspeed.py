"""How fast the link to a peer is, and which OT extension that speaks for.

A COT costs computing at both parties and bytes between them, the one hidden behind the other: its time is the greater
of the two. ``choose`` takes the extension for which that is least.
"""

from __future__ import annotations

import time
from typing import Any

from mpcd.daemon.context import Context
from mpcd.daemon.errors import ProtocolViolation
from mpcd.protocol.ot.correlate import EXTENSIONS, Extension

PROBE = 768 * 1024  # bytes in one call, which has at most 1 MiB
PROBES = 4
FRESH = 600.0  # seconds that a measurement holds

# Nanoseconds of one core a COT, and bytes a COT over the link: measured by `mpcctl bench ot` (docs/performance.md).
COSTS: dict[Extension, tuple[float, float]] = {
    "iknp": (9.0, 16.0),
    "softspoken2": (10.0, 7.875),
    "softspoken4": (11.0, 3.875),
    "softspoken8": (27.0, 1.875),
    "silent": (35.0, 0.172),
}
PER_BYTE = 1.5  # nanoseconds of TLS and copying a byte at the slower end, not hidden behind computing


def choose(bytes_per_second: float) -> Extension:
    """The extension with the least time a COT on such a link."""

    def nanoseconds(extension: Extension) -> float:
        compute, size = COSTS[extension]
        return max(compute + size * PER_BYTE, size * 1e9 / bytes_per_second)

    return min(COSTS, key=nanoseconds)


class LinkSpeed:
    """Both ends of ``link.probe``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._measured: dict[str, tuple[float, float]] = {}
        self.handlers = {"link.probe": self._serve_probe}

    async def extension(self, peer: str) -> Extension:
        """As configured, or for ``auto`` what suits the link. Raises LinkError, PeerError."""
        configured = self._context.config.offline.extension
        if configured in EXTENSIONS:
            return configured
        return choose(await self.measure(peer))

    async def measure(self, peer: str) -> float:
        """Bytes a second towards the peer, over the control link; kept for a while."""
        speed, when = self._measured.get(peer, (0.0, -FRESH))
        if time.monotonic() - when > FRESH:
            speed = await self._measure(peer)
            self._measured[peer] = (speed, time.monotonic())
        return speed

    async def _measure(self, peer: str) -> float:
        round_trip = min([await self._probe(peer, b"") for _ in range(3)])
        # TCP widens its window from call to call, so the fastest one counts.
        fastest = min([await self._probe(peer, bytes(PROBE)) for _ in range(PROBES)])
        return PROBE / max(fastest - round_trip, 1e-4)

    async def _probe(self, peer: str, data: bytes) -> float:
        began = time.perf_counter()
        await self._context.net.call(peer, "link.probe", {"data": data})
        return time.perf_counter() - began

    async def _serve_probe(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(params.get("data"), bytes):
            raise ProtocolViolation("link.probe is malformed")
        return {}
