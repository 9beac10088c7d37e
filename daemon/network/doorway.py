"""Who may wait at the port to show who they are: places, and how many a second.

Places: so many in all, fewer for one address. When they are taken, the newcomer gets the place of the connection that
has waited longest at the address that holds most, so that those who loiter cannot keep a peer out. An address from
which a peer has shown who it is keeps its places while a stranger's address has any.

Handshakes: so many failed ones a second from one address, and from all strangers' addresses together; what is over
that is dropped before TLS begins. A handshake that ends in a known peer is not counted.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter, OrderedDict
from typing import Protocol, TypeVar

from mpcd.daemon.config import Limits
from mpcd.daemon.network.rate import Rate

FAILED_A_SECOND, FAILED_AT_ONCE = 4.0, 32.0  # handshakes of one address
FAMILIAR = 8.0  # times as many from an address where a peer was
STRANGERS_A_SECOND, STRANGERS_AT_ONCE = 128.0, 256.0  # of all other addresses together
REMEMBERED = 4096  # addresses

T = TypeVar("T")


class Caller(Protocol):
    """What a doorway needs of a connection."""

    def abort(self) -> None: ...


class Doorway:
    """Connections that have not yet shown who they are, by the address they come from."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.waiting: dict[Caller, str] = {}  # in the order of their coming
        self._failed: OrderedDict[str, Rate] = OrderedDict()
        self._strangers: Rate | None = None
        self._familiar: OrderedDict[str, None] = OrderedDict()

    def enter(self, caller: Caller, origin: str, now: float) -> str:
        """'' if this one may try; else why not, for the log. May drop another one."""
        if not self._counted(origin, now):
            return "too many connections that did not show who they are; one was dropped"
        held = Counter(self.waiting.values())
        if held[origin] >= self._limits.unauthenticated_per_address:
            self._drop(origin)
        elif len(self.waiting) >= self._limits.unauthenticated:
            strangers = {other: count for other, count in held.items() if other not in self._familiar}
            if not strangers and origin not in self._familiar:
                return "too many connections are waiting to show who they are; one was dropped"
            most = strangers or held
            self._drop(max(most, key=lambda other: most[other]))
        self.waiting[caller] = origin
        return ""

    def leave(self, caller: Caller, *, known: bool) -> None:
        """It waits no more. ``known``: it has shown that it is a peer."""
        origin = self.waiting.pop(caller, "")
        if not known or not origin:
            return
        if (rate := self._failed.get(origin)) is not None:
            rate.give_back()
        if origin not in self._familiar:
            self._failed.pop(origin, None)  # and get its larger measure
        _remember(self._familiar, origin, None)

    def _counted(self, origin: str, now: float) -> bool:
        familiar = origin in self._familiar
        rate = self._failed.get(origin)
        if rate is None:
            times = FAMILIAR if familiar else 1.0
            rate = Rate(FAILED_A_SECOND * times, FAILED_AT_ONCE * times, now)
        _remember(self._failed, origin, rate)
        if not rate.take(now):
            return False
        if self._strangers is None:
            self._strangers = Rate(STRANGERS_A_SECOND, STRANGERS_AT_ONCE, now)
        return familiar or self._strangers.take(now)

    def _drop(self, origin: str) -> None:
        """The one of this address that has waited longest."""
        caller = next(caller for caller, other in self.waiting.items() if other == origin)
        del self.waiting[caller]
        caller.abort()


def _remember(memory: OrderedDict[str, T], origin: str, value: T) -> None:
    memory[origin] = value
    memory.move_to_end(origin)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)


def origin_of(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that one IPv6 customer has at least."""
    host = address.rpartition(":")[0]
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address):
            mapped = found.ipv4_mapped
            return str(mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return host
