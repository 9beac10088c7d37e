"""Making units with a peer: whole batches, each from fresh randomness, never resumed half way.

The data owner drives; a batch goes (docs/ledger.md has the crashes in between):

0. data owner: ``offline.may``, so that no ids are drawn for what would be refused (allowance.py)
1. data owner: draw ids, note them ``making``; ``offline.begin`` to the model owner, which notes them too
2. both: open the channel of this job, run protocol/preprocessing.make_units into files
3. data owner: files on the disk, then ``ready``; ``offline.ready`` to the model owner
4. model owner: files on the disk, then ``ready``; its answer ends the batch

Whatever fails burns what the batch has not finished, on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.catalogue import Catalogue, same_model
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.errors import LinkError, MpcdError, NotFound, PeerError, ProtocolViolation, Refused, for_peer
from mpcd.daemon.library import Model
from mpcd.daemon.network import driver
from mpcd.daemon.network.greeting import error_from, printable
from mpcd.daemon.network.link_speed import LinkSpeed
from mpcd.daemon.network.partner import Partner, Stopped
from mpcd.daemon.offline import capacity
from mpcd.daemon.offline.agreement import Agreement, unit_ids
from mpcd.daemon.offline.allowance import Allowance
from mpcd.daemon.offline.capacity import BATCH, JobEstimate, Store
from mpcd.daemon.offline.ledger import Stock
from mpcd.daemon.offline.store import UnitWriter
from mpcd.daemon.sessions.policy import NotNow
from mpcd.daemon.tasks import seen
from mpcd.protocol import preprocessing
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.network import PrivateNumbers
from mpcd.protocol.ot.correlate import EXTENSIONS, Extension

OPEN_TIMEOUT = 60.0
READY_TIMEOUT = 300.0  # the slower disk's fsync of a whole batch
NOT_NOW_PAUSE = 30.0
POLL = 0.5
MOST_ASKED = 4  # requests of one peer at a time
FORGET = 60.0  # a peer that asked for units and does not look any more has gone away

_log = log.get("offline")


@dataclasses.dataclass
class _Batch:
    """A batch in the making at the model owner."""

    peer: str
    stock: Stock
    units: list[bytes]
    finished: asyncio.Event  # our side is, and waits
    told: asyncio.Event  # the data owner's side is ready
    task: asyncio.Task[None]


@dataclasses.dataclass
class _Asked:
    """Work that the model owner asked of this data owner."""

    peer: str
    job: Job
    task: asyncio.Task[dict[str, Any]]
    looked: float


class Offline:
    """Both ends of ``offline.*``."""

    def __init__(self, context: Context, catalogue: Catalogue, agreement: Agreement, partner: Partner) -> None:
        self._context = context
        self.link_speed = LinkSpeed(context)
        self._partner = partner
        self._catalogue = catalogue
        self._agreement = agreement
        self._allowance = Allowance(context, agreement)
        agreement.settle = self._settle
        self._batches: dict[bytes, _Batch] = {}
        self._asked: dict[str, _Asked] = {}
        self._beginning = asyncio.Lock()
        self._stopping = False
        self.handlers = {
            "offline.begin": self._serve_begin,
            "offline.ready": self._serve_ready,
            "offline.request": self._serve_request,
            "offline.progress": self._serve_progress,
            "offline.stop": self._serve_stop,
            **self._allowance.handlers,
            **self.link_speed.handlers,
        }

    async def stop(self) -> None:
        """Give up what is in the making."""
        self._stopping = True
        async with self._beginning:  # a batch that was let in is in the list when this comes in
            tasks = [b.task for b in self._batches.values()] + [a.task for a in self._asked.values()]
        await asyncio.sleep(0)  # cancelled before its first step, a task would end without burning anything
        for task in tasks:
            if not task.cancelling():  # once more would end its cleaning up
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_stopping(self) -> None:
        if self._stopping:
            raise Stopped("this daemon is about to end; units can be made when it is started again")

    # Data owner

    async def _choices(self, peer: str, wanted: str | None = None) -> tuple[Extension, Store]:
        """The extension, and how units are kept: as ``wanted``, else as configured."""
        wanted = wanted or self._context.config.offline.store
        extension = await self.link_speed.extension(peer, wanted == "compact")
        return extension, capacity.store_for(wanted, extension)

    async def estimate(
        self, peer: str, model: Model, images: int, ready: int | None = None, store: str | None = None
    ) -> JobEstimate:
        """What ``images`` ready units will take from here on. ``store``: other than configured."""
        context = self._context
        if ready is None:
            ready = len(await self._agreement.sync(peer, model))
        free = context.store.free_bytes()
        peer_id = context.peers.get(peer).id
        choices = await self._choices(peer, store)
        return await aside(
            capacity.estimate, model.network, DATA_OWNER, images, ready, free, context.records, peer_id, *choices
        )

    async def make(
        self,
        peer: str,
        model: Model,
        images: int,
        job: Job,
        session: str | None = None,
        store: str | None = None,
    ) -> dict[str, Any]:
        """Go on until ``images`` units are ready. Whole batches made before a failure stay.

        Returns the control API's result of offline.make.
        """
        ready = await self._agreement.sync(peer, model)
        estimate = await self.estimate(peer, model, images, len(ready), store)
        self._check(model, estimate)
        job.report("offline", 0, 1000, estimate.in_words())
        began, made, moved = time.monotonic(), 0, 0
        while made < estimate.missing:
            count = min(BATCH, estimate.missing - made)
            try:
                moved += await self.make_batch(peer, model, count, job, session, made, estimate.missing, store)
                made += count
            except (NotNow, PeerError) as error:
                if error.code != NotNow.code:
                    raise
                job.report("waiting", 1000 * made, 1000 * estimate.missing, str(error))
                await asyncio.sleep(NOT_NOW_PAUSE)
        return {
            "estimate": dataclasses.asdict(estimate),
            "made": made,
            "ready": len(ready) + made,
            "seconds": time.monotonic() - began,
            "bytes": moved,
        }

    def _check(self, model: Model, estimate: JobEstimate) -> None:
        limits = self._context.config.limits
        if estimate.missing:
            capacity.check_disk(estimate.disk_bytes, estimate.disk_free_bytes, limits.disk_reserve_gib)
        capacity.check_memory(estimate.memory_bytes, limits.memory_gib)

    async def make_batch(
        self,
        peer: str,
        model: Model,
        count: int,
        job: Job,
        session: str | None,
        before: int,
        total: int,
        store: str | None = None,
    ) -> int:
        """One batch; its bytes on the wire. ``before`` of ``total``: for the progress shown."""
        context, stock = self._context, self._agreement.stock(peer, model)
        async with context.jobs.processor(job):
            await self._allowance.ask(peer, model, count, session)
            began = time.monotonic()
            extension, kept = await self._choices(peer, store)
            need = await aside(capacity.disk_bytes, model.network, DATA_OWNER, count, extension, kept)
            capacity.check_disk(need, context.store.free_bytes(), context.config.limits.disk_reserve_gib)
            batch = os.urandom(16)
            units = [os.urandom(16) for _ in range(count)]
            writers: list[UnitWriter] = []
            finished = False

            def progress(done: int, of: int) -> None:
                text = f"{before + 1} to {before + count} of {total}" if count > 1 else f"{before + 1} of {total}"
                job.report("offline", before * 1000 + count * 1000 * done // of, total * 1000, text)

            async def half() -> int:
                nonlocal finished
                async with self._agreement.lock(peer):
                    await aside(context.ledger.begin, stock, batch, units)
                wanted = {
                    "job": batch,
                    "model": model.name,
                    "model_commitment": model.commitment,
                    "network_digest": model.network.digest,
                    "units": units,
                    "session": session,
                    "extension": extension,
                    "idle": job.idle,
                }
                await context.net.call(peer, "offline.begin", wanted, timeout=OPEN_TIMEOUT)
                moved = await self._run(
                    DATA_OWNER, peer, model, None, batch, units, writers, job, progress, extension, kept
                )
                async with self._agreement.lock(peer):
                    await aside(_finish, writers)
                    await aside(context.ledger.ready, units, _size(writers))
                    finished = True
                    await context.net.call(peer, "offline.ready", {"job": batch}, timeout=READY_TIMEOUT)
                return moved

            try:
                moved = await self._partner.run(peer, batch, half())
            except BaseException as error:
                if not finished:  # else the peer may have them too, and the next comparison tells
                    await self._give_up(units, writers, error)
                raise
            seconds = time.monotonic() - began
            cots = (await aside(preprocessing.estimate, model.network, count, BATCH)).cots
            if cots and seconds > 0:
                await aside(context.records.learn_rate, stock.peer, capacity.offline_phase(extension), cots / seconds)
            await aside(context.ledger.made, batch, count, seconds, moved)
            context.meters.batch_seconds.observe(seconds)
            if session is not None:
                await aside(context.records.spent_time, session, "offline", seconds, moved)
            _log.info("batch ready", peer=peer, model=model.name, units=count, seconds=round(seconds, 1), bytes=moved)
            return moved

    # Both

    async def _run(
        self,
        party: int,
        peer: str,
        model: Model,
        numbers: PrivateNumbers | None,
        batch: bytes,
        units: Sequence[bytes],
        writers: list[UnitWriter],
        job: Job,
        progress: Callable[[int, int], None],
        extension: Extension,
        kept: Store,
    ) -> int:
        """The protocol of one batch into ``writers``; bytes both ways."""
        context = self._context
        plan = await aside(preprocessing.plan, model.network)
        seeds = [os.urandom(16) for _ in units]
        for unit, seed in zip(units, seeds, strict=True):
            writers.append(await aside(context.store.writer, unit, party, seed, plan, kept == "compact"))
        connection = await context.net.open_channel(peer, batch, OPEN_TIMEOUT)
        try:
            await context.kernels.wait(job)
            channel = Channel(party, batch)
            seed_sinks = writers if kept == "compact" else None
            work = preprocessing.make_units(
                channel, model.network, numbers, seeds, writers, driver.in_loop(progress), extension, seed_sinks
            )
            await driver.drive(work, connection, context.idle if job.idle else context.executor)
            return connection.bytes_sent + connection.bytes_received
        finally:
            await connection.close()

    async def _give_up(self, units: list[bytes], writers: Sequence[UnitWriter], error: BaseException) -> None:
        reason = str(error) or type(error).__name__

        def give_up() -> None:
            for writer in writers:
                writer.discard()
            burnt = self._context.ledger.burn(units, reason)
            self._context.store.remove(burnt)

        _log.warning("batch burnt", units=len(units), reason=error)
        await aside(give_up)

    # Model owner

    async def _serve_begin(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        context = self._context
        batch, name = params.get("job"), params.get("model")
        units = unit_ids(params.get("units"), BATCH)
        if not isinstance(batch, bytes) or len(batch) != 16 or not isinstance(name, str) or not units:
            raise ProtocolViolation("offline.begin is malformed")
        model = await aside(context.library.model, name)
        same_model(model, params)
        extension = params.get("extension")
        if extension not in EXTENSIONS:
            raise ProtocolViolation(f"offline.begin names no OT extension of ours: {str(extension)[:40]}")
        stock = self._agreement.stock(peer, model)
        async with self._beginning:  # the next one's check counts these units
            self._check_stopping()
            if batch in self._batches:
                raise ProtocolViolation("offline.begin names a batch that is in the making already")
            session = await self._allowance.check(peer, model, len(units), params.get("session"))
            capacity.check_memory(preprocessing.memory_bytes(model.network), context.config.limits.memory_gib)
            kept = capacity.store_for(context.config.offline.store, extension)
            need = await aside(capacity.disk_bytes, model.network, MODEL_OWNER, len(units), extension, kept)
            capacity.check_disk(need, context.store.free_bytes(), context.config.limits.disk_reserve_gib)
            if session is not None:
                await aside(context.records.move, session.id, "offline")
            await aside(context.ledger.begin, stock, batch, units)
        finished, told = asyncio.Event(), asyncio.Event()
        half = self._serve_batch(
            peer,
            model,
            batch,
            units,
            finished,
            told,
            None if session is None else session.id,
            extension,
            params.get("idle") is True,
        )
        task = asyncio.create_task(half)
        task.add_done_callback(seen)
        self._batches[batch] = _Batch(peer, stock, units, finished, told, task)
        return {}

    async def _serve_batch(
        self,
        peer: str,
        model: Model,
        batch: bytes,
        units: list[bytes],
        finished: asyncio.Event,
        told: asyncio.Event,
        session: str | None,
        extension: Extension,
        idle: bool,
    ) -> None:
        """Make; once the data owner's side is ready, so is ours. Raises what went wrong, after burning."""
        context = self._context
        writers: list[UnitWriter] = []
        began = time.monotonic()

        async def half() -> int:
            kept = capacity.store_for(context.config.offline.store, extension)
            with context.jobs.job(peer, model.name) as job:
                job.idle = idle

                def progress(done: int, of: int) -> None:
                    job.report("offline", 1000 * done // of, 1000, f"{len(units)} units")

                numbers = await aside(context.library.numbers, model.name)
                moved = await self._run(
                    MODEL_OWNER, peer, model, numbers, batch, units, writers, job, progress, extension, kept
                )
                await aside(_finish, writers)
            finished.set()
            try:
                async with asyncio.timeout(READY_TIMEOUT):
                    await told.wait()
            except TimeoutError:
                raise LinkError("the data owner did not say that its units are ready") from None
            return moved

        try:
            moved = await self._partner.run(peer, batch, half())
            # They are ready there: that its command was stopped after that says nothing about them.
            await aside(context.ledger.ready, units, _size(writers))
        except BaseException as error:
            await self._give_up(units, writers, error)
            raise
        finally:
            self._batches.pop(batch, None)
        _log.info("batch ready", peer=peer, model=model.name, units=len(units), bytes=moved)
        context.meters.batch_seconds.observe(time.monotonic() - began)
        if session is not None:
            await aside(context.records.spent_time, session, "offline", time.monotonic() - began, moved)

    async def _serve_ready(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        batch = self._batch_of(peer, params)
        batch.told.set()
        await asyncio.shield(batch.task)
        return {}

    def _seen_from_here(self, result: object) -> dict[str, Any]:
        """The data owner's result of ``make``, checked."""
        if not isinstance(result, dict):
            raise ProtocolViolation("the peer's result is malformed")
        numbers = {name: value for name, value in result.items() if name != "estimate"}
        if not all(type(value) in (int, float) for value in numbers.values()):
            raise ProtocolViolation("the peer's result is malformed")
        estimate = _from_peer(result.get("estimate"))
        store = capacity.store_for(self._context.config.offline.store, estimate.extension)
        seen = estimate.seen_by_peer(store, self._context.store.free_bytes())
        return {**numbers, "estimate": dataclasses.asdict(seen)}

    async def _settle(self, stock: Stock, ready: set[bytes], making: set[bytes]) -> None:
        """Batches that wait for a word of the data owner that was lost, or that it will not say any more."""
        waiting = [batch for batch in self._batches.values() if batch.stock == stock and batch.finished.is_set()]
        for batch in waiting:
            if ready.issuperset(batch.units):
                batch.told.set()
            elif making.isdisjoint(batch.units):
                batch.task.cancel()
            else:
                continue
            await asyncio.wait([batch.task])

    def _batch_of(self, peer: str, params: dict[str, Any]) -> _Batch:
        batch = self._batches.get(params.get("job", b"")) if isinstance(params.get("job"), bytes) else None
        if batch is None or batch.peer != peer:
            raise NotFound("no such batch is in the making here: it failed or ended")
        return batch

    async def ask(self, peer: str, model: Model, images: int, estimate_only: bool, job: Job) -> dict[str, Any]:
        """Model owner: have the data owner's daemon drive; what its ``make`` returns, the disks as seen from here."""
        call = self._context.net.call
        wanted = {"model": model.name, "images": images, "estimate_only": estimate_only, "idle": job.idle}
        began = await call(peer, "offline.request", wanted, timeout=OPEN_TIMEOUT)
        request = str(began.get("request"))
        try:
            while True:
                answer = await call(peer, "offline.progress", {"request": request})
                if "result" in answer:
                    return self._seen_from_here(answer["result"])
                if "error" in answer:
                    error = error_from(answer["error"])
                    raise PeerError(error.code, f"at {peer}: {error.message}", error.hint, error.exit_status)
                job.report(*_progress(answer.get("progress")))
                await asyncio.sleep(POLL)
        except asyncio.CancelledError:
            with contextlib.suppress(MpcdError):
                await call(peer, "offline.stop", {"request": request}, timeout=5)
            raise

    # Data owner, asked by the model owner

    async def _serve_request(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        name, images = params.get("model"), params.get("images")
        if not isinstance(name, str) or not isinstance(images, int) or images < 1:
            raise ProtocolViolation("offline.request is malformed")
        if not params.get("estimate_only"):
            await aside(self._allowance.check_request, peer, images)
        await self._forget_abandoned()
        if sum(a.peer == peer and not a.task.done() for a in self._asked.values()) >= MOST_ASKED:
            raise Refused(f"{MOST_ASKED} requests of {peer} are at work already", "wait for them, or stop them")
        self._check_stopping()
        request = os.urandom(16).hex()
        job = Job(peer, name)
        job.idle = params.get("idle") is True
        task = asyncio.create_task(self._work_for(peer, name, images, bool(params.get("estimate_only")), job))
        task.add_done_callback(seen)
        self._asked[request] = _Asked(peer, job, task, time.monotonic())
        return {"request": request}

    async def _work_for(self, peer: str, name: str, images: int, estimate_only: bool, job: Job) -> dict[str, Any]:
        jobs = self._context.jobs
        jobs.running.add(job)
        try:
            model = await self._catalogue.get(peer, name)
            if estimate_only:
                return {"estimate": dataclasses.asdict(await self.estimate(peer, model, images))}
            watch = asyncio.create_task(self._until_abandoned(job))
            work = asyncio.create_task(self.make(peer, model, images, job))
            work.add_done_callback(seen)
            try:
                await asyncio.wait([watch, work], return_when=asyncio.FIRST_COMPLETED)
                return work.result() if work.done() else {}
            finally:
                for task in (watch, work):
                    task.cancel()
                await asyncio.wait([watch, work])
        finally:
            jobs.running.discard(job)
            job.end()

    async def _until_abandoned(self, job: Job) -> None:
        """Returns when the model owner, who asked for this, has not looked for a while."""
        while any(a.job is job and time.monotonic() - a.looked < FORGET for a in self._asked.values()):
            await asyncio.sleep(FORGET / 4)

    async def _forget_abandoned(self) -> None:
        for request, asked in list(self._asked.items()):
            if asked.task.done() and time.monotonic() - asked.looked > FORGET:
                del self._asked[request]

    async def _serve_progress(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        asked = self._asked_by(peer, params)
        asked.looked = time.monotonic()
        if not asked.task.done():
            progress = asked.job.progress
            return {"progress": [progress.stage, progress.done, progress.total, progress.text]}
        if asked.task.cancelled():
            return {"error": Refused("the data owner stopped it").for_peer()}
        error = asked.task.exception()
        if error is None:
            return {"result": asked.task.result()}
        if not isinstance(error, MpcdError):
            _log.error("offline request failed", exc_info=error)
        return {"error": for_peer(error)}

    async def _serve_stop(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        task = self._asked_by(peer, params).task
        if not task.cancelling():  # once more would end its cleaning up
            task.cancel()
        return {}

    def _asked_by(self, peer: str, params: dict[str, Any]) -> _Asked:
        asked = self._asked.get(str(params.get("request")))
        if asked is None or asked.peer != peer:
            raise NotFound("no such request is known here: the data owner's daemon was restarted")
        return asked


def _progress(given: object) -> tuple[str, int, int, str]:
    """What the peer says of its progress, checked and made safe to show."""
    match given:
        case [str(stage), int(done), int(total), str(text)]:
            return printable(stage, 40), done, total, printable(text, 200)
    raise ProtocolViolation("the peer's progress is malformed")


def _finish(writers: Sequence[UnitWriter]) -> None:
    for writer in writers:
        writer.finish()


def _size(writers: Sequence[UnitWriter]) -> int:
    """Bytes of one unit; those of a batch are alike."""
    return writers[0].bytes_written


def _from_peer(given: object) -> JobEstimate:
    """The data owner's estimate, its types checked."""
    kinds = {field.name: field.type for field in dataclasses.fields(JobEstimate)}
    if not isinstance(given, dict) or set(given) != set(kinds):
        raise ProtocolViolation("the peer's estimate is malformed")
    ways = [given[name] for name, kind in kinds.items() if kind == "dict[Store, int]"]
    if any(not isinstance(both, dict) or set(both) != {"expanded", "compact"} for both in ways):
        raise ProtocolViolation("the peer's estimate is malformed")
    numbers = [given[name] for name, kind in kinds.items() if kind in ("int", "float", "bool")]
    numbers += [value for both in ways for value in both.values()]
    if (
        not all(type(value) in (int, float, bool) for value in numbers)
        or given["extension"] not in EXTENSIONS
        or given["store"] not in ("expanded", "compact")
    ):
        raise ProtocolViolation("the peer's estimate is malformed")
    return JobEstimate(**given)
