"""Sessions: a model on a data set, a few images in flight, through broken links and restarts of either daemon.

The data owner drives (asking.py, running.py, lanes.py). Its record of finished images is on the disk before another
image takes their place, so a session goes on where it was; the images in flight are done again with fresh units. The
model owner (serving.py) serves images of sessions that it approved, never more than agreed, and marks a unit spent
before it answers. Every image in flight has its own unit, its own job and its own data connection: when one fails, no
other begins, and those in flight end.

One image (data owner first, so that neither reads a unit that the other does not call spent):

1. data owner: spend the oldest unit that both have; ``session.image`` with its id, a fresh job id, and the jobs of the
   images still in flight; the model owner stops serving any other of this session
2. model owner: spend it too, answer, open the channel of this job; data owner: open it
3. both: protocol/executor.infer over the unit, then the model owner sends its share of the scores (inference.py)
4. data owner: the integers are on the disk
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.catalogue import Catalogue
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.errors import MpcdError, NotFound
from mpcd.daemon.network.partner import Partner
from mpcd.daemon.offline.agreement import Agreement
from mpcd.daemon.offline.capacity import JobEstimate
from mpcd.daemon.offline.ledger import Stock
from mpcd.daemon.offline.making import Offline
from mpcd.daemon.sessions.admission import Admission, Expired, PeerChanged, expired
from mpcd.daemon.sessions.asking import Asking
from mpcd.daemon.sessions.lanes import Lanes
from mpcd.daemon.sessions.live import LiveSessions
from mpcd.daemon.sessions.news import News
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, MODEL_OWNER_ROLE, Session
from mpcd.daemon.sessions.running import Running
from mpcd.daemon.sessions.serving import Serving

WATCH = 15.0  # seconds between two looks at what should end

_log = log.get("sessions")


class Sessions:
    """Both roles put together, and what the control API calls."""

    def __init__(
        self, context: Context, catalogue: Catalogue, agreement: Agreement, partner: Partner, offline: Offline
    ) -> None:
        self._context = context
        self._live = LiveSessions(context)
        self._news = News(context, self._live)
        self._admission = Admission(context)
        self._asking = Asking(context, catalogue, offline, self._admission, self._news)
        self.lanes = Lanes(context, agreement, partner, offline, self._admission, self._live)
        self._running = Running(
            context, catalogue, offline, self._admission, self._asking, self.lanes, self._live, self._news
        )
        self.serving = Serving(context, agreement, partner, self._admission, self._live, self._news)
        self._watching: asyncio.Task[None] | None = None
        self.handlers = {**self.serving.handlers, **self._news.handlers}

    def resume(self) -> None:
        """At start: go on with what the data owner's side has not finished."""
        for session in self._context.records.open():
            if session.role == DATA_OWNER_ROLE:
                self._running.go(session.id)
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """End what has expired, or lost its peer, on both sides alike and whether they are connected or not."""
        due: set[str] = set()  # expired when looked at before, too: a clock that jumps may jump back
        while True:
            await asyncio.sleep(WATCH)
            try:
                now_due = set()
                for session in await aside(self._context.records.open):
                    try:
                        self._admission.check_peer(session)
                        if 0 < session.terms.expires < time.time():
                            now_due.add(session.id)
                            if session.id in due:
                                raise Expired(expired(session), "start a new session, if need be with --expires")
                    except (PeerChanged, Expired) as error:
                        await self._news.fail(session.id, error)
                due = now_due
            except Exception as error:  # the next round may have more luck
                known = isinstance(error, MpcdError)
                _log.error("sessions cannot be watched over", reason=error, exc_info=None if known else error)

    async def drain(self, seconds: float) -> None:
        """Begin no image any more; give those in flight this long."""
        self._live.draining = True
        flying = [*self.lanes.flying, *(served.task for served in self.serving.flying.values())]
        if flying:
            _log.info("finishing the images in flight", images=len(flying), seconds=seconds)
            await asyncio.wait(flying, timeout=seconds)

    async def stop(self) -> None:
        """At the end of the daemon: sessions stay as they are and go on at the next start."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._live.stop()
        await self._news.stop()

    def on_connect(self, peer: str) -> None:
        """Wake what waits for this peer; tell it what ended meanwhile."""
        self._live.wake_all_of(peer)
        self._news.catch_up(peer)

    async def start(
        self,
        peer: str,
        name: str,
        dataset_name: str,
        images: int | None,
        reveal: str,
        expires: int | None,
        estimate_only: bool,
    ) -> tuple[Session | None, JobEstimate]:
        """Propose a session that is over ``expires`` seconds from now; returns once the peer has it."""
        session, estimate = await self._asking.start(peer, name, dataset_name, images, reveal, expires, estimate_only)
        if session is not None:
            self._running.go(session.id)
        return session, estimate

    async def approve(self, beginning: str, digest: str | None = None) -> Session:
        return await self.serving.approve(beginning, digest)

    async def deny(self, beginning: str, reason: str) -> Session:
        return await self.serving.deny(beginning, reason)

    async def cancel(self, beginning: str) -> Session:
        """On both sides; on the peer's as soon as it is connected."""
        found = self._context.records.find(beginning)
        return await self._news.end(found.id, "cancelled", f"by the {found.role}")

    def job(self, id: str) -> Job:
        """Whose progress a watcher follows; ends with the session."""
        return self._live.of(id).job

    async def describe(self, sessions: Iterable[Session]) -> list[dict[str, Any]]:
        """As the control API has them (docs/control-api.md)."""
        ready = await aside(self._context.ledger.ready_counts)
        return [self._describe(session, ready) for session in sessions]

    def _describe(self, session: Session, ready: Mapping[Stock, int]) -> dict[str, Any]:
        terms, units = session.terms, 0
        with contextlib.suppress(NotFound):
            peer = self._context.peers.get(session.peer).id
            units = ready.get(Stock(peer, terms.model_commitment, terms.network_digest), 0)
        return {
            "id": session.id,
            "role": session.role,
            "peer": session.peer,
            "model": terms.model,
            "dataset": session.own.get("dataset"),
            "reveal": terms.reveal,
            "images": terms.images,
            "done": session.done,
            "attempts": session.attempts,
            "units_ready": units,
            "state": session.state,
            "reason": session.reason,
            "expires": terms.expires or None,
            "approval": self._approval(session),
            "model_commitment": terms.model_commitment,
            "dataset_commitment": terms.dataset_commitment,
            "network_digest": terms.network_digest,
            "recipe_digest": terms.recipe_digest,
            "ring": terms.ring,
            "software": self._context.software,
            "peer_software": session.peer_software,
            "created": session.created,
            "approved": session.approved,
            "approved_by": session.approved_by,
            "started": session.started,
            "finished": session.finished,
            "offline": {"seconds": session.offline_seconds, "bytes": session.offline_bytes},
            "online": {"seconds": session.online_seconds, "bytes": session.online_bytes},
        }

    def _approval(self, session: Session) -> dict[str, Any] | None:
        """What is bound; at the model owner, while it decides, what would be."""
        if session.bound is not None and session.state != "proposed":
            return session.bound.told(session.terms)
        with contextlib.suppress(NotFound):
            if session.state == "proposed" and session.role == MODEL_OWNER_ROLE:
                return self._admission.bind(session).told(session.terms)
        return None
