"""Threads for work that may wait: they compute only while nothing else on the machine wants the processor."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor


def executor(threads: int) -> ThreadPoolExecutor:
    """Its threads begin with the first work. Linux schedules threads one by one: the others stay as they are."""
    return ThreadPoolExecutor(threads, "idle", initializer=_lower)


def _lower() -> None:
    """SCHED_IDLE, from which no unprivileged thread comes back; the lowest nice value where that is forbidden."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        with contextlib.suppress(OSError):
            os.nice(19)
