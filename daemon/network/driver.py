"""Drives one party of a protocol over a connection: performs the effects of protocol/channel.py.

Kernels run in a thread, one at a time. Sent frames go into an outbox that a task empties, so that two parties which
send at the same time, as in every symmetric step, do not wait for each other; the outbox is bounded. Keepalives are the
connection's own matter (daemon/network/transport.py), so a long computation is not silence.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from mpcd.daemon.errors import LinkError, PeerDeviated, ProtocolViolation
from mpcd.daemon.network.transport import Connection
from mpcd.protocol.channel import Compute, Recv, Send
from mpcd.protocol.wire import Deviation, Frame, WireError

OUTBOX = 64 * 1024 * 1024  # payload bytes that may wait to be sent
GIVE_WAY = 1.0  # seconds without progress, with the peer's frame waiting too, that look like both of us sending

R = TypeVar("R")


class _Outbox:
    """Frames on their way out."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames: deque[Frame] = deque()  # the first one is being sent
        self._bytes = 0
        self._error: Exception | None = None
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    async def put(self, frame: Frame) -> None:
        """Takes the frame; waits first while too much is waiting already."""
        async with self._changed:
            while self._bytes >= OUTBOX and self._error is None:
                before = self._connection.bytes_written
                try:
                    async with asyncio.timeout(GIVE_WAY):
                        await self._changed.wait()
                except TimeoutError:
                    # The peer reads nothing and sends itself: it waits for us to read, which we do after this send.
                    if self._connection.frame_waiting and self._connection.bytes_written == before:
                        break
            if self._error is not None:
                raise self._error
            self._frames.append(frame)
            self._bytes += frame.payload_size
            self._changed.notify_all()

    async def flush(self) -> None:
        """Until every frame is sent."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._frames or self._error is not None)
            if self._error is not None:
                raise self._error

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._error is None:
            async with self._changed:
                await self._changed.wait_for(lambda: self._frames)
                frame = self._frames[0]
            try:
                await self._connection.send_frame(frame)
            except Exception as error:
                self._error = error
            async with self._changed:
                self._frames.popleft()
                self._bytes -= frame.payload_size
                self._changed.notify_all()


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


async def _steps(
    coroutine: Coroutine[Any, Any, R], connection: Connection, outbox: _Outbox, executor: Executor | None
) -> R:
    reply: Any = None
    error: Exception | None = None
    while True:
        try:
            effect = coroutine.send(reply) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            result: R = stop.value
            return result
        reply = error = None
        try:
            if isinstance(effect, Send):
                await outbox.put(effect.frame)
            elif isinstance(effect, Recv):
                reply = await connection.recv_frame(effect.limit, connection.timeouts.step)
            elif isinstance(effect, Compute):
                reply = await _compute(effect, executor)
            else:
                raise TypeError(f"not an effect: {effect!r}")
        except Exception as caught:
            error = caught


async def _compute(effect: Compute, executor: Executor | None) -> Any:
    """A thread cannot be stopped: when cancelled, wait for it, so that nothing of this run goes on behind our back."""
    future = asyncio.get_running_loop().run_in_executor(executor, effect.function, *effect.args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen
        raise
