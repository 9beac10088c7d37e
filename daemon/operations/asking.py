"""What one daemon asks another when its doctor looks: what time it is there, and whether it can reach us."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

from mpcd.daemon.context import Context
from mpcd.daemon.errors import MpcdError, ProtocolViolation
from mpcd.daemon.network.peers import Peer

TIMEOUT = 15.0
AGAIN = 10.0  # seconds for which an answer about reaching somebody is good: a peer cannot make us dial without end


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """``clock``: seconds that the peer's clock is ahead of ours, give or take ``uncertainty``.

    ``reaches``: whether it can connect to us; None where it has no address of ours. ``why``: an error's code.
    """

    clock: float
    uncertainty: float
    reaches: bool | None
    why: str


class Asking:
    """Both ends of ``doctor.look``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._tried: dict[str, tuple[float, str]] = {}  # when, and the error's code
        self.handlers = {"doctor.look": self._serve}

    async def ask(self, peer: str) -> Answer:
        """Raises MpcdError; with the code unknown_method from a version that does not answer this."""
        before = time.time()
        answer = await self._context.net.call(peer, "doctor.look", {}, timeout=TIMEOUT)
        after = time.time()
        there, reaches, why = answer.get("time"), answer.get("reaches"), answer.get("why")
        if type(there) is not float or not isinstance(reaches, bool | None) or not isinstance(why, str):
            raise ProtocolViolation("the peer's answer is malformed")
        half = (after - before) / 2
        return Answer(there - (before + half), half, reaches, why[:40])

    async def reach(self, peer: Peer) -> None:
        """Connect to the peer's address, by the proxy if there is one, and see that each knows the other.

        Raises MpcdError in words for the operator.
        """
        await self._context.net.dialler.reach(peer)

    async def _serve(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        status = self._context.net.status(peer)
        known = self._context.peers.get(peer)
        reaches, why = (True, "") if status.dialled else (None, "")
        if reaches is None and known.address:
            why = await self._try(known)
            reaches = not why
        return {"time": time.time(), "reaches": reaches, "why": why}

    async def _try(self, peer: Peer) -> str:
        """The code of why this peer cannot be reached; empty when it can."""
        async with self._lock:
            when, why = self._tried.get(peer.name, (float("-inf"), ""))
            if time.monotonic() - when > AGAIN:
                why = ""
                try:
                    await self.reach(peer)
                except MpcdError as error:
                    why = error.code
                self._tried[peer.name] = time.monotonic(), why
            return why
