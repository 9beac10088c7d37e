"""What became of sessions, told both ways: how one ends here, and what the peer says of its side."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import Conflict, MpcdError, NotFound, ProtocolViolation
from mpcd.daemon.network.greeting import printable
from mpcd.daemon.sessions.live import LiveSessions
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, Session

RECENT = 200  # sessions whose end is told again when the peer connects

_log = log.get("sessions")


class News:
    """Both ends of ``session.states``."""

    def __init__(self, context: Context, live: LiveSessions) -> None:
        self._context = context
        self._live = live
        self._background: set[asyncio.Task[None]] = set()
        self.handlers = {"session.states": self._serve_states}

    async def stop(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def end(self, id: str, state: str, reason: str, approved_by: str | None = None) -> Session:
        """Move a session to its end, stop what runs of it, tell the peer. Raises Conflict when it is over already."""
        session = await aside(self._context.records.move, id, state, reason, approved_by)
        await self._live.end(session)
        self.tell(session.peer, [session])
        return session

    async def fail(self, id: str, error: MpcdError) -> None:
        """``end`` as failed; the peer is told what of the error is its business."""
        with contextlib.suppress(Conflict):
            await aside(self._context.records.set_told, id, error.for_peer()["message"])
            session = await aside(self._context.records.move, id, "failed", str(error))
            _log.error("session failed", session=id, reason=str(error))
            self.tell(session.peer, [session])

    def tell(self, peer: str, sessions: list[Session]) -> None:
        """Best effort: what the peer misses it is told when it connects the next time."""
        if not sessions or not self._context.net.connected(peer):
            return
        task = asyncio.create_task(self._tell(peer, sessions))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def tell_ended(self, peer: str) -> None:
        ended = [s for s in self._context.records.all() if s.peer == peer and s.over]
        self.tell(peer, ended[:RECENT])

    async def _tell(self, peer: str, sessions: list[Session]) -> None:
        states = [
            {"session": s.id, "state": s.state, "reason": await aside(self.reason_told, s), "by": s.approved_by}
            for s in sessions
        ]
        with contextlib.suppress(MpcdError):
            await self._context.net.call(peer, "session.states", {"states": states})

    def reason_told(self, session: Session) -> str:
        """The reason for a session's state, in words for the peer: the record's may name files or quote errors."""
        if session.state == "denied":
            return session.reason  # worded for the peer by the operator
        if session.state == "cancelled":
            return f"by the {session.role}"
        if session.state == "failed":
            return self._context.records.told(session.id) or f"it failed at the {session.role}'s side"
        return ""

    async def _serve_states(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        """What became of sessions at the peer; what its role may not decide is passed over."""
        states = params.get("states")
        if not isinstance(states, list) or len(states) > RECENT:
            raise ProtocolViolation("session.states is malformed")
        records = self._context.records
        for entry in states:
            if not isinstance(entry, dict):
                raise ProtocolViolation("session.states is malformed")
            state, reason = entry.get("state"), printable(entry.get("reason"), 500)
            with contextlib.suppress(NotFound, Conflict):
                session = records.get(str(entry.get("session")))
                if session.peer != peer or session.over:
                    continue
                theirs = {"failed", "cancelled"}
                theirs |= {"denied", "approved"} if session.role == DATA_OWNER_ROLE else {"done"}
                if state not in theirs:
                    continue
                session = await aside(records.move, session.id, state, reason, printable(entry.get("by"), 60))
                if session.over:
                    await self._live.end(session)
                self._live.wake(session.id)
        return {}
