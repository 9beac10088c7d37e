"""Two halves of one job, one at each daemon: when one fails, the other hears why, and at once.

A half that fails drops its data connection, which tells the other only that the peer is gone; a half that fails before
it opened one tells nothing at all. So the reason goes over the control link as ``job.failed``. That may come before the
other half has begun: what is asked for takes a moment to be looked at, and may be given up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Coroutine
from typing import Any, TypeVar

from mpcd.daemon import log
from mpcd.daemon.context import Context
from mpcd.daemon.errors import LinkError, MpcdError, PeerError, ProtocolViolation, for_peer
from mpcd.daemon.network.greeting import error_from
from mpcd.daemon.tasks import seen

LISTEN = 1.0  # seconds that the reason may come later than the end of the data connection
TELL = 5.0
EARLY = 64  # failures of a peer's jobs that have not begun here, the last ones; also those of jobs that have ended

R = TypeVar("R")

_log = log.get("jobs")


class Stopped(MpcdError):
    """The other side stopped this job."""

    code = "stopped"
    exit_status = 6
    shared = True


class Partner:
    """Both ends of ``job.failed``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._heard: dict[tuple[str, bytes], asyncio.Future[PeerError]] = {}
        self._early: dict[str, OrderedDict[bytes, PeerError]] = defaultdict(OrderedDict)
        self.handlers = {"job.failed": self._serve_failed}

    async def run(self, peer: str, job: bytes, half: Coroutine[Any, Any, R]) -> R:
        """What our half returns. Raises what it raises, or the reason for which the peer's half failed.

        Raises ProtocolViolation where a job of this id is at work: the peer may have chosen it.
        """
        if (peer, job) in self._heard:
            half.close()
            raise ProtocolViolation("a job of this id is at work already")
        heard: asyncio.Future[PeerError] = asyncio.get_running_loop().create_future()
        self._heard[peer, job] = heard
        if (early := self._early[peer].pop(job, None)) is not None:
            heard.set_result(early)
        work = asyncio.create_task(half)
        work.add_done_callback(seen)  # when cancelled, it may yet fail with something else
        try:
            both: list[asyncio.Future[Any]] = [work, heard]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise heard.result()
            try:
                return work.result()
            except LinkError as error:
                if self._context.net.connected(peer):
                    await asyncio.wait([heard], timeout=LISTEN)
                if heard.done():
                    raise heard.result() from error
                raise
        except BaseException as error:
            work.cancel()
            await asyncio.wait([work])
            if not heard.done() and not isinstance(error, LinkError):
                await self._tell(peer, job, error)
            raise
        finally:
            del self._heard[peer, job]

    async def _tell(self, peer: str, job: bytes, error: BaseException) -> None:
        """Best effort."""
        if not isinstance(error, (MpcdError, asyncio.CancelledError)):
            _log.error("our half of a job failed", peer=peer, exc_info=error)
        reason = for_peer(Stopped() if isinstance(error, asyncio.CancelledError) else error)
        with contextlib.suppress(MpcdError):
            await self._context.net.call(peer, "job.failed", {"job": job, "error": reason}, timeout=TELL)

    async def _serve_failed(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        job = params.get("job")
        if not isinstance(job, bytes) or len(job) != 16:
            raise ProtocolViolation("job.failed is malformed")
        error = error_from(params.get("error"))
        failure = PeerError(error.code, f"at {peer}: {error.message}", error.hint, error.exit_status)
        heard = self._heard.get((peer, job))
        if heard is None:
            early = self._early[peer]
            early[job] = failure
            if len(early) > EARLY:
                early.popitem(last=False)
        elif not heard.done():
            heard.set_result(failure)
        return {}
