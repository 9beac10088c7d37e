"""Drives one party of a protocol over a connection: performs the effects of protocol/channel.py.

The protocol runs in a thread, kernels and its own steps between them, and hands over to the event loop only where it
must wait for a frame or after ``BURST`` seconds: a kernel takes less time than a change of threads. Frames that it
sends go into an outbox that a task empties, so that two parties which send at the same time, as in every symmetric
step, do not wait for each other; the outbox is bounded. Keepalives are the connection's own matter
(daemon/network/transport.py), so a long computation is not silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from mpcd.daemon.errors import LinkError, PeerDeviated, ProtocolViolation
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.tasks import seen
from mpcd.protocol.channel import Compute, Recv, Send
from mpcd.protocol.wire import Deviation, Frame, WireError

OUTBOX = 64 * 1024 * 1024  # payload bytes that may wait to be sent
BURST = 0.05  # seconds that a protocol has its thread at a time, and one kernel more
GIVE_WAY = 1.0  # seconds without progress, with the peer's frame waiting too, that look like both of us sending

R = TypeVar("R")


class _Outbox:
    """Frames on their way out. ``post`` may be called in a thread, by turns with ``put`` in the loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._frames: deque[Frame] = deque()  # the first one is being sent
        self._lock = threading.Lock()  # over the bytes
        self._bytes = 0
        self._error: Exception | None = None
        self._filled = asyncio.Event()
        self._sent = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    def post(self, frame: Frame) -> bool:
        """Takes the frame, if there is room and nothing has failed."""
        if self._bytes >= OUTBOX or self._error is not None:
            return False
        self._add(frame)
        self._loop.call_soon_threadsafe(self._filled.set)
        return True

    async def put(self, frame: Frame) -> None:
        """Takes the frame; waits first while too much is waiting already."""
        async with self._sent:
            while self._bytes >= OUTBOX and self._error is None:
                before = self._connection.bytes_written
                try:
                    async with asyncio.timeout(GIVE_WAY):
                        await self._sent.wait()
                except TimeoutError:
                    # The peer reads nothing and sends itself: it waits for us to read, which we do after this send.
                    if self._connection.frame_waiting and self._connection.bytes_written == before:
                        break
        if self._error is not None:
            raise self._error
        self._add(frame)
        self._filled.set()

    def _add(self, frame: Frame) -> None:
        with self._lock:
            self._bytes += frame.payload_size
        self._frames.append(frame)

    async def flush(self) -> None:
        """Until every frame is sent."""
        async with self._sent:
            await self._sent.wait_for(lambda: not self._frames or self._error is not None)
            if self._error is not None:
                raise self._error

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._error is None:
            self._filled.clear()
            if not self._frames:
                await self._filled.wait()
                continue
            try:
                await self._connection.send_frame(self._frames[0])
            except Exception as error:
                self._error = error
            async with self._sent:
                with self._lock:
                    self._bytes -= self._frames.popleft().payload_size
                self._sent.notify_all()


async def drive(coroutine: Coroutine[Any, Any, R], connection: Connection, executor: Executor | None) -> R:
    """The coroutine's result; everything it sent is then with the operating system.

    Raises what the protocol raises, WireError as ProtocolViolation (Deviation as PeerDeviated), and what the connection
    fails with. After any exception, cancellation included, no kernel of this protocol runs any more and the connection
    is dropped: the parties are out of step.
    """
    outbox = _Outbox(connection)
    try:
        result = await _steps(coroutine, connection, outbox, executor)
        await outbox.flush()
    except Deviation as error:
        deviation = PeerDeviated(str(error), "nothing made in this run is used; find out why before the next one")
        connection.abort(deviation)
        raise deviation from error
    except WireError as error:
        violation = ProtocolViolation(str(error), "both sides should run the same version of mpcd")
        connection.abort(violation)
        raise violation from error
    except BaseException:
        connection.abort(LinkError("the protocol on this connection was stopped on this side"))
        raise
    finally:
        coroutine.close()
        await outbox.stop()
    return result


def in_loop(function: Callable[..., None]) -> Callable[..., None]:
    """``function``, a callback out of a protocol, called soon and in the event loop, which alone may run it."""
    loop = asyncio.get_running_loop()

    def later(*args: Any) -> None:
        loop.call_soon_threadsafe(function, *args)

    return later


async def _steps(
    coroutine: Coroutine[Any, Any, R], connection: Connection, outbox: _Outbox, executor: Executor | None
) -> R:
    burst = _Burst(coroutine, outbox)
    while True:
        effect = await _in_thread(burst, executor)
        try:
            if isinstance(effect, Send):
                await outbox.put(effect.frame)
            elif isinstance(effect, Recv):
                burst.reply = await connection.recv_frame(effect.limit, connection.timeouts.step)
            elif isinstance(effect, _Done):
                result: R = effect.result
                return result
            elif effect is not None:
                raise TypeError(f"not an effect: {effect!r}")
        except Exception as caught:
            burst.error = caught


@dataclasses.dataclass(frozen=True, slots=True)
class _Done:
    result: Any


class _Burst:
    """The protocol's steps in a thread. ``reply`` or ``error``: what its last effect brought."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], outbox: _Outbox) -> None:
        self._coroutine, self._outbox = coroutine, outbox
        self.reply: Any = None
        self.error: Exception | None = None
        self.stopped = False

    def run(self) -> Any:
        """To the next effect that is the loop's to perform, or the end; None: the time is up."""
        end = time.monotonic() + BURST
        while True:
            reply, error, self.reply, self.error = self.reply, self.error, None, None
            try:
                effect = self._coroutine.send(reply) if error is None else self._coroutine.throw(error)
            except StopIteration as stop:
                return _Done(stop.value)
            if isinstance(effect, Compute):
                try:
                    self.reply = effect.function(*effect.args)
                except Exception as caught:
                    self.error = caught
                if self.stopped or time.monotonic() > end:
                    return None
            elif not isinstance(effect, Send) or not self._outbox.post(effect.frame):
                return effect


async def _in_thread(burst: _Burst, executor: Executor | None) -> Any:
    """A thread cannot be stopped: when cancelled, wait for it, so that nothing of this run goes on behind our back."""
    future = asyncio.get_running_loop().run_in_executor(executor, burst.run)
    future.add_done_callback(seen)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        burst.stopped = True
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        raise
