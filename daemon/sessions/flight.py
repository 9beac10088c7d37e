"""Several images of one session in flight: how many a link asks for, how far they are, how long they take together.

One image is a chain of short steps, each waiting for the peer's: a second image computes while the first one waits. On
a link with long round trips it takes more of them to keep it, or the processor, busy.
"""

from __future__ import annotations

import math
import time

from mpcd.daemon.config import Limits
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.network.link_speed import Speed
from mpcd.daemon.offline import capacity
from mpcd.protocol.network import Network
from mpcd.protocol.preprocessing import Estimate

MOST = 8
PARTS = 1000  # of an image, in the progress shown
STEPS = 0.84  # steps after each other that a correlation takes part in, on the average: DenseNet-121 has 2,602 of 3,082
BUSIER = 0.66  # of the bytes, those that the model owner sends: 309 of DenseNet-121's 466 MB
IDLE = 0.05  # of the time, with nothing on its way and nothing being computed
STEP_SECONDS = 1e-3  # of a step on the fastest of links: threads and event loops wake each other


def choose(speed: Speed, image: Estimate, needs: int, compute_seconds: float) -> int:
    """How many images keep the busier of processor and link busy. ``image``: of one; ``needs``: its correlations.

    An image waits a share of its time; so many that all of them wait at once for ``IDLE`` of it, as if each waited
    without regard to the others. 2 wherever round trips are a quarter of the rest, or less.
    """
    steps = STEPS * needs
    busy = max(BUSIER * image.online_bytes / speed.bytes_per_second, compute_seconds, steps * STEP_SECONDS)
    waiting = steps / 2 * speed.round_trip
    together = math.log(IDLE) / math.log(waiting / (waiting + busy)) if waiting else 0
    return min(MOST, max(2, math.ceil(together)))


def fitting(wanted: int, network: Network, limits: Limits) -> int:
    """As many of them as memory and connections allow."""
    return capacity.images_in_flight(min(wanted, limits.channels_per_peer), network, limits.memory_gib)


class Flight:
    """One session's images on their way, at either party. Lives in the event loop's thread."""

    def __init__(self, job: Job, done: int, total: int) -> None:
        self._job = job
        self._done = done
        self._total = total
        self._parts: dict[bytes, int] = {}  # of each image's job
        self._shown = 0
        self._counted = 0.0  # until when the time was given to somebody

    @property
    def jobs(self) -> list[bytes]:
        return list(self._parts)

    def begin(self, job: bytes) -> None:
        if not self._parts:
            self._shown, self._counted = 0, time.monotonic()
        self._parts[job] = 0

    def progress(self, job: bytes, at: int, of: int) -> None:
        """Image ``job`` has done ``at`` of ``of``. What is shown never goes back, even when an image is lost."""
        if job not in self._parts:
            return
        self._parts[job] = PARTS * at // of
        first, last = self._done + 1, min(self._done + len(self._parts), self._total)
        which = f"image {first}" if first >= last else f"images {first} to {last}"
        self._shown = max(self._shown, min(self._done * PARTS + sum(self._parts.values()), self._total * PARTS))
        self._job.report("online", self._shown, self._total * PARTS, f"{which} of {self._total}")

    def landed(self, job: bytes, first: bool = True) -> float:
        """Image ``job`` is done, for the ``first`` time. Seconds with an image in flight since the last one landed."""
        self.lost(job)
        self._done += first
        now = time.monotonic()
        seconds, self._counted = now - self._counted, now
        return seconds

    def lost(self, job: bytes) -> None:
        self._parts.pop(job, None)
