"""Data connections to one peer, each for one job, on demand.

One is open when both sides have asked for it. The side that dialled the control link dials it, for the other may be
unreachable from outside; there it waits, not yet welcomed, until the job is wanted.
"""

from __future__ import annotations

import asyncio
import time
import weakref

from mpcd.daemon.config import Config
from mpcd.daemon.errors import Conflict, LinkError, MpcdError, PeerUnreachable, Refused
from mpcd.daemon.network import greeting
from mpcd.daemon.network.authority import CertificateExpired
from mpcd.daemon.network.bandwidth import Bandwidth
from mpcd.daemon.network.dialler import Dialler
from mpcd.daemon.network.greeting import CHANNEL, Hello
from mpcd.daemon.network.link import ControlLink, ours_wins
from mpcd.daemon.network.traffic import Traffic
from mpcd.daemon.network.transport import Connection

UNCLAIMED = 120.0  # seconds that a data connection waits for its job to be wanted here


class TooManyChannels(Refused):
    """Too many data connections to this peer are open."""

    code = "busy"


class Channels:
    """``bandwidth``: what the data connections of all peers share, if that has a limit."""

    def __init__(
        self, link: ControlLink, config: Config, dialler: Dialler, traffic: Traffic, bandwidth: Bandwidth | None
    ) -> None:
        self._link = link
        self._config = config
        self._dialler = dialler
        self._traffic = traffic
        self._bandwidth = bandwidth
        self._open: set[Connection] = set()
        self._arrived: dict[bytes, Connection] = {}  # dialled by the peer, not yet asked for here
        self._wanted: set[bytes] = set()

    async def open(self, job: bytes, timeout: float) -> Connection:
        """A data connection for this job, which the peer has asked for as well. Raises LinkError, PeerError."""
        if len(job) != greeting.JOB_BYTES:
            raise ValueError(f"a job id has {greeting.JOB_BYTES} bytes")
        if job in self._wanted:
            raise Conflict(f"the data connection of job {job.hex()} is being opened already")
        self._wanted.add(job)
        try:
            async with asyncio.timeout(timeout):
                return self._opened(await self._connect(job))
        except TimeoutError:
            if self._link.current is None:
                raise self._link.unreachable() from None
            peer = self._link.peer.name
            raise PeerUnreachable(
                f"{peer} did not open its end of the data connection within {timeout:g} seconds",
                f"the control link is up: look at the log of {peer}'s daemon, and at firewalls between",
            ) from None
        finally:
            self._wanted.discard(job)

    def arrive(self, job: bytes, connection: Connection) -> None:
        """The peer dialled one, which waits for its job to be asked for here. Raises TooManyChannels."""
        self._arrived = {job: c for job, c in self._arrived.items() if c.failure is None}
        if sum(c.failure is None for c in self._open) + len(self._arrived) >= self._config.limits.channels_per_peer:
            raise TooManyChannels()
        before = self._arrived.pop(job, None)
        if before is not None:
            before.abort()
        self._arrived[job] = connection
        self._link.notify()
        # One that has ended must not stay in memory for this question.
        asyncio.get_running_loop().call_later(UNCLAIMED, self._drop_unclaimed, job, weakref.ref(connection))

    def abort(self, reason: MpcdError | None = None) -> None:
        """Drop them all, the waiting ones too. ``reason``: what their readers and writers get."""
        for connection in (*self._open, *self._arrived.values()):
            connection.abort(reason)

    async def _connect(self, job: bytes) -> Connection:
        """Dial it or take the one that arrives, as the control link says, over whatever becomes of that meanwhile."""
        link, times = self._link, self._config.timeouts
        dialling: asyncio.Task[tuple[Connection, Hello]] | None = None
        pause, earliest = times.retry_first, 0.0
        # Should both sides dial, because the control link is being replaced, then the smaller fingerprint's counts.
        yields = False
        instance = ""
        try:
            while True:
                if not link.active:
                    raise link.unreachable()
                if link.current is not None and link.current.theirs.instance != instance:
                    if instance:  # it knows nothing of this job any more
                        raise LinkError(f"{link.peer.name} was restarted")
                    instance = link.current.theirs.instance
                changed = link.changed
                if (dialling is None or yields) and (arrived := self._arrived.pop(job, None)) is not None:
                    if await self._take(arrived):
                        return arrived
                    continue
                if dialling is not None and dialling.done():
                    try:
                        connection, _ = dialling.result()
                    except (LinkError, CertificateExpired):  # it may be renewed in time
                        dialling, earliest = None, time.monotonic() + pause
                        pause = min(2 * pause, times.retry_most)
                    else:
                        dialling = None
                        return connection
                wait: float | None = None
                if dialling is None and link.current is not None and link.current.dialled:
                    wait = earliest - time.monotonic()
                    if wait <= 0:
                        dialling, wait = asyncio.create_task(self._dialler.dial(link.peer, CHANNEL, job)), None
                        yields = not ours_wins(link.current.connection)
                waiter = asyncio.create_task(changed.wait())
                try:
                    await asyncio.wait(
                        {waiter, dialling} if dialling else {waiter},
                        timeout=wait,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    waiter.cancel()
        finally:
            if dialling is not None:
                dialling.add_done_callback(_discard)
                dialling.cancel()

    async def _take(self, arrived: Connection) -> bool:
        """Welcome a data connection that waited for its job; False if its dialer gave up meanwhile."""
        try:
            async with asyncio.timeout(self._config.timeouts.handshake):
                await greeting.welcome(arrived)
                await greeting.confirmed(arrived)
        except (MpcdError, TimeoutError):
            arrived.abort()
            return False
        except BaseException:
            arrived.abort()
            raise
        return True

    def _opened(self, connection: Connection) -> Connection:
        if not self._link.active:  # removed meanwhile
            connection.abort()
            raise self._link.unreachable()
        self._open.add(connection)
        connection.when_closed(self._open.discard)
        self._traffic.count(connection)
        connection.limit_bandwidth(self._bandwidth)
        return connection

    def _drop_unclaimed(self, job: bytes, arrived: weakref.ref[Connection]) -> None:
        connection = arrived()
        if connection is not None and self._arrived.get(job) is connection:
            del self._arrived[job]
            connection.abort(LinkError("nobody here asked for this data connection"))


def _discard(task: asyncio.Task[tuple[Connection, Hello]]) -> None:
    """A dial nobody waits for any more."""
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()
