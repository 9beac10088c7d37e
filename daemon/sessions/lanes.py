"""Data owner: the images of a session in flight, side by side."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import deque

import numpy as np
import numpy.typing as npt

from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.image import preprocess
from mpcd.daemon.image.dataset import Dataset
from mpcd.daemon.library import Model
from mpcd.daemon.network.partner import Partner
from mpcd.daemon.offline import capacity
from mpcd.daemon.offline.agreement import Agreement
from mpcd.daemon.offline.capacity import BATCH
from mpcd.daemon.offline.making import Offline
from mpcd.daemon.sessions import flight
from mpcd.daemon.sessions.admission import Admission
from mpcd.daemon.sessions.flight import Flight
from mpcd.daemon.sessions.inference import infer, remove_spent
from mpcd.daemon.sessions.live import LiveSessions
from mpcd.daemon.sessions.records import Session
from mpcd.daemon.tasks import seen
from mpcd.protocol import preprocessing
from mpcd.protocol.channel import DATA_OWNER


class Turn:
    """The data owner's images of one session between taking the processor and giving it back."""

    def __init__(
        self, session: Session, model: Model, dataset: Dataset, missing: deque[int], job: Job, until: float
    ) -> None:
        self.id, self.peer = session.id, session.peer
        self.model = model
        self.missing = missing
        self.job = job
        self.until = until  # of the monotonic clock: no image begins after it
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
            task.add_done_callback(seen)  # not every one is used
            self._ahead[self.missing[0]] = task
        return image


class Lanes:
    """Each lane does one image after the other. Calls ``session.image``."""

    def __init__(
        self,
        context: Context,
        agreement: Agreement,
        partner: Partner,
        offline: Offline,
        admission: Admission,
        live: LiveSessions,
    ) -> None:
        self._context = context
        self._admission = admission
        self._agreement = agreement
        self._partner = partner
        self._offline = offline
        self._live = live
        self._infer = functools.partial(infer, context, DATA_OWNER)
        self.flying: set[asyncio.Task[int | None]] = set()

    async def width(self, peer: str, model: Model) -> int:
        """How many images at the same time the data owner wants: as configured, or for ``auto`` what suits the link."""
        wanted = self._context.config.online.in_flight
        if not isinstance(wanted, int):
            speed = await self._offline.link_speed.measure(peer)
            image = await aside(preprocessing.estimate, model.network, 1, BATCH)
            needs = len(await aside(preprocessing.plan, model.network))
            rate = self._context.records.rate(self._agreement.stock(peer, model).peer, "online")
            wanted = flight.choose(speed, image, needs, image.cots / (rate or capacity.GUESS["online"]))
        return flight.fitting(wanted, model.network, self._context.config.limits)

    async def run(self, turn: Turn, width: int, careful: bool) -> None:
        """Images, ``width`` of them in flight: until none is missing, units or time run out, or another job waits.

        ``careful``: one image alone before there are several. When one fails, the others end; then its error is raised.
        """
        if not careful:
            turn.proven.set()
        async with asyncio.TaskGroup() as lanes:
            for place in range(min(width, len(turn.missing))):
                lanes.create_task(self._lane(turn, place, width))
        if turn.error is not None:
            raise turn.error
        if turn.landed:
            peer_id = self._agreement.stock(turn.peer, turn.model).peer
            cots = (await aside(preprocessing.estimate, turn.model.network, turn.landed, BATCH)).cots
            if cots and turn.seconds > 0:
                await aside(self._context.records.learn_rate, peer_id, "online", cots / turn.seconds)

    async def _lane(self, turn: Turn, place: int, width: int) -> None:
        if place:
            await turn.proven.wait()
        while turn.missing and not turn.short and turn.error is None:
            if time.monotonic() >= turn.until or (turn.begun >= width and self._context.jobs.contended):
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
        turn.proven.set()  # also when no image began: it is too late in the day, and the other lanes wait for this one

    async def _image(self, turn: Turn, number: int) -> bool:
        """One image into the records; False when there is no unit for it."""
        context, records, id, peer = self._context, self._context.records, turn.id, turn.peer
        stock = self._agreement.stock(peer, turn.model)
        self._live.check_draining()
        await aside(self._admission.check, records.get(id))
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
                self._live.check_draining()
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
                    await aside(remove_spent, context, units[0])
                    raise
            context.expansion.ahead(stock, DATA_OWNER)
            reader = await aside(context.store.open, spent, DATA_OWNER)
            return await self._infer(peer, unit_job, turn.model.network, None, reader, image, turn.job, progress, keep)

        work = asyncio.create_task(self._partner.run(peer, unit_job, half()))
        self.flying.add(work)
        work.add_done_callback(self.flying.discard)
        work.add_done_callback(seen)
        try:
            moved = await work
            if moved is None:
                return False
            seconds = turn.flight.landed(unit_job)
            turn.landed += 1
            turn.seconds += seconds
            await aside(records.spent_time, id, "online", seconds, moved)
            context.meters.image_seconds.observe(seconds)
            return True
        finally:
            turn.flight.lost(unit_job)


def _load(dataset: Dataset, number: int, model: Model) -> npt.NDArray[np.int64]:
    """The image as the network's input integers."""
    image = dataset.load_image(dataset.entries[number], model.recipe)
    ring = model.network.values[model.network.ops[0].output].bits
    integers, _ = preprocess.quantise(image, model.network.input_scale, ring)
    return integers
