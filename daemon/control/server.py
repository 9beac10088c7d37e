"""The control API's socket: requests in, progress and one answer out (docs/control-api.md)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack

from mpcd.daemon import log
from mpcd.daemon.control import operator
from mpcd.daemon.control.jobs import Job, Progress
from mpcd.daemon.errors import Conflict, InternalError, MpcdError
from mpcd.daemon.tasks import Tasks

MAX_MESSAGE = 64 * 1024 * 1024
MAX_REQUEST = 1024 * 1024
_LENGTH = struct.Struct("<I")

_log = log.get("control")


class UsageError(MpcdError):
    """The request is not one that the control API has."""

    code = "usage"
    exit_status = 2


class Params:
    """A request's parameters: taken one by one with their types; what is left over is a mistake."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = {key: value for key, value in given.items() if value is not None}

    def text(self, name: str) -> str:
        value = self.optional_text(name)
        if not value:
            raise UsageError(f"the parameter {name} is missing")
        return value

    def optional_text(self, name: str) -> str | None:
        value: str | None = self._take(name, str, "a text")
        return value

    def count(self, name: str) -> int:
        value = self.optional_count(name)
        if value is None:
            raise UsageError(f"the parameter {name} is missing")
        return value

    def optional_count(self, name: str, most: int = 1_000_000) -> int | None:
        value: int | None = self._take(name, int, "a whole number")
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"{name} is {value}, must be 1 to {most}")
        return value

    def position(self, name: str) -> int:
        """In a file; 0 by default."""
        value = self._take(name, int, "a whole number")
        if value is not None and value < 0:
            raise UsageError(f"{name} is {value}, must be 0 or more")
        return value or 0

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._take(name, bool, "true or false")
        return default if value is None else bool(value)

    def optional_texts(self, name: str) -> list[str] | None:
        value: list[str] | None = self._take(name, list, "a list of texts")
        if value is not None and not all(isinstance(item, str) and item for item in value):
            raise UsageError(f"{name} must be a list of texts")
        return value

    def path(self, name: str) -> Path:
        path = self.optional_path(name)
        if path is None:
            raise UsageError(f"the parameter {name} is missing")
        return path

    def optional_path(self, name: str) -> Path | None:
        value = self.optional_text(name)
        if value is not None and not os.path.isabs(value):
            raise UsageError(f"{name} is {value!r}, must be an absolute path")
        return None if value is None else Path(value)

    def end(self) -> None:
        if self._given:
            raise UsageError(f"unknown parameter: {', '.join(sorted(map(str, self._given)))}")

    def _take(self, name: str, kind: type, what: str) -> Any:
        value = self._given.pop(name, None)
        if value is not None and type(value) is not kind:
            raise UsageError(f"{name} must be {what}")
        return value


Method = Callable[[Params, Job], Awaitable[dict[str, Any]]]


class ControlServer:
    """Serves ``methods`` on a unix socket that only its owner may open."""

    def __init__(
        self, path: Path, methods: Mapping[str, Method], on_error: Callable[[str], None] = lambda code: None
    ) -> None:
        """``on_error`` gets the code of every error that is answered."""
        self._path = path
        self._on_error = on_error
        self._methods = methods
        self._connections = Tasks()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises Conflict when another daemon answers there."""
        if self._path.exists():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(self._path)
                writer.close()
                raise Conflict(f"another daemon answers at {self._path}", "stop it, or choose another --runtime")
            self._path.unlink()
        old_mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
        finally:
            os.umask(old_mask)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()  # its requests are cancelled, once, and waited for
        await self._connections.wait()
        self._path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self._connections.spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests: set[asyncio.Task[None]] = set()
        try:
            operator.uid.set(operator.uid_of(writer))
            while True:
                try:
                    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                    if size > MAX_REQUEST:
                        _log.warning("request too large", size=size)
                        return
                    request = msgpack.unpackb(await reader.readexactly(size))
                    number, method, params = request["id"], request["method"], request.get("params") or {}
                    if type(number) is not int or not isinstance(method, str) or not isinstance(params, dict):
                        raise ValueError("wrong types")
                except (asyncio.IncompleteReadError, ConnectionError):
                    return
                except Exception:
                    _log.warning("request does not decode")
                    return
                answer = asyncio.create_task(self._answer(writer, number, method, params))
                requests.add(answer)
                answer.add_done_callback(requests.discard)
        finally:
            for answer in requests:
                answer.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
            self._open.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, number: int, method: str, given: dict[str, Any]) -> None:
        job = Job()
        with job.watched() as progress:
            forward = asyncio.create_task(_forward(writer, number, progress))
            message: dict[str, Any]
            try:
                if method not in self._methods:
                    raise UsageError(f"there is no method {method[:80]!r}", "see docs/control-api.md")
                message = {"id": number, "result": await self._methods[method](Params(given), job)}
            except MpcdError as error:
                self._on_error(error.code)
                message = {"id": number, "error": error.as_dict()}
            except asyncio.CancelledError:
                forward.cancel()
                raise
            except Exception as error:
                _log.error("a request failed", method=method, exc_info=error)
                self._on_error(InternalError.code)
                bug = InternalError(f"the daemon met a bug: {type(error).__name__}", "its log has more")
                message = {"id": number, "error": bug.as_dict()}
            job.end()
            await forward
            with contextlib.suppress(ConnectionError):
                await _send(writer, message)


async def _forward(writer: asyncio.StreamWriter, number: int, progress: Any) -> None:
    with contextlib.suppress(ConnectionError):
        item: Progress
        async for item in progress:
            if item.stage:
                await _send(writer, {"id": number, "progress": dataclasses.asdict(item)})


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    data: bytes = msgpack.packb(message)
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()
