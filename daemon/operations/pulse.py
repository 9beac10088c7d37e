"""Whether this daemon is alive: the event loop turns, and the kernels' threads answer. systemd is told only then."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future

from mpcd.daemon import log
from mpcd.daemon.notify import notify

BEAT = 0.5  # seconds between two beats of the event loop
SLOW = 1.0  # a beat so late is told in the log
STALLED = 5.0  # without a beat for so long, the log says where the loop is
KERNELS_STALLED = 900.0  # no kernel takes as long; a question to their threads waits at most for those before it
REMEMBERED = 60.0
DEPTH = 12  # frames of the stack that are told

_log = log.get("pulse")


class Pulse:
    """Between ``start`` and ``stop``, both in the event loop's thread."""

    def __init__(self, kernels: Executor, stalled: float = STALLED, kernels_stalled: float = KERNELS_STALLED) -> None:
        self._kernels = kernels
        self._stalled, self._kernels_stalled = stalled, kernels_stalled
        self._beat = self._answered = time.monotonic()
        self._question: Future[None] | None = None
        self._lags: collections.deque[tuple[float, float]] = collections.deque()  # when, seconds
        self._loop_thread = threading.get_ident()
        self._task: asyncio.Task[None] | None = None
        self._watcher: threading.Thread | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        self._loop_thread = threading.get_ident()
        self._beat = self._answered = time.monotonic()
        self._task = asyncio.create_task(self._run())
        self._watcher = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._watcher.start()

    async def stop(self) -> None:
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def lag(self) -> float:
        """Seconds: the longest that the loop was late within the last minute."""
        return max((lag for _, lag in self._lags), default=0.0)

    @property
    def kernels_silent(self) -> float:
        """Seconds since the kernels' threads last answered."""
        return time.monotonic() - self._answered

    @property
    def well(self) -> bool:
        """To be asked on the loop: that it can be asked says that the loop turns."""
        return self.kernels_silent < self._kernels_stalled

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            lag = max(0.0, now - self._beat - BEAT)
            self._beat = now
            self._lags.append((now, lag))
            while self._lags[0][0] < now - REMEMBERED:
                self._lags.popleft()
            if lag > SLOW:
                _log.warning("the event loop was late", seconds=round(lag, 1))
            self._ask(now)

    def _ask(self, now: float) -> None:
        if self._question is None or self._question.done():
            self._answered = now
            self._question = self._kernels.submit(_nothing)
        elif not self.well:
            _log.error("the kernels' threads do not answer", seconds=round(self.kernels_silent))

    def _watch(self) -> None:
        """In a thread of its own: say where the loop is when it does not turn, without any value it works on."""
        told = False
        while not self._stop.wait(self._stalled / 4):
            stalled = time.monotonic() - self._beat
            if stalled < self._stalled:
                told = False
            elif not told:
                told = True
                frame = sys._current_frames().get(self._loop_thread)
                stack = traceback.extract_stack(frame) if frame is not None else []
                where = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in stack if f.filename[0] != "<"]
                _log.error("the event loop does not turn", seconds=round(stalled, 1), where=where[-DEPTH:])


def _nothing() -> None:
    """What the kernels' threads are asked to do."""


def watchdog_seconds(environ: dict[str, str] | None = None) -> float | None:
    """How often at least systemd wants to hear from this process (sd_watchdog_enabled(3)); None: never."""
    env = os.environ if environ is None else environ
    with contextlib.suppress(ValueError):
        microseconds = int(env.get("WATCHDOG_USEC", ""))
        if microseconds > 0 and env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            return microseconds / 1e6
    return None


async def keep_watchdog(seconds: float, well: Callable[[], bool]) -> None:
    """Tell systemd twice as often as it wants, as long as everything is well; else it ends and restarts us."""
    while True:
        if well():
            notify("WATCHDOG=1")
        else:
            _log.error("systemd's watchdog is not served: this daemon is stuck")
        await asyncio.sleep(seconds / 2)
