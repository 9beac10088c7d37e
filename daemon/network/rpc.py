"""Calls both ways over one control link: msgpack maps in frames of at most 1 MiB."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgpack

from mpcd.daemon import log
from mpcd.daemon.errors import (
    BadInput,
    InternalError,
    LinkError,
    MpcdError,
    NotFound,
    PeerClosed,
    PeerSilent,
    ProtocolViolation,
    Refused,
    for_peer,
)
from mpcd.daemon.network.greeting import Hello, error_from
from mpcd.daemon.network.rate import Rate
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.tasks import seen
from mpcd.protocol.wire import Frame

HEADER = b"rpc"
MAX_MESSAGE = 1024 * 1024
CALL, RESULT, ERROR = "call", "result", "error"
RETIRE_GRACE = 1.0
MAX_AT_WORK = 4 * MAX_MESSAGE  # bytes of the calls that are at work; more are not read
MESSAGES_A_SECOND, MESSAGES_AT_ONCE = 200.0, 1000.0  # more are not read either: TCP holds the peer back
MAX_ITEMS = 256 * 1024  # of one list or map in a message

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class MessageTooLarge(BadInput):
    """This is too large for the control link."""

    code = "message_too_large"
    shared = True


class TooManyCalls(Refused):
    """Too many calls of this peer are at work; try again later."""

    code = "busy"


class UnknownMethod(NotFound):
    """The peer called something that this daemon does not have."""

    code = "unknown_method"
    shared = True


class Link:
    """The control link to one peer, over a connection that has been greeted. ``dialled``: by this side."""

    def __init__(
        self,
        peer: str,
        connection: Connection,
        theirs: Hello,
        handlers: Mapping[str, Handler],
        *,
        dialled: bool,
        most_calls: int,
    ) -> None:
        self.peer = peer
        self.connection = connection
        self.theirs = theirs
        self.dialled = dialled
        self.since = time.time()
        self._handlers = handlers
        self._most_calls = most_calls
        self._numbers = itertools.count()
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work = 0  # bytes
        self._messages = Rate(MESSAGES_A_SECOND, MESSAGES_AT_ONCE, time.monotonic())
        self._fewer = asyncio.Event()
        self._log = log.get("rpc").bind(peer=peer)

    async def call(self, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        future.add_done_callback(seen)  # a link that breaks tells the call of it twice, while it is being sent
        self._pending[number] = future
        try:
            async with asyncio.timeout(timeout):
                await self._send([CALL, number, method, params])
                return await future
        except TimeoutError:
            raise PeerSilent(
                f"{self.peer} did not answer {method!r} within {timeout:g} seconds",
                f"the link is up, so {self.peer} is busy or stuck: ask them to look at their daemon's log",
            ) from None
        finally:
            self._pending.pop(number, None)

    async def run(self) -> Exception:
        """Until the link breaks; returns why. Calls that wait get to know."""
        reason: Exception
        try:
            while True:
                # As many refusals may wait to be sent as calls are at work; a peer that reads none of them is not read.
                while len(self._tasks) >= 2 * self._most_calls or self._at_work >= MAX_AT_WORK:
                    if self.connection.failure is not None:
                        raise self.connection.failure
                    self._fewer.clear()
                    await self._fewer.wait()
                while not self._messages.take(time.monotonic()):
                    await asyncio.sleep(self._messages.wait(time.monotonic()))
                header, payload = await self.connection.recv_frame(MAX_MESSAGE)
                self._take(header, payload)
        except MpcdError as error:
            reason = error
        finally:
            self.connection.abort()
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(PeerClosed(f"the link to {self.peer} broke before it answered"))
        return reason

    async def retire(self, wait: float) -> None:
        """Another link took over: finish what is under way on this one, then close it."""
        deadline = time.monotonic() + wait
        await asyncio.sleep(min(RETIRE_GRACE, wait))
        while (self._pending or self._tasks) and time.monotonic() < deadline and self.connection.failure is None:
            await asyncio.sleep(0.05)
        await self.connection.close()

    def stop(self) -> None:
        """Calls of the peer that are at work here are given up."""
        for task in self._tasks:
            task.cancel()

    def _take(self, header: bytes, payload: memoryview) -> None:
        try:
            kind, number, *rest = msgpack.unpackb(payload, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS)
        except Exception as error:
            raise ProtocolViolation(f"{self.peer} sent a control message that does not decode") from error
        if header != HEADER or type(number) is not int:
            raise ProtocolViolation(f"{self.peer} sent something that is no control message")
        if kind == CALL and len(rest) == 2 and isinstance(rest[0], str) and isinstance(rest[1], dict):
            task = asyncio.create_task(self._answer(number, rest[0], rest[1], len(self._tasks) >= self._most_calls))
            self._tasks.add(task)
            self._at_work += len(payload)
            task.add_done_callback(lambda task: self._ended(task, len(payload)))
        elif kind in (RESULT, ERROR) and len(rest) == 1:
            future = self._pending.get(number)
            if future is None or future.done():
                return  # we no longer wait for it
            if kind == ERROR:
                future.set_exception(error_from(rest[0]))
            elif isinstance(rest[0], dict):
                future.set_result(rest[0])
            else:
                raise ProtocolViolation(f"{self.peer} sent an answer that is no map")
        else:
            raise ProtocolViolation(f"{self.peer} sent a control message of an unknown kind")

    def _ended(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._at_work -= size
        self._fewer.set()

    async def _answer(self, number: int, method: str, params: dict[str, Any], busy: bool) -> None:
        reply: list[Any]
        try:
            if busy:
                raise TooManyCalls()
            handler = self._handlers.get(method)
            if handler is None:
                raise UnknownMethod(f"this daemon has no method {method[:80]!r}")
            reply = [RESULT, number, await handler(self.peer, params)]
        except MpcdError as error:
            if not error.shared:
                self._log.warning("a call failed", method=method[:80], code=error.code, reason=error)
            reply = [ERROR, number, error.for_peer()]
        except Exception as error:
            self._log.exception("a call failed", method=method[:80])
            reply = [ERROR, number, for_peer(error)]
        try:
            try:
                await self._send(reply)
            except (MessageTooLarge, InternalError) as error:
                self._log.error("an answer cannot be sent", method=method[:80], error=error)
                await self._send([ERROR, number, error.for_peer()])
        except MpcdError:
            pass  # the link is gone, and run() says so

    async def _send(self, message: list[Any]) -> None:
        try:
            data: bytes = msgpack.packb(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise InternalError(f"a control message cannot be encoded: {error}") from error
        if len(data) > MAX_MESSAGE:
            raise MessageTooLarge(f"a control message of {len(data)} bytes is too large, {MAX_MESSAGE} are allowed")
        if self.connection.failure is not None:
            raise LinkError(f"the link to {self.peer} is broken: {self.connection.failure}")
        # Not cancelled half way: that would cost the link for one caller's timeout.
        sending = asyncio.ensure_future(self.connection.send_frame(Frame(HEADER, (memoryview(data),))))
        sending.add_done_callback(seen)
        await asyncio.shield(sending)
