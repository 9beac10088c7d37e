"""What became of sessions, told both ways: how one ends here, and what the peer says of its side."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mpcd.daemon import log
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import Conflict, MpcdError, NotFound, ProtocolViolation, Refused
from mpcd.daemon.network.greeting import printable
from mpcd.daemon.sessions.live import LiveSessions
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, FINAL, MODEL_OWNER_ROLE, Session
from mpcd.daemon.tasks import Tasks, seen

UNKNOWN = "unknown"
PAGE = 200  # sessions in a message
OVERLAP = 60.0  # seconds: an end has the time at which it began to be written
REMEMBERED = 90 * 86400.0  # seconds for which an end is told again, once after each start and connection

T = TypeVar("T")

_log = log.get("sessions")


class News:
    """Both ends of ``session.states``."""

    def __init__(self, context: Context, live: LiveSessions) -> None:
        self._context = context
        self._live = live
        self._background = Tasks()
        self._ending: set[asyncio.Task[Session]] = set()
        self._told: dict[str, float] = {}  # by peer, until when it knows what ended
        self.handlers = {"session.states": self._serve_states, "session.ask": self._serve_ask}

    async def stop(self) -> None:
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._background.stop()

    async def end(self, id: str, state: str, reason: str, approved_by: str | None = None) -> Session:
        """Move a session to its end, stop what runs of it, tell the peer. Raises Conflict when it is over already."""
        return await self._end(functools.partial(self._context.records.move, id, state, reason, approved_by))

    async def fail(self, id: str, error: MpcdError) -> None:
        """``end`` as failed; the peer is told what of the error is its business."""
        records = self._context.records

        def move() -> Session:
            records.set_told(id, error.for_peer()["message"])
            session = records.move(id, "failed", str(error))
            _log.error("session failed", session=id, reason=error)
            return session

        with contextlib.suppress(Conflict):
            await self._end(move)

    async def _end(self, move: Callable[[], Session], tell: bool = True) -> Session:
        """All of it, even if the caller is cancelled meanwhile: whoever watches here, and the peer, get to know."""
        caller = asyncio.current_task()

        async def end() -> Session:
            session = await aside(move)
            if tell:
                self.tell(session.peer, [session])
            await self._live.end(session, caller)
            return session

        ending = asyncio.create_task(end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        ending.add_done_callback(seen)  # a cancelled caller takes no error
        return await asyncio.shield(ending)

    def tell(self, peer: str, sessions: list[Session]) -> None:
        """Best effort: what the peer misses it is told when it connects the next time."""
        if sessions and self._context.net.connected(peer):
            self._in_background(self._tell(peer, sessions))

    def catch_up(self, peer: str) -> None:
        """With a peer that has just connected: tell what ended meanwhile, and ask what became of the rest."""
        self._in_background(self._catch_up(peer))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(MpcdError):
                await work

        self._background.spawn(quietly())

    async def _catch_up(self, peer: str) -> None:
        now = time.time()
        ended = await aside(self._context.records.ended, peer, self._told.get(peer, now - REMEMBERED) - OVERLAP)
        for page in _pages(ended):
            await self._tell(peer, page)
        self._told[peer] = now
        unfinished = [session.id for session in await aside(self._context.records.open) if session.peer == peer]
        for ids in _pages(unfinished):
            answer = await self._context.net.call(peer, "session.ask", {"sessions": ids})
            await self._take(peer, answer.get("states"))

    async def _tell(self, peer: str, sessions: list[Session]) -> None:
        states = [await aside(self._entry, session) for session in sessions]
        await self._context.net.call(peer, "session.states", {"states": states})

    def _entry(self, session: Session) -> dict[str, Any]:
        return {
            "session": session.id,
            "state": session.state,
            "reason": self.reason_told(session),
            "by": session.approved_by,
        }

    def reason_told(self, session: Session) -> str:
        """The reason for a session's state, in words for the peer: the record's may name files or quote errors."""
        if session.state == "denied":
            return session.reason  # worded for the peer by the operator
        if session.state == "cancelled":
            return f"by the {session.role}"
        if session.state == "failed":
            return self._context.records.told(session.id) or f"it failed at the {session.role}'s side"
        return ""

    async def _serve_ask(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        """What became of the peer's sessions here."""
        ids = params.get("sessions")
        if not isinstance(ids, list) or len(ids) > PAGE:
            raise ProtocolViolation("session.ask is malformed")
        return {"states": [await aside(self._state_of, peer, str(id)[:64]) for id in ids]}

    def _state_of(self, peer: str, id: str) -> dict[str, Any]:
        with contextlib.suppress(NotFound):
            session = self._context.records.get(id)
            if session.peer == peer:
                return self._entry(session)
        return {"session": id, "state": UNKNOWN}

    async def _serve_states(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._take(peer, params.get("states"))
        return {}

    async def _take(self, peer: str, states: object) -> None:
        """What became of sessions at the peer; what its role may not decide is passed over."""
        if not isinstance(states, list) or len(states) > PAGE or not all(isinstance(entry, dict) for entry in states):
            raise ProtocolViolation("session.states is malformed")
        for entry in states:
            with contextlib.suppress(NotFound, Conflict):
                session = await aside(self._context.records.get, str(entry.get("session")))
                if session.peer == peer:
                    await self._take_one(session, entry)

    async def _take_one(self, session: Session, entry: dict[str, Any]) -> None:
        records, state, reason = self._context.records, entry.get("state"), printable(entry.get("reason"), 500)
        theirs = {"failed", "cancelled"}
        theirs |= {"denied", "approved"} if session.role == DATA_OWNER_ROLE else {"done"}
        if state == UNKNOWN and session.role == MODEL_OWNER_ROLE and not session.over:
            await self.fail(session.id, Refused("the data owner has no record of this session any more"))
        if not isinstance(state, str) or state not in theirs:
            return
        if not session.over and state != "approved":
            by = printable(entry.get("by"), 60)
            try:
                await self._end(functools.partial(records.move, session.id, state, reason, by), tell=False)
            except Conflict:
                session = await aside(records.get, session.id)
                if not session.over:
                    raise
        if session.over:
            # The two sides ended it in different ways before they heard of each other.
            if state in FINAL and (state != "done" or await aside(records.all_revealed, session.id)):
                await aside(records.outrank, session.id, state, reason)
            return
        # An approval, and what it binds, comes as the answer to the proposal, which is made again.
        self._live.wake(session.id)


def _pages(items: list[T]) -> list[list[T]]:
    return [items[at : at + PAGE] for at in range(0, len(items), PAGE)]
