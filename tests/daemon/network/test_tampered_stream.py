"""Bytes of TLS lost, repeated, exchanged, altered and put in on the way: the link breaks, the session ends right."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mpcd.daemon.errors import PeerError
from tests.daemon import two_daemons
from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, VENDOR, Client

IMAGES = 3
FAULTS = 5  # then the link is left alone: a session gives up after eight failures in a row


class Meddler:
    """A relay that now and then does something to the bytes of a chunk."""

    def __init__(self, to: int, rng: random.Random) -> None:
        self._to = to
        self._rng = rng
        self._wrong = set(rng.sample(range(10, 200), FAULTS))
        self._chunks = self.faults = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._to)
        for source, sink in ((reader, onward_writer), (onward_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        rng = self._rng
        with contextlib.suppress(OSError):
            while data := await source.read(rng.choice((16, 1024, 65536))):
                self._chunks += 1
                if self._chunks in self._wrong:
                    self.faults += 1
                    data = rng.choice(CHANGES)(data, rng)
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError):
            sink.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    lambda data, rng: b"",
    lambda data, rng: data[: rng.randrange(len(data))],
    lambda data, rng: data + data,
    lambda data, rng: data[len(data) // 2 :] + data[: len(data) // 2],
    lambda data, rng: os.urandom(len(data)),
    lambda data, rng: os.urandom(7) + data,
    lambda data, rng: b"\x15\x03\x03\x00\x02\x02\x28" + data,  # an alert in the clear
)


@contextlib.asynccontextmanager
async def meddled(root: Path, rng: random.Random) -> AsyncIterator[tuple[Any, Any, Meddler]]:
    """Two daemons; the hospital dials through the meddler."""
    async with two_daemons.daemons(root, IMAGES) as (vendor, hospital):
        meddler = Meddler(vendor.net.port, rng)
        server = await asyncio.start_server(meddler.join, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        hospital.context.peers.remove(VENDOR)
        hospital.context.peers.add(vendor.context.identity.invite(VENDOR, f"127.0.0.1:{port}"))
        try:
            yield vendor, hospital, meddler
        finally:
            server.close()
            meddler.close()


@pytest.mark.timeout(300)
def test_results_are_right_whatever_happens_to_the_bytes(run: Any, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)

    async def main() -> tuple[str, int]:
        async with meddled(tmp_path, random.Random(seed)) as (vendor, hospital, meddler):
            async with asyncio.timeout(60):
                while not (hospital.net.connected(VENDOR) and vendor.net.connected(HOSPITAL)):
                    await asyncio.sleep(0.05)
            client = Client(hospital.context.paths.control_socket)
            decider = Client(vendor.context.paths.control_socket)
            async with asyncio.timeout(200):
                began = None
                while began is None:  # the link may break just then
                    with contextlib.suppress(PeerError):
                        began = await client.call(
                            "session.start", peer=VENDOR, model=MODEL, dataset=DATASET, images=IMAGES, reveal="scores"
                        )
                id = began["session"]["id"]
                await decider.call("session.approve", session=id)
                while True:
                    session = (await client.call("session.show", session=id))["session"]
                    assert session["state"] not in ("failed", "denied", "cancelled"), session["reason"]
                    if session["state"] == "done":
                        return id, meddler.faults
                    await asyncio.sleep(0.1)
        raise AssertionError

    id, faults = run(main())
    assert two_daemons.results(tmp_path, id) == two_daemons.expected(tmp_path)
    two_daemons.audit(tmp_path)
    assert faults >= 1, f"seed {seed}: the link was hardly meddled with"
