"""How many bytes went to and came from a peer, over connections that come and go."""

from __future__ import annotations

import dataclasses

from mpcd.daemon.network.transport import Connection


@dataclasses.dataclass(frozen=True, slots=True)
class Moved:
    """Bytes of frames; TLS and TCP add a little."""

    sent: int = 0
    received: int = 0


class Traffic:
    """Of one peer, since this daemon started."""

    def __init__(self) -> None:
        self._ended = Moved()
        self._open: list[Connection] = []

    def count(self, connection: Connection) -> None:
        self._settle()
        self._open.append(connection)

    def moved(self) -> Moved:
        self._settle()
        return _sum(self._ended, *(Moved(c.bytes_sent, c.bytes_received) for c in self._open))

    def _settle(self) -> None:
        ended = [c for c in self._open if c.failure is not None]
        self._open = [c for c in self._open if c.failure is None]
        self._ended = _sum(self._ended, *(Moved(c.bytes_sent, c.bytes_received) for c in ended))


def _sum(*parts: Moved) -> Moved:
    return Moved(sum(part.sent for part in parts), sum(part.received for part in parts))
