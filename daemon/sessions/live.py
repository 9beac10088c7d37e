"""What goes on of each session right now, at either party. The records have what must outlive the daemon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from mpcd.daemon.context import Context
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.network.partner import Stopped
from mpcd.daemon.sessions.flight import Flight
from mpcd.daemon.sessions.records import MODEL_OWNER_ROLE, Session

GRACE = 2.0  # for what has sent its last message and only has to write that down


class Live:
    """One session."""

    def __init__(self, job: Job) -> None:
        self.job = job  # whose progress watchers follow
        self.tasks: set[asyncio.Task[None]] = set()  # that end with the session
        self.woken = asyncio.Event()
        self.granted = 1  # images in flight that the model owner serves at the same time
        self.flight: Flight | None = None  # at the model owner


class LiveSessions:
    """By id."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._all: dict[str, Live] = {}
        self.draining = False  # no image begins any more

    def check_draining(self) -> None:
        if self.draining:
            raise Stopped("this daemon is about to end; sessions go on when it is started again")

    def of(self, id: str) -> Live:
        if id not in self._all:
            session = self._context.records.get(id)
            job = Job(session.peer, session.terms.model)
            if session.role == MODEL_OWNER_ROLE:
                waiting = "for our approval" if session.state == "proposed" else f"for {session.peer}"
                job.report("waiting", session.done, session.terms.images, waiting)
            self._all[id] = Live(job)
        return self._all[id]

    def granted(self, id: str) -> int:
        return self._all[id].granted if id in self._all else 1

    def attach(self, id: str, task: asyncio.Task[None]) -> None:
        """``task`` is stopped when the session ends."""
        tasks = self.of(id).tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def sleep(self, id: str, seconds: float) -> None:
        """Until the time is over or something happened to this session or its peer."""
        event = self.of(id).woken
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
        event.clear()

    def wake(self, id: str) -> None:
        if id in self._all:
            self._all[id].woken.set()

    def wake_all_of(self, peer: str) -> None:
        for live in self._all.values():
            if live.job.peer == peer:
                live.woken.set()

    async def end(self, session: Session, caller: asyncio.Task[Any] | None) -> None:
        """Stop what still runs of a session that is over; ``caller``, which waits for this, ends by itself."""
        live = self._all.get(session.id)
        if live is not None:
            tasks = live.tasks - {caller}
            await settle(tasks, GRACE if session.state == "done" else 0)
        self.close(session.id)

    def close(self, id: str) -> None:
        """Watchers are told that it is over."""
        live = self._all.pop(id, None)
        if live is not None:
            self._context.jobs.running.discard(live.job)
            live.job.end()

    async def stop(self) -> None:
        """At the end of the daemon: sessions stay as they are."""
        tasks = [task for live in self._all.values() for task in live.tasks]
        for task in tasks:
            if not task.cancelling():  # once more would end its cleaning up
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settle(tasks: Iterable[asyncio.Task[None]], grace: float = GRACE) -> None:
    """Let tasks end by themselves for a moment, then cancel them and wait."""
    if tasks := list(tasks):
        await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            if not task.cancelling():
                task.cancel()
        await asyncio.wait(tasks)
