"""Data owner: a session from the approval to its last image, through broken links and restarts of either daemon."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from mpcd.daemon import log
from mpcd.daemon.catalogue import Catalogue
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.errors import (
    BadInput,
    Conflict,
    LinkError,
    Mismatch,
    MpcdError,
    NotEnough,
    PeerClosed,
    PeerError,
    PeerSilent,
    PeerUnreachable,
    Refused,
)
from mpcd.daemon.files import CannotWrite
from mpcd.daemon.network.greeting import printable
from mpcd.daemon.offline.capacity import BATCH
from mpcd.daemon.offline.making import Offline
from mpcd.daemon.sessions.admission import Admission, PeerChanged
from mpcd.daemon.sessions.asking import Asking
from mpcd.daemon.sessions.lanes import Lanes, Turn
from mpcd.daemon.sessions.live import LiveSessions
from mpcd.daemon.sessions.news import News
from mpcd.daemon.sessions.policy import NotNow
from mpcd.daemon.sessions.records import FINAL, Session

ASK_AGAIN = 30.0  # whether a proposal was decided; the peer also tells by itself
NO_ROOM = (NotEnough.code, CannotWrite.code)
NO_ROOM_PAUSE = 30.0
NOT_NOW_PAUSE = 30.0
MARGIN = 1.0  # seconds before the model owner's hours end, in which no image begins: it would cost its unit
PASSING = (
    *NO_ROOM,
    "ledger",
    "internal",
    "not_found",
    "busy",
    "stopped",
    "error",
    LinkError.code,
    PeerClosed.code,
    PeerSilent.code,
    PeerUnreachable.code,
)  # a peer's errors to try again after
FAILURES = 8  # units spent in a row without a finished image

_log = log.get("sessions")


class Running:
    """A task for each session that is not over. Calls ``session.begin``."""

    def __init__(
        self,
        context: Context,
        catalogue: Catalogue,
        offline: Offline,
        admission: Admission,
        asking: Asking,
        lanes: Lanes,
        live: LiveSessions,
        news: News,
    ) -> None:
        self._context = context
        self._catalogue = catalogue
        self._offline = offline
        self._admission = admission
        self._asking = asking
        self._lanes = lanes
        self._live = live
        self._news = news

    def go(self, id: str) -> None:
        task = asyncio.create_task(self._run(id))
        self._live.attach(id, task)

        def gone(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                _log.error("session runner failed", session=id, exc_info=task.exception())

        task.add_done_callback(gone)

    async def _run(self, id: str) -> None:
        """Until the session is over: again and again from what the disk says, whatever breaks."""
        context, records, job = self._context, self._context.records, self._live.of(id).job
        context.jobs.running.add(job)
        failures, obstacles, done, pause = 0, 0, -1, 0.5
        try:
            while not (session := records.get(id)).over:
                if session.done > done:
                    failures, obstacles, done, pause = 0, 0, session.done, 0.5
                try:
                    await self._connected(session, job)
                    await self._advance(session, job, careful=obstacles > 0)
                    continue
                except asyncio.CancelledError:
                    raise
                except LinkError as error:
                    obstacle: Exception = error
                except NotNow as error:
                    await self._wait(session, job, str(error))
                    continue
                except PeerError as error:
                    if error.code == NotNow.code:
                        await self._wait(session, job, f"{session.peer}: {error}")
                        continue
                    if error.code not in PASSING:
                        await self._fail(session, job, error)
                        return
                    obstacle = error
                except (BadInput, Mismatch, PeerChanged, Refused, Conflict) as error:
                    await self._fail(session, job, error)
                    return
                except Exception as error:
                    if not isinstance(error, MpcdError):
                        _log.error("session met an error", session=id, exc_info=error)
                    obstacle = error
                session = records.get(id)
                if session.over:
                    return
                in_words = str(obstacle) or type(obstacle).__name__
                _log.warning("session interrupted", session=id, reason=obstacle, done=session.done)
                obstacles += 1
                no_room = getattr(obstacle, "code", "") in NO_ROOM
                if context.net.connected(session.peer) and not no_room:
                    failures += 1
                if failures >= FAILURES:
                    too_many = MpcdError(f"{failures} attempts in a row failed, the last: {in_words}")
                    await self._fail(session, job, too_many)
                    return
                await self._note(id, in_words)
                job.report("waiting", session.done, session.terms.images, in_words)
                await self._live.sleep(id, NO_ROOM_PAUSE if no_room else pause)
                pause = min(pause * 2, 30.0)
        finally:
            context.jobs.running.discard(job)
            if records.get(id).over:
                self._live.close(id)

    async def _advance(self, session: Session, job: Job, careful: bool) -> None:
        """From here to the end, or to the first obstacle. ``careful``: one image alone before there are several."""
        context, records = self._context, self._context.records
        id, peer, terms = session.id, session.peer, session.terms
        if session.state == "proposed":
            job.report("waiting", 0, terms.images, f"for {peer} to approve session {id[:12]}")
            session = await self._asking.propose(session)
            if session.state == "proposed":
                await self._live.sleep(id, ASK_AGAIN)
            return
        await aside(self._admission.check, session)
        model = await self._catalogue.get(peer, terms.model)
        terms.check_model(model)
        dataset = await aside(context.library.dataset, session.own["dataset"])
        if dataset.commitment != terms.dataset_commitment:
            raise Mismatch.of("data set commitment", dataset.commitment, terms.dataset_commitment)
        wanted = await self._lanes.width(peer, model)
        answer = await context.net.call(
            peer,
            "session.begin",
            {"session": id, "terms": terms.as_dict(), "software": context.software, "in_flight": wanted},
        )
        await aside(records.set_peer_software, id, printable(answer.get("software"), 100))
        if answer.get("state") in FINAL:
            if answer["state"] == "done":
                raise Refused("the model owner holds this session for finished")
            await aside(records.move, id, answer["state"], printable(answer.get("reason"), 500))
            return
        await self._asking.take_approval(id, answer)
        until = time.monotonic() + _seconds(answer.get("seconds")) - MARGIN
        await aside(records.note, id, "")
        estimate = await self._asking.estimate(peer, model, terms.images - session.done)
        self._asking.check_room(estimate)
        granted = answer.get("in_flight", 1)
        width = max(1, min(wanted, granted)) if isinstance(granted, int) else 1
        done = await aside(records.results, id)
        missing = deque(n for n in range(terms.images) if n not in done)
        total = len(missing)
        _log.info("images begin", session=id, images=total, in_flight=width, units_ready=estimate.ready)
        while missing and time.monotonic() < until:
            async with context.jobs.processor(job):
                turn = Turn(records.get(id), model, dataset, missing, job, until)
                await self._lanes.run(turn, width, careful)
            careful = careful and not turn.landed
            if missing and turn.short and time.monotonic() < until:
                await aside(records.move, id, "offline")
                await aside(self._admission.check, records.get(id))
                count = min(BATCH, len(missing))
                await self._offline.make_batch(peer, model, count, job, id, total - len(missing), total)
        if missing:  # it is too late in the day: asked again, both sides say until when
            await self._live.sleep(id, MARGIN)
            return
        _log.info("session done", session=id)
        await self._news.end(id, "done", "")

    async def _wait(self, session: Session, job: Job, why: str) -> None:
        """For a time of the day, or the mending of a policy: no fault, however long."""
        if session.reason != why:
            _log.info("session waits", session=session.id, reason=why, done=session.done)
            await self._note(session.id, why)
        job.report("waiting", session.done, session.terms.images, why)
        await self._live.sleep(session.id, NOT_NOW_PAUSE)

    async def _note(self, id: str, why: str) -> None:
        """A full disk keeps nobody from waiting for room on it."""
        try:
            await aside(self._context.records.note, id, why)
        except MpcdError as error:
            _log.warning("what a session waits for cannot be written down", session=id, reason=error)

    async def _fail(self, session: Session, job: Job, error: MpcdError) -> None:
        """As soon as the disk takes it: nothing else of this session goes on meanwhile."""
        while True:
            try:
                await self._news.fail(session.id, error)
                return
            except MpcdError as unwritten:
                _log.error("a session's failure cannot be written down", session=session.id, reason=unwritten)
                job.report("waiting", session.done, session.terms.images, str(unwritten))
            await self._live.sleep(session.id, NO_ROOM_PAUSE)

    async def _connected(self, session: Session, job: Job) -> None:
        while not self._context.net.connected(session.peer):
            job.report("waiting", session.done, session.terms.images, f"for {session.peer} to be connected")
            await self._live.sleep(session.id, ASK_AGAIN)


def _seconds(given: object) -> float:
    """How long the peer says that it will serve; no limit where it says none."""
    return max(0.0, float(given)) if isinstance(given, int | float) and not isinstance(given, bool) else float("inf")
