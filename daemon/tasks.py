"""Tasks whose end nobody may be there to see: the loop keeps no hold of a task, and logs errors that nobody took."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.errors import MpcdError

_log = log.get("daemon")


def seen(ended: asyncio.Future[Any]) -> None:
    """Its error is no news: whoever waited for it was told, or has been cancelled. To be added as a done callback."""
    if not ended.cancelled():
        ended.exception()


class Tasks:
    """They run on their own until they end or all are stopped. An error is logged: there is nobody else to see it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self) -> None:
        """Cancel all, and wait until they have ended."""
        for task in self._running:
            task.cancel()
        await self.wait()

    async def wait(self) -> None:
        """Until all have ended."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            known = isinstance(error, MpcdError)
            _log.error("what ran in the background failed", reason=error, exc_info=None if known else error)
