"""Attackers of a daemon's port: mute ones, slow ones, garbage, and certificates that nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from mpcd.daemon.network.identity import Identity


class Crowd:
    """Hundreds at once, from many addresses of loopback, in a thread of the test's process, between enter and exit."""

    def __init__(self, port: int, folder: Path, *, mute: int, dribbling: int, garbage: int, strangers: int) -> None:
        self.opened = 0
        self._port = port
        self._sizes = {"mute": mute, "dribbling": dribbling, "garbage": garbage, "strangers": strangers}
        self._identity = Identity.load_or_create(folder, "mallory")
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    async def _run(self) -> None:
        tasks = [
            asyncio.create_task(self._again(getattr(self, "_" + what), n))
            for what, count in self._sizes.items()
            for n in range(count)
        ]
        while not self._over.is_set():
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _again(self, attack: object, number: int) -> None:
        """The attack, again as soon as the daemon has ended it."""
        await asyncio.sleep(random.random())
        while True:
            with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
                await attack((f"127.0.{1 + number % 40}.{1 + number % 7}", 0))  # type: ignore[operator]
            await asyncio.sleep(0.2 + random.random())

    async def _open(
        self, address: tuple[str, int], context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.opened += 1
        return await asyncio.open_connection("127.0.0.1", self._port, local_addr=address, ssl=context)

    async def _mute(self, address: tuple[str, int]) -> None:
        reader, writer = await self._open(address)
        try:
            await reader.read()
        finally:
            writer.transport.abort()

    async def _dribbling(self, address: tuple[str, int]) -> None:
        """A TLS client hello, a byte a second."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._context().wrap_bio(incoming, outgoing).do_handshake()
        _, writer = await self._open(address)
        try:
            for byte in outgoing.read():
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1.0)
        finally:
            writer.transport.abort()

    async def _garbage(self, address: tuple[str, int]) -> None:
        reader, writer = await self._open(address)
        try:
            # Now and then what looks like a TLS record of the largest size.
            writer.write(random.choice([b"", b"\x16\x03\x01\x40\x00", b"\x17\x03\x03\xff\xff"]) + os.urandom(4096))
            await reader.read()
        finally:
            writer.transport.abort()

    async def _strangers(self, address: tuple[str, int]) -> None:
        reader, writer = await self._open(address, self._context())
        try:
            await reader.read()
        finally:
            writer.transport.abort()

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self._identity.file)
        return context
