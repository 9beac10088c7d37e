"""A paired peer that says whatever a test wants: real TLS, a real greeting, and then frames by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any, Self

import msgpack

from mpcd.daemon.config import Timeouts
from mpcd.daemon.network import greeting, tls
from mpcd.daemon.network.identity import Identity, Invite
from mpcd.daemon.network.transport import Connection, dial
from mpcd.protocol.wire import Frame
from tests.system.two_parties import Party

NAME = "mallory"


class Mallory:
    """Connections to one daemon that has her invite."""

    def __init__(self, folder: Path, victim: Party) -> None:
        self.identity = Identity.load_or_create(folder, NAME)
        victim.ctl("peer", "add", str(self.identity.invite(NAME, "")))
        self._port = victim.port
        self._certificate = Invite.parse(victim.ctl("id")["invite"]).certificate
        self._numbers = itertools.count()
        self._open: list[Connection] = []

    async def __aenter__(self) -> Self:
        self.control = await self.connect(greeting.CONTROL)
        return self

    async def __aexit__(self, *details: object) -> None:
        for connection in self._open:
            connection.abort()

    async def connect(self, purpose: str, job: bytes = b"", welcomed: bool = True) -> Connection:
        context = tls.client_context(self.identity, self._certificate)
        connection = await dial("127.0.0.1", self._port, context, Timeouts())
        self._open.append(connection)
        await connection.recv_frame(greeting.LIMIT)
        hello = dataclasses.asdict(greeting.hello_of(self.identity, NAME, "by-hand", purpose, job))
        await self.send(connection, greeting.HEADER, hello)
        if welcomed:
            await self.welcomed(connection)
        return connection

    async def channel(self, job: bytes) -> Connection:
        """A data connection that both have asked for."""
        connection = await self.connect(greeting.CHANNEL, job)
        await self.send(connection, greeting.HEADER, {"here": True})
        return connection

    async def welcomed(self, connection: Connection) -> None:
        _, payload = await connection.recv_frame(greeting.LIMIT)
        verdict = msgpack.unpackb(payload)
        if not verdict["welcome"]:
            raise PermissionError(verdict["error"]["code"])

    async def send(self, connection: Connection, header: bytes, message: Any) -> None:
        data = message if isinstance(message, bytes) else msgpack.packb(message)
        await connection.send_frame(Frame(header, (memoryview(data),) if data else ()))

    async def call(self, method: Any, params: Any) -> Any:
        """The result map, or the code of the error; what the daemon itself asks meanwhile is not answered."""
        number = next(self._numbers)
        await self.send(self.control, b"rpc", ["call", number, method, params])
        async with asyncio.timeout(60):
            while True:
                _, payload = await self.control.recv_frame(1 << 20)
                kind, theirs, *rest = msgpack.unpackb(payload)
                if theirs == number and kind == "result":
                    return rest[0]
                if theirs == number and kind == "error":
                    return rest[0]["code"]

    async def until_it_ends(self) -> None:
        """Raises what the control link ends with."""
        while True:
            await self.control.recv_frame(1 << 20)

    async def model(self, name: str) -> dict[str, Any]:
        """What calls that mean this model say of it."""
        found = await self.call("catalogue.get", {"name": name})
        digest = hashlib.sha256(found["network"]).hexdigest()
        return {"model": name, "model_commitment": found["commitment"], "network_digest": digest}
