"""What a protocol may do to the world: send, receive, compute. The rest is arithmetic.

Protocols are ``async def`` functions, but ``async`` here is not asyncio: awaiting yields one of three effects, and a
driver performs it. ``protocol/lockstep.py`` drives both parties in one thread (tests, estimates);
``daemon/network/driver.py`` drives one party over TLS.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from mpcd.protocol import wire
from mpcd.protocol.randomness import Prg

M = TypeVar("M")
R = TypeVar("R")

MODEL_OWNER = 0  # P0, server: holds the weights
DATA_OWNER = 1  # P1, client: holds the images


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Hand this frame to the peer. May return before the peer has it."""

    frame: wire.Frame


@dataclasses.dataclass(frozen=True, slots=True)
class Recv:
    """The peer's next frame as (header, payload); a payload over ``limit`` bytes must not even be read."""

    limit: int


@dataclasses.dataclass(frozen=True, slots=True)
class Compute:
    """Run a kernel that releases the GIL; the driver may do it in a thread."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


Effect = Send | Recv | Compute


@types.coroutine
def _perform(effect: Effect) -> Generator[Effect, Any, Any]:
    return (yield effect)


class Channel:
    """One party's end of a protocol run.

    ``party``: MODEL_OWNER or DATA_OWNER. ``session``: 16 bytes both ends agree on, hashed into every protocol that
    needs domain separation. ``prg``: where this party's randomness comes from (seeded by the OS; by tests to replay).
    """

    def __init__(self, party: int, session: bytes, prg: Prg | None = None) -> None:
        if party not in (MODEL_OWNER, DATA_OWNER) or len(session) != 16:
            raise ValueError("a channel needs party 0 or 1 and a 16-byte session id")
        self.party = party
        self.session = session
        self.prg = prg if prg is not None else Prg.fresh()
        self._sent = 0
        self._received = 0

    def public(self, value: Any) -> Any:
        """This party's share of a public value: the value at P0, 0 at P1."""
        return value if self.party == MODEL_OWNER else 0

    async def send(self, message: Any) -> None:
        frame = wire.encode(message, self._sent)
        self._sent += 1
        await _perform(Send(frame))

    async def recv(self, cls: type[M], **shapes: tuple[int, ...]) -> M:
        """The peer's next message, which must be a ``cls`` with arrays of exactly these shapes; else WireError."""
        header, payload = await _perform(Recv(wire.expected_size(cls, shapes)))
        self._received += 1
        return wire.decode(cls, header, payload, self._received - 1, shapes)

    async def exchange(self, message: M, **shapes: tuple[int, ...]) -> M:
        """Send ours, receive theirs: a symmetric step."""
        await self.send(message)
        return await self.recv(type(message), **shapes)

    async def compute(self, function: Callable[..., R], *args: Any) -> R:
        result: R = await _perform(Compute(function, args))
        return result
