"""Sessions: a model on a data set, a few images in flight, through broken links and restarts of either daemon.

The data owner drives. Its record of finished images is on the disk before another image takes their place, so a session
goes on where it was; the images in flight are done again with fresh units. The model owner serves images of sessions
that it approved, never more than agreed, and marks a unit spent before it answers. Every image in flight has its own
unit, its own job and its own data connection: when one fails, no other begins, and those in flight end.

One image (data owner first, so that neither reads a unit that the other does not call spent):

1. data owner: spend the oldest unit that both have; ``session.image`` with its id, a fresh job id, and the jobs of the
   images still in flight; the model owner stops serving any other of this session
2. model owner: spend it too, answer, open the channel of this job; data owner: open it
3. both: protocol/executor.infer over the unit, then the model owner sends its share of the scores
4. data owner: the integers are on the disk
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon import log
from mpcd.daemon.catalogue import Catalogue
from mpcd.daemon.context import Context, Mismatch, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.errors import (
    BadInput,
    Conflict,
    LinkError,
    MpcdError,
    NotEnough,
    NotFound,
    PeerError,
    ProtocolViolation,
    Refused,
)
from mpcd.daemon.image import preprocess
from mpcd.daemon.image.dataset import Dataset
from mpcd.daemon.library import Model, ring_text
from mpcd.daemon.network import driver
from mpcd.daemon.network.greeting import printable
from mpcd.daemon.network.partner import Partner, Stopped
from mpcd.daemon.offline import capacity
from mpcd.daemon.offline.agreement import Agreement
from mpcd.daemon.offline.capacity import BATCH, JobEstimate
from mpcd.daemon.offline.ledger import LedgerError, Stock
from mpcd.daemon.offline.making import Offline
from mpcd.daemon.offline.store import UnitReader
from mpcd.daemon.sessions import flight
from mpcd.daemon.sessions.flight import Flight
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, FINAL, MODEL_OWNER_ROLE, RUNNING, Session, Terms
from mpcd.daemon.version import PROTOCOL_VERSION
from mpcd.protocol import executor, preprocessing
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.network import Network, PrivateNumbers

OPEN_TIMEOUT = 60.0
ASK_AGAIN = 30.0  # whether a proposal was decided; the peer also tells by itself
NO_ROOM_PAUSE = 30.0
GRACE = 2.0  # for what has sent its last message and only has to write that down
PASSING = (
    "not_enough",
    "ledger",
    "internal",
    "not_found",
    "busy",
    "stopped",
    "error",
)  # a peer's errors to try again after
FAILURES = 8  # units spent in a row without a finished image
MOST_PROPOSED = 20  # of one peer
RECENT = 200  # sessions whose end is told again when the peer connects

_log = log.get("sessions")


class Busy(MpcdError):
    """This image is being served, or as many others as agreed."""

    code = "busy"
    exit_status = 6
    shared = True


class _Turn:
    """The data owner's images of one session between taking the processor and giving it back."""

    def __init__(self, session: Session, model: Model, dataset: Dataset, missing: deque[int], job: Job) -> None:
        self.id, self.peer = session.id, session.peer
        self.model = model
        self.missing = missing
        self.flight = Flight(job, session.done, session.terms.images)
        self.begun = 0
        self.landed = 0
        self.seconds = 0.0
        self.short = False  # of units
        self.error: Exception | None = None
        self.proven = asyncio.Event()  # an image came through, or none will
        self._dataset = dataset
        self._ahead: dict[int, asyncio.Task[npt.NDArray[np.int64]]] = {}

    async def load(self, number: int) -> npt.NDArray[np.int64]:
        """The image's integers; then the next one's are made ready meanwhile."""
        image = await (self._ahead.pop(number, None) or aside(_load, self._dataset, number, self.model))
        if self.missing and self.missing[0] not in self._ahead:
            task = asyncio.create_task(aside(_load, self._dataset, self.missing[0], self.model))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # not every one is used
            self._ahead[self.missing[0]] = task
        return image


@dataclasses.dataclass(slots=True)
class _Served:
    """An image in flight at the model owner."""

    session: str
    image: int
    task: asyncio.Task[None]


class Sessions:
    """Both ends of ``session.*``."""

    def __init__(
        self, context: Context, catalogue: Catalogue, agreement: Agreement, partner: Partner, offline: Offline
    ) -> None:
        self._partner = partner
        self._context = context
        self._catalogue = catalogue
        self._agreement = agreement
        self._offline = offline
        self._runners: dict[str, asyncio.Task[None]] = {}
        self._serving: dict[bytes, _Served] = {}  # by the image's job
        self._granted: dict[str, int] = {}  # images in flight that a session may have, at the model owner
        self._flights: dict[str, Flight] = {}  # of sessions served
        self._jobs: dict[str, Job] = {}
        self._woken: dict[str, asyncio.Event] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._images: set[asyncio.Task[int | None]] = set()  # in flight, at the data owner
        self._draining = False
        self._numbers: tuple[str, PrivateNumbers] | None = None
        self._approving = asyncio.Lock()  # between looking at what was asked so far and writing down what is granted
        self._numbers_lock = asyncio.Lock()
        self.handlers = {
            "session.propose": self._serve_propose,
            "session.begin": self._serve_begin,
            "session.image": self._serve_image,
            "session.states": self._serve_states,
        }

    def resume(self) -> None:
        """At start: go on with what the data owner's side has not finished."""
        for session in self._context.records.all():
            if session.role == DATA_OWNER_ROLE and not session.over:
                self._go(session.id)

    async def drain(self, seconds: float) -> None:
        """Begin no image any more; give those in flight this long."""
        self._draining = True
        flying = [*self._images, *(served.task for served in self._serving.values())]
        if flying:
            _log.info("finishing the images in flight", images=len(flying), seconds=seconds)
            await asyncio.wait(flying, timeout=seconds)

    async def stop(self) -> None:
        """At the end of the daemon: sessions stay as they are and go on at the next start."""
        serving = [served.task for served in self._serving.values()]
        tasks = [*self._runners.values(), *serving, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_connect(self, peer: str) -> None:
        """Wake what waits for this peer; tell it what ended meanwhile."""
        self._wake(lambda session: session.peer == peer)
        ended = [s for s in self._context.records.all() if s.peer == peer and s.over]
        self._tell_soon(peer, ended[:RECENT])

    # What the control API calls

    async def start(
        self, peer: str, name: str, dataset_name: str, images: int | None, reveal: str, estimate_only: bool
    ) -> tuple[Session | None, JobEstimate]:
        """Propose a session; returns once the peer has it."""
        context = self._context
        if reveal != "scores":
            raise BadInput(f"{reveal!r} cannot be revealed", "scores can")
        dataset = await aside(context.library.dataset, dataset_name)
        model = await self._catalogue.get(peer, name)
        dataset.check_recipe(model.recipe)
        images = len(dataset.entries) if images is None else images
        if not 1 <= images <= len(dataset.entries):
            raise BadInput(f"{images} images asked for, data set {dataset_name} has {len(dataset.entries)}")
        estimate = await self._estimate(peer, model, images)
        if estimate_only:
            return None, estimate
        self._check_room(estimate)
        terms = _terms(model, images, reveal, dataset.commitment)
        own = {
            "dataset": dataset_name,
            "findings": list(model.network.findings),
            "output_scale": model.network.output_scale,
        }
        session = await aside(context.records.add, os.urandom(16).hex(), DATA_OWNER_ROLE, peer, terms, own, "")
        try:
            session = await self._propose(session)
        except MpcdError as error:
            await aside(context.records.move, session.id, "failed", str(error))
            raise
        self._go(session.id)
        return session, estimate

    async def approve(self, beginning: str) -> Session:
        return await self._decide(beginning, "approved", "")

    async def deny(self, beginning: str, reason: str) -> Session:
        return await self._decide(beginning, "denied", reason or "the model owner said no")

    async def cancel(self, beginning: str) -> Session:
        """On both sides; on the peer's as soon as it is connected."""
        found = self._context.records.find(beginning)
        session = await aside(self._context.records.move, found.id, "cancelled", f"by the {found.role}")
        await self._end(session)
        self._tell_soon(session.peer, [session])
        return session

    def job(self, id: str) -> Job:
        """Whose progress a watcher follows; ends with the session."""
        if id not in self._jobs:
            session = self._context.records.get(id)
            self._jobs[id] = Job(session.peer, session.terms.model)
            if session.role == MODEL_OWNER_ROLE:
                waiting = "for our approval" if session.state == "proposed" else f"for {session.peer}"
                self._jobs[id].report("waiting", session.done, session.terms.images, waiting)
        return self._jobs[id]

    def describe(self, session: Session) -> dict[str, Any]:
        """As the control API has it (docs/control-api.md)."""
        terms = session.terms
        with contextlib.suppress(NotFound):
            stock = Stock(
                self._context.peers.get(session.peer).fingerprint, terms.model_commitment, terms.network_digest
            )
            return _describe(session, len(self._context.ledger.ready_units(stock)), self._context.software)
        return _describe(session, 0, self._context.software)

    # Data owner

    def _go(self, id: str) -> None:
        task = asyncio.create_task(self._run(id))
        self._runners[id] = task

        def gone(task: asyncio.Task[None]) -> None:
            self._runners.pop(id, None)
            if not task.cancelled() and task.exception() is not None:
                _log.error("session runner failed", session=id, exc_info=task.exception())

        task.add_done_callback(gone)

    async def _run(self, id: str) -> None:
        """Until the session is over: again and again from what the disk says, whatever breaks."""
        context, records, job = self._context, self._context.records, self.job(id)
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
                except PeerError as error:
                    if error.code not in PASSING:
                        await self._fail(id, error)
                        return
                    obstacle = error
                except (BadInput, Mismatch, Refused, Conflict) as error:
                    await self._fail(id, error)
                    return
                except Exception as error:
                    if not isinstance(error, MpcdError):
                        _log.error("session met an error", session=id, exc_info=error)
                    obstacle = error
                session = records.get(id)
                if session.over:
                    return
                in_words = str(obstacle) or type(obstacle).__name__
                _log.warning("session interrupted", session=id, reason=in_words, done=session.done)
                obstacles += 1
                no_room = getattr(obstacle, "code", "") == NotEnough.code
                if context.net.connected(session.peer) and not no_room:
                    failures += 1
                if failures >= FAILURES:
                    await self._fail(id, MpcdError(f"{failures} attempts in a row failed, the last: {in_words}"))
                    return
                await aside(records.note, id, in_words)
                job.report("waiting", session.done, session.terms.images, in_words)
                await self._sleep(id, NO_ROOM_PAUSE if no_room else pause)
                pause = min(pause * 2, 30.0)
        finally:
            context.jobs.running.discard(job)
            if records.get(id).over:
                self._close_job(id)

    async def _advance(self, session: Session, job: Job, careful: bool) -> None:
        """From here to the end, or to the first obstacle. ``careful``: one image alone before there are several."""
        context, records = self._context, self._context.records
        id, peer = session.id, session.peer
        if session.state == "proposed":
            job.report("waiting", 0, session.terms.images, f"for {peer} to approve session {id[:12]}")
            session = await self._propose(session)
            if session.state == "proposed":
                await self._sleep(id, ASK_AGAIN)
            return
        model = await self._catalogue.get(peer, session.terms.model)
        _same_terms(session.terms, _terms(model, session.terms.images, session.terms.reveal, ""))
        dataset = await aside(context.library.dataset, session.own["dataset"])
        if dataset.commitment != session.terms.dataset_commitment:
            raise Mismatch.of("data set commitment", dataset.commitment, session.terms.dataset_commitment)
        wanted = await self._in_flight(peer, model)
        answer = await context.net.call(
            peer,
            "session.begin",
            {"session": id, "terms": session.terms.as_dict(), "software": context.software, "in_flight": wanted},
        )
        await aside(records.set_peer_software, id, printable(answer.get("software"), 100))
        if answer.get("state") in FINAL:
            if answer["state"] == "done":
                raise Refused("the model owner holds this session for finished")
            await aside(records.move, id, answer["state"], printable(answer.get("reason"), 500))
            return
        await aside(records.note, id, "")
        estimate = await self._estimate(peer, model, session.terms.images - session.done)
        self._check_room(estimate)
        granted = answer.get("in_flight", 1)
        width = max(1, min(wanted, granted)) if isinstance(granted, int) else 1
        missing = deque(n for n in range(session.terms.images) if n not in records.results(id))
        total = len(missing)
        _log.info("images begin", session=id, images=total, in_flight=width, units_ready=estimate.ready)
        while missing:
            async with context.jobs.processor(job):
                turn = _Turn(records.get(id), model, dataset, missing, job)
                await self._turn(turn, width, careful)
            careful = careful and not turn.landed
            if missing and turn.short:
                await aside(records.move, id, "offline")
                count = min(BATCH, len(missing))
                await self._offline.make_batch(peer, model, count, job, id, total - len(missing), total)
        _log.info("session done", session=id)
        await self._end(await aside(records.move, id, "done"))
        self._tell_soon(peer, [records.get(id)])

    async def _in_flight(self, peer: str, model: Model) -> int:
        """How many images at the same time the data owner wants: as configured, or for ``auto`` what suits the link."""
        wanted = self._context.config.online.in_flight
        if not isinstance(wanted, int):
            speed = await self._offline.link_speed.measure(peer)
            image = await aside(preprocessing.estimate, model.network, 1, BATCH)
            needs = len(await aside(preprocessing.plan, model.network))
            rate = self._context.records.rate(self._agreement.stock(peer, model).peer, "online")
            wanted = flight.choose(speed, image, needs, image.cots / (rate or capacity.GUESS["online"]))
        return self._fitting(wanted, model)

    def _fitting(self, wanted: int, model: Model) -> int:
        """As many of them as memory and connections allow."""
        limits = self._context.config.limits
        return capacity.images_in_flight(min(wanted, limits.channels_per_peer), model.network, limits.memory_gib)

    async def _turn(self, turn: _Turn, width: int, careful: bool) -> None:
        """Images, ``width`` of them in flight: until none is missing, units run out, or another job waits.

        When one fails, the others end; then its error is raised.
        """
        if not careful:
            turn.proven.set()
        async with asyncio.TaskGroup() as lanes:
            for place in range(min(width, len(turn.missing))):
                lanes.create_task(self._lane(turn, place, width))
        if turn.error is not None:
            raise turn.error
        if turn.landed:
            fingerprint = self._agreement.stock(turn.peer, turn.model).peer
            cots = (await aside(preprocessing.estimate, turn.model.network, turn.landed, BATCH)).cots
            if cots and turn.seconds > 0:
                await aside(self._context.records.learn_rate, fingerprint, "online", cots / turn.seconds)

    async def _lane(self, turn: _Turn, place: int, width: int) -> None:
        """One image after the other."""
        if place:
            await turn.proven.wait()
        while turn.missing and not turn.short and turn.error is None:
            if turn.begun >= width and self._context.jobs.contended:
                break
            turn.begun += 1
            number = turn.missing.popleft()
            try:
                if not await self._image(turn, number):
                    turn.short = True
                    turn.missing.appendleft(number)
            except Exception as error:
                turn.error = turn.error or error
            turn.proven.set()

    async def _image(self, turn: _Turn, number: int) -> bool:
        """One image into the records; False when there is no unit for it."""
        context, records, id, peer = self._context, self._context.records, turn.id, turn.peer
        stock = self._agreement.stock(peer, turn.model)
        self._check_draining()
        if not await aside(context.ledger.ready_units, stock):
            return False
        image = await turn.load(number)
        unit_job = os.urandom(16)

        def progress(at: int, of: int) -> None:
            turn.flight.progress(unit_job, at, of)

        async def keep(logits: npt.NDArray[np.int64] | None) -> None:
            assert logits is not None
            await aside(records.image_done, id, number, [int(x) for x in logits])

        async def half() -> int | None:
            async with self._agreement.lock(peer):
                self._check_draining()
                units = await aside(context.ledger.ready_units, stock)
                if not units:
                    return None
                await aside(records.move, id, "online")
                await aside(records.attempt, id)
                wanted = {"session": id, "image": number, "unit": units[0], "job": unit_job, "beside": turn.flight.jobs}
                turn.flight.begin(unit_job)
                try:
                    spent = await aside(context.ledger.spend, units[0], id, number)
                    await context.net.call(peer, "session.image", wanted)
                except BaseException:
                    await aside(self._remove_spent, units[0])
                    raise
            reader = await aside(context.store.open, spent, DATA_OWNER)
            return await self._infer(
                DATA_OWNER, peer, unit_job, turn.model.network, None, reader, image, self.job(id), progress, keep
            )

        work = asyncio.create_task(self._partner.run(peer, unit_job, half()))
        self._images.add(work)
        work.add_done_callback(self._images.discard)
        try:
            moved = await work
            if moved is None:
                return False
            seconds = turn.flight.landed(unit_job)
            turn.landed += 1
            turn.seconds += seconds
            await aside(records.spent_time, id, "online", seconds, moved)
            return True
        finally:
            turn.flight.lost(unit_job)

    async def _propose(self, session: Session) -> Session:
        """Tell the peer, or ask it again; its decision so far goes into the record."""
        context = self._context
        answer = await context.net.call(
            session.peer,
            "session.propose",
            {"session": session.id, "terms": session.terms.as_dict(), "software": context.software},
        )
        await aside(context.records.set_peer_software, session.id, printable(answer.get("software"), 100))
        state = answer.get("state")
        if state == "proposed":
            return context.records.get(session.id)
        if state in RUNNING:
            state = "approved"
        elif state not in FINAL or state == "done":
            raise ProtocolViolation(f"the peer calls a new session {str(state)[:20]!r}")
        return await aside(
            context.records.move,
            session.id,
            state,
            printable(answer.get("reason"), 500),
            printable(answer.get("approved_by"), 60),
        )

    async def _estimate(self, peer: str, model: Model, images: int) -> JobEstimate:
        """As for offline.make, but a session makes a batch, uses it up, and makes the next: less disk."""
        whole = await self._offline.estimate(peer, model, images)
        if whole.missing <= BATCH:
            return whole
        batch = await self._offline.estimate(peer, model, BATCH, 0)
        return dataclasses.replace(whole, disk_bytes=batch.disk_bytes, peer_disk_bytes=batch.peer_disk_bytes)

    def _check_room(self, estimate: JobEstimate) -> None:
        limits = self._context.config.limits
        capacity.check_memory(estimate.memory_bytes, limits.memory_gib)
        if estimate.missing:
            capacity.check_disk(estimate.disk_bytes, self._context.store.free_bytes(), limits.disk_reserve_gib)

    async def _connected(self, session: Session, job: Job) -> None:
        while not self._context.net.connected(session.peer):
            job.report("waiting", session.done, session.terms.images, f"for {session.peer} to be connected")
            await self._sleep(session.id, ASK_AGAIN)

    async def _sleep(self, id: str, seconds: float) -> None:
        """Until the time is over or something happened to this session or its peer."""
        event = self._woken.setdefault(id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
        event.clear()

    def _wake(self, which: Callable[[Session], bool]) -> None:
        for id, event in self._woken.items():
            if which(self._context.records.get(id)):
                event.set()

    # Both

    async def _infer(
        self,
        party: int,
        peer: str,
        unit_job: bytes,
        network: Network,
        numbers: PrivateNumbers | None,
        reader: UnitReader,
        image: npt.NDArray[np.int64] | None,
        job: Job,
        progress: Callable[[int, int], None],
        keep: Callable[[npt.NDArray[np.int64] | None], Awaitable[None]],
        before_reveal: Callable[[], Awaitable[None]] | None = None,
    ) -> int:
        """The online protocol of one image; bytes both ways.

        ``keep`` gets the integers (at the data owner); ``before_reveal`` runs before the share of them goes out.
        """
        threads = self._context.executor
        try:
            connection = await self._context.net.open_channel(peer, unit_job, OPEN_TIMEOUT)
            try:
                await self._context.kernels.wait(job)
                channel = Channel(party, unit_job)
                work = executor.infer(channel, network, numbers, reader, image, progress)
                share = await driver.drive(work, connection, threads)
                if before_reveal is not None:
                    await before_reveal()
                await keep(
                    await driver.drive(executor.reveal_to_data_owner(channel, network, share), connection, threads)
                )
                return connection.bytes_sent + connection.bytes_received
            finally:
                await connection.close()
        finally:
            reader.close()

    async def _fail(self, id: str, error: MpcdError) -> None:
        with contextlib.suppress(Conflict):
            await aside(self._context.records.set_told, id, error.for_peer()["message"])
            session = await aside(self._context.records.move, id, "failed", str(error))
            _log.error("session failed", session=id, reason=str(error))
            self._tell_soon(session.peer, [session])

    async def _end(self, session: Session) -> None:
        """Stop what still runs of a session that is over."""
        tasks = [served.task for served in self._serving.values() if served.session == session.id]
        runner = self._runners.get(session.id)
        if runner is not None and runner is not asyncio.current_task():
            tasks.append(runner)
        await _settle(tasks, GRACE if session.state == "done" else 0)
        self._close_job(session.id)

    def _close_job(self, id: str) -> None:
        self._granted.pop(id, None)
        self._flights.pop(id, None)
        job = self._jobs.pop(id, None)
        if job is not None:
            self._context.jobs.running.discard(job)
            job.end()
        self._woken.pop(id, None)

    def _tell_soon(self, peer: str, sessions: list[Session]) -> None:
        """Best effort: what the peer misses it is told when it connects the next time."""
        if not sessions or not self._context.net.connected(peer):
            return

        async def tell() -> None:
            states = [
                {"session": s.id, "state": s.state, "reason": await aside(self._reason_told, s), "by": s.approved_by}
                for s in sessions
            ]
            with contextlib.suppress(MpcdError):
                await self._context.net.call(peer, "session.states", {"states": states})

        task = asyncio.create_task(tell())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _reason_told(self, session: Session) -> str:
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
                    await self._end(session)
                self._wake(lambda other, id=session.id: other.id == id)  # type: ignore[misc]
        return {}

    # Model owner

    async def _decide(self, beginning: str, state: str, reason: str) -> Session:
        records = self._context.records
        session = records.find(beginning)
        if session.role != MODEL_OWNER_ROLE:
            raise Conflict(f"session {session.id[:12]} is ours", "the model owner approves or denies it")
        session = await aside(records.move, session.id, state, reason, "operator")
        if session.over:
            await self._end(session)
        self._tell_soon(session.peer, [session])
        return session

    async def _serve_propose(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        context = self._context
        id, terms, software = _proposal(params)
        model = await aside(context.library.model, terms.model)
        _same_terms(_terms(model, terms.images, terms.reveal, terms.dataset_commitment), terms)
        if terms.reveal != "scores" or terms.images < 1:
            raise Refused("a session reveals scores, of one image or more")
        async with self._approving:
            try:
                session = context.records.get(id)
            except NotFound:
                waiting = [s for s in context.records.all() if s.peer == peer and s.state == "proposed"]
                if len(waiting) >= MOST_PROPOSED:
                    raise Refused(
                        f"{len(waiting)} sessions of {peer} wait for approval already",
                        "cancel some, or have them decided",
                    ) from None
                session = await aside(context.records.add, id, MODEL_OWNER_ROLE, peer, terms, {}, software)
                _log.info("session proposed", session=id, peer=peer, model=terms.model, images=terms.images)
            if session.peer != peer or session.role != MODEL_OWNER_ROLE or session.terms != terms:
                raise Refused("this session's id belongs to another session")
            if session.state == "proposed":
                used = await aside(context.records.images_asked, peer, model.commitment)
                if context.policy.approves(peer, terms.model, terms.reveal, terms.images, used):
                    session = await aside(context.records.move, id, "approved", "", "policy")
                    _log.info("session approved by policy", session=id, peer=peer)
        return self._answer(session)

    async def _serve_begin(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        """The handshake before work starts or goes on: both must still mean the same."""
        context = self._context
        id, terms, software = _proposal(params)
        session = self._of(peer, id)
        _same_terms(session.terms, terms)
        if not session.over:
            model = await aside(context.library.model, terms.model)
            _same_terms(_terms(model, terms.images, terms.reveal, terms.dataset_commitment), terms)
            if session.state == "proposed":
                raise Refused(f"session {id[:12]} is not approved")
            memory = (await aside(preprocessing.estimate, model.network, 1, BATCH)).memory_bytes
            capacity.check_memory(memory, context.config.limits.memory_gib)
            await aside(context.records.set_peer_software, id, software)
            self._granted[id] = self._grant(id, model, params.get("in_flight"))
        return {**self._answer(session), "in_flight": self._granted.get(id, 1)}

    def _grant(self, id: str, model: Model, wanted: object) -> int:
        """How many images of a session are served at the same time: what our limits and other sessions leave."""
        most = self._context.config.online.in_flight
        wanted = min(wanted, most if isinstance(most, int) else flight.MOST) if type(wanted) is int else 1
        others = {served.session for served in self._serving.values()} - {id}
        taken = sum(self._granted.get(other, 1) for other in others)
        return max(1, min(wanted, self._fitting(max(1, wanted) + taken, model) - taken))

    async def _serve_image(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        context = self._context
        number, unit, unit_job = params.get("image"), params.get("unit"), params.get("job")
        if (
            not isinstance(number, int)
            or not isinstance(unit, bytes)
            or not isinstance(unit_job, bytes)
            or len(unit_job) != 16
        ):
            raise ProtocolViolation("session.image is malformed")
        session = self._of(peer, str(params.get("session")))
        if session.state not in RUNNING or not 0 <= number < session.terms.images:
            raise Refused(f"session {session.id[:12]} is {session.state}: image {number} is not served")
        if session.attempts >= 2 * session.terms.images + 20:
            raise Refused(
                f"session {session.id[:12]} has taken {session.attempts} attempts for {session.terms.images} images",
                "start a new session",
            )
        await aside(context.records.check_reveal, session.id, number)
        self._check_draining()
        model = await aside(context.library.model, session.terms.model)
        _same_terms(
            _terms(model, session.terms.images, session.terms.reveal, session.terms.dataset_commitment), session.terms
        )
        if unit not in await aside(context.ledger.ready_units, self._agreement.stock(peer, model)):
            raise LedgerError(peer_text="this unit is not ready at the model owner")
        beside = params.get("beside", [])
        await self._make_place(session.id, number, unit_job, beside if isinstance(beside, list) else [])
        spent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._serve(session, model, number, unit, unit_job, spent))
        self._serving[unit_job] = _Served(session.id, number, task)

        def gone(task: asyncio.Task[None]) -> None:
            del self._serving[unit_job]
            if not task.cancelled() and (error := task.exception()) is not None:
                known = isinstance(error, MpcdError)
                _log.warning("image failed", session=session.id, reason=str(error), exc_info=None if known else error)

        task.add_done_callback(gone)
        await asyncio.wait([task, spent], return_when=asyncio.FIRST_COMPLETED)
        if not spent.done():
            if task.cancelled():
                raise Stopped()
            task.result()
        return {}

    def _remove_spent(self, unit: bytes) -> None:
        """Its files; not those of a unit that was not spent after all."""
        if self._context.ledger.state(unit) == "spent":
            self._context.store.remove([unit])

    async def _make_place(self, id: str, number: int, unit_job: bytes, beside: list[object]) -> None:
        """Stop serving what the data owner no longer counts on: about to end, or its link broke, which it knew first.

        When this returns, and until the next ``await``, there is room for this image.
        """
        served = {job: served for job, served in self._serving.items() if served.session == id}
        await _settle([given_up.task for job, given_up in served.items() if job not in beside])
        served = {job: served for job, served in self._serving.items() if served.session == id}
        if unit_job in self._serving or any(other.image == number for other in served.values()):
            raise Busy(f"image {number} of session {id[:12]} is being served")
        if len(served) >= self._granted.get(id, 1):
            raise Busy(f"{len(served)} images of session {id[:12]} are being served, as many as agreed")

    async def _serve(
        self,
        session: Session,
        model: Model,
        number: int,
        unit: bytes,
        unit_job: bytes,
        spent: asyncio.Future[None],
    ) -> None:
        """The model owner's side of one image. ``spent`` is set when the unit is."""
        context, id, job = self._context, session.id, self.job(session.id)
        ours = self._flights.setdefault(id, Flight(job, session.done, session.terms.images))

        def progress(at: int, of: int) -> None:
            ours.progress(unit_job, at, of)

        async def keep(_: npt.NDArray[np.int64] | None) -> None:
            await aside(context.records.image_done, id, number, None)

        async def before_reveal() -> None:
            await aside(context.records.reveal, id, number)

        first = number not in await aside(context.records.results, id)
        ours.begin(unit_job)
        context.jobs.running.add(job)
        try:
            await aside(context.records.move, id, "online")
            await aside(context.records.attempt, id)
            try:
                proof = await aside(context.ledger.spend, unit, id, number)
                reader = await aside(context.store.open, proof, MODEL_OWNER)
            finally:
                await aside(self._remove_spent, unit)
            spent.set_result(None)
            try:
                numbers = await self._numbers_of(model)
                half = self._infer(
                    MODEL_OWNER,
                    session.peer,
                    unit_job,
                    model.network,
                    numbers,
                    reader,
                    None,
                    job,
                    progress,
                    keep,
                    before_reveal,
                )
                moved = await self._partner.run(session.peer, unit_job, half)
            finally:
                reader.close()
            seconds = ours.landed(unit_job, first)
            await aside(context.records.spent_time, id, "online", seconds, moved)
        finally:
            ours.lost(unit_job)
            if not ours.jobs:
                context.jobs.running.discard(job)

    async def _numbers_of(self, model: Model) -> PrivateNumbers:
        async with self._numbers_lock:
            if self._numbers is None or self._numbers[0] != model.commitment:
                self._numbers = (model.commitment, await aside(self._context.library.numbers, model.name))
            return self._numbers[1]

    def _check_draining(self) -> None:
        if self._draining:
            raise Stopped("this daemon is about to end; sessions go on when it is started again")

    def _of(self, peer: str, id: str) -> Session:
        session = self._context.records.get(id)
        if session.peer != peer or session.role != MODEL_OWNER_ROLE:
            raise NotFound(f"there is no session {id}")
        return session

    def _answer(self, session: Session) -> dict[str, Any]:
        return {
            "state": session.state,
            "reason": self._reason_told(session),
            "approved_by": session.approved_by,
            "software": self._context.software,
        }


async def _settle(tasks: Iterable[asyncio.Task[None]], grace: float = GRACE) -> None:
    """Let tasks end by themselves for a moment, then cancel them and wait."""
    if tasks := list(tasks):
        await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _terms(model: Model, images: int, reveal: str, dataset_commitment: str) -> Terms:
    return Terms(
        model=model.name,
        images=images,
        reveal=reveal,
        model_commitment=model.commitment,
        dataset_commitment=dataset_commitment,
        network_digest=model.network.digest,
        recipe_digest=model.recipe.digest,
        ring=ring_text(model.ring),
        protocol=PROTOCOL_VERSION,
    )


def _same_terms(ours: Terms, theirs: Terms) -> None:
    """Raise Mismatch naming both values of the first difference. An empty data set commitment is not known here."""
    for field in dataclasses.fields(Terms):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b and not (field.name == "dataset_commitment" and not (a and b)):
            raise Mismatch.of(field.name.replace("_", " "), a, b)


def _proposal(params: dict[str, Any]) -> tuple[str, Terms, str]:
    """A peer's session id, terms and software digest, their types checked."""
    id: Any = params.get("session")
    given, software = params.get("terms"), params.get("software")
    if not isinstance(id, str) or not re.fullmatch(r"[0-9a-f]{32}", id) or not isinstance(software, str):
        raise ProtocolViolation("the proposal has no session id")
    fields: dict[str, type] = {f.name: int if f.type == "int" else str for f in dataclasses.fields(Terms)}
    if not isinstance(given, dict) or set(given) != set(fields):
        raise ProtocolViolation(f"the proposal's terms must be: {', '.join(fields)}")
    for name, kind in fields.items():
        if type(given[name]) is not kind or (kind is str and (len(given[name]) > 200 or not given[name].isprintable())):
            raise ProtocolViolation(f"the proposal's {name} must be {kind.__name__}")
    return id, Terms(**given), printable(software, 100)


def _load(dataset: Dataset, number: int, model: Model) -> npt.NDArray[np.int64]:
    """The image as the network's input integers."""
    image = dataset.load_image(dataset.entries[number], model.recipe)
    ring = model.network.values[model.network.ops[0].output].bits
    integers, _ = preprocess.quantise(image, model.network.input_scale, ring)
    return integers


def _describe(session: Session, ready: int, software: str) -> dict[str, Any]:
    terms = session.terms
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
        "units_ready": ready,
        "state": session.state,
        "reason": session.reason,
        "model_commitment": terms.model_commitment,
        "dataset_commitment": terms.dataset_commitment,
        "network_digest": terms.network_digest,
        "recipe_digest": terms.recipe_digest,
        "ring": terms.ring,
        "software": software,
        "peer_software": session.peer_software,
        "created": session.created,
        "approved": session.approved,
        "approved_by": session.approved_by,
        "started": session.started,
        "finished": session.finished,
        "offline": {"seconds": session.offline_seconds, "bytes": session.offline_bytes},
        "online": {"seconds": session.online_seconds, "bytes": session.online_bytes},
    }
