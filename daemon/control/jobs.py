"""Long work and who watches it: progress with a time left, and one heavy job at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """``total`` 0: the end is unknown."""

    stage: str
    done: int = 0
    total: int = 0
    text: str = ""
    eta_seconds: float | None = None


Report = Callable[[Progress], None]


class Job:
    """One piece of long work. Tells its watchers how far it is; lives in the event loop's thread."""

    def __init__(self, peer: str = "", model: str = "") -> None:
        self.peer = peer
        self.model = model
        self.idle = False  # its kernels give way to everything else on the machine
        self.progress = Progress("")
        self._watchers: set[asyncio.Queue[Progress | None]] = set()
        self._stage_began = time.monotonic()
        self._stage_done = 0
        self._last = 0.0

    def report(self, stage: str, done: int = 0, total: int = 0, text: str = "") -> None:
        """Tell everybody; more often than five times a second only when the stage or the text changes."""
        now = time.monotonic()
        fresh = stage != self.progress.stage or done < self.progress.done
        if fresh:
            self._stage_began, self._stage_done = now, done
        elif text == self.progress.text and now - self._last < 0.2 and done < total:
            return
        self._last = now
        moved = done - self._stage_done
        eta = (now - self._stage_began) / moved * (total - done) if moved > 0 and total else None
        self.relay(Progress(stage, done, total, text, eta))

    def relay(self, progress: Progress) -> None:
        """As it is, from another job."""
        self.progress = progress
        for queue in self._watchers:
            queue.put_nowait(progress)

    def end(self) -> None:
        for queue in self._watchers:
            queue.put_nowait(None)

    @contextmanager
    def watched(self) -> Iterator[AsyncIterator[Progress]]:
        """The present state and what follows, until the job ends."""
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()
        queue.put_nowait(self.progress)
        self._watchers.add(queue)
        try:
            yield _until_none(queue)
        finally:
            self._watchers.discard(queue)


async def _until_none(queue: asyncio.Queue[Progress | None]) -> AsyncIterator[Progress]:
    while (progress := await queue.get()) is not None:
        yield progress


class Jobs:
    """The work going on in this daemon."""

    def __init__(self) -> None:
        self.running: set[Job] = set()
        self._heavy = asyncio.Lock()
        self._waiting = 0

    @contextmanager
    def job(self, peer: str = "", model: str = "") -> Iterator[Job]:
        job = Job(peer, model)
        self.running.add(job)
        try:
            yield job
        finally:
            self.running.discard(job)
            job.end()

    @asynccontextmanager
    async def processor(self, job: Job) -> AsyncIterator[None]:
        """The data owner's side drives one batch, or images of one session: two at once would only fight for memory."""
        if self._heavy.locked():
            job.report("queued", text="another job has the processor")
        self._waiting += 1
        try:
            await self._heavy.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._heavy.release()

    @property
    def contended(self) -> bool:
        """Another job waits for the processor: whoever has it gives way as soon as it did a fair share."""
        return self._waiting > 0
