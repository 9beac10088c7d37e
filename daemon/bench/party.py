"""One party of a measurement: its connections, and what was measured so far.

Both parties run the same code; ``measure`` begins at both at the same time. Connection 0 carries what the parties say
about the measuring; the *lanes* carry protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mpcd.daemon.bench.meter import Cost, Meter, Metered
from mpcd.daemon.config import Timeouts
from mpcd.daemon.errors import LinkError, MpcdError, PeerUnreachable
from mpcd.daemon.network import driver, tls
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.network.transport import Connection, dial
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.wire import Frame

R = TypeVar("R")

LARGEST = 1 << 24  # bytes of what the parties say about the measuring
PATIENCE = 60.0  # seconds to wait for the other party's process
_KEPT = 16  # kernels listed per row


class Row:
    """One figure: ``count`` of ``unit``, a sample per run."""

    def __init__(self, count: int, unit: str) -> None:
        self.count = count
        self.unit = unit
        self.samples: list[dict[str, Any]] = []


class Party:
    """``number``: MODEL_OWNER listens, DATA_OWNER dials. ``folder``: this party's, for units and the ledger."""

    def __init__(self, number: int, connections: list[Connection], folder: Path) -> None:
        self.number = number
        self.folder = folder
        self.lanes = connections[1:]
        self.rows: dict[str, Row] = {}
        self.warming = False
        self._control = connections[0]
        self._executor = ThreadPoolExecutor(4, "kernel")
        self._meter = Meter()
        self._session = b""
        self._drawn = 0
        self._marked: tuple[float, float] = (0.0, 0.0)

    # Talking about it.

    async def tell(self, said: Any) -> None:
        await self._control.send_frame(Frame(b"bench", (memoryview(json.dumps(said).encode()),)))

    async def hear(self) -> Any:
        _, payload = await self._control.recv_frame(LARGEST)
        return json.loads(bytes(payload))

    async def agree(self, said: Any, what: str) -> None:
        """Raises MpcdError unless the other party says the same."""
        await self.tell(said)
        theirs = await self.hear()
        if theirs != json.loads(json.dumps(said)):
            raise MpcdError(f"the two parties do not measure the same {what}: here {said}, there {theirs}")

    def say(self, text: str) -> None:
        """Progress, from one of the two."""
        if self.number == DATA_OWNER:
            print(text, file=sys.stderr, flush=True)

    # Doing it.

    def channel(self) -> Channel:
        """For the next protocol: both parties ask for channels in the same order."""
        self._drawn += 1
        return Channel(self.number, hashlib.sha256(self._session + self._drawn.to_bytes(8, "little")).digest()[:16])

    async def drive(self, work: Coroutine[Any, Any, R], lane: int = 0) -> R:
        result: R = await driver.drive(Metered(work, self._meter), self.lanes[lane], self._executor)
        return result

    async def aside(self, function: Any, *args: Any) -> Any:
        """In a thread, so that the connections live."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    @contextlib.asynccontextmanager
    async def measure(self, name: str, count: int, unit: str) -> AsyncIterator[None]:
        """Adds a sample to the row ``name``; what is measured may itself contain measurements."""
        await self._barrier()
        before = self._counters()
        meter = copy.deepcopy(self._meter)
        self._marked = before[:2]
        yield
        after = self._counters()
        if self.warming:
            return
        seconds, cpu, loop_cpu, sent, received = (b - a for a, b in zip(before, after, strict=True))
        row = self.rows.setdefault(name, Row(count, unit))
        row.samples.append(
            {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "loop_cpu_seconds": loop_cpu,
                "sent": sent,
                "received": received,
                "flows": self._meter.flows - meter.flows,
                "waiting_seconds": self._meter.waiting - meter.waiting,
                "sending_seconds": self._meter.sending - meter.sending,
                "kernels": _since(self._meter.kernels, meter.kernels),
                "steps": _since(self._meter.steps, meter.steps),
            }
        )

    def mark(self, step: str) -> None:
        """What has happened since the last mark was ``step``; meaningful while one protocol runs."""
        now = (time.perf_counter(), time.process_time())
        self._meter.step(step).add(now[0] - self._marked[0], now[1] - self._marked[1])
        self._marked = now

    def _counters(self) -> tuple[float, float, float, int, int]:
        sent, received = (sum(getattr(c, name) for c in self.lanes) for name in ("bytes_sent", "bytes_received"))
        return time.perf_counter(), time.process_time(), time.thread_time(), sent, received

    async def _barrier(self) -> None:
        """Both are here; from the data owner come 16 random bytes for both."""
        if self.number == DATA_OWNER:
            await self.tell(os.urandom(16).hex())
            self._session = bytes.fromhex(await self.hear())
        else:
            self._session = bytes.fromhex(await self.hear())
            await self.tell(self._session.hex())
        self._drawn = 0

    async def close(self) -> None:
        for connection in (self._control, *self.lanes):
            await connection.close()
        self._executor.shutdown()


def _since(now: dict[str, Cost], before: dict[str, Cost]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, cost in now.items():
        old = before.get(name, Cost())
        if cost.calls > old.calls:
            seconds, cpu = cost.seconds - old.seconds, cost.cpu_seconds - old.cpu_seconds
            rows.append({"name": name, "calls": cost.calls - old.calls, "seconds": seconds, "cpu_seconds": cpu})
    return sorted(rows, key=lambda row: -float(row["cpu_seconds"]))[:_KEPT]


def identities(folder: Path) -> tuple[Identity, Identity]:
    """Both parties' identities in a folder that both see, made by whoever comes first."""
    found = []
    for number in (MODEL_OWNER, DATA_OWNER):
        state = folder / str(number)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        found.append(Identity.load_or_create(state, f"bench-{number}"))
    return found[0], found[1]


async def listen(folder: Path, host: str, port: int, count: int) -> list[Connection]:
    """The model owner's end of ``count`` connections, in the data owner's order. Prints the address, for the other."""
    own, peer = identities(folder)
    arrived: asyncio.Queue[Connection] = asyncio.Queue()
    context = tls.server_context(own, [peer.certificate])

    def accept() -> Connection:
        connection = Connection(context, server_side=True)
        arrived.put_nowait(connection)
        return connection

    server = await asyncio.get_running_loop().create_server(accept, host, port)
    address = server.sockets[0].getsockname()
    print(f"{address[0]} {address[1]}", flush=True)
    connections: dict[int, Connection] = {}
    try:
        async with asyncio.timeout(PATIENCE):
            while len(connections) < count:
                connection = await arrived.get()
                try:
                    await connection.established()
                    _, payload = await connection.recv_frame(2)
                except LinkError:
                    continue
                if connection.peer_fingerprint == peer.fingerprint:
                    connections[int.from_bytes(payload, "little")] = connection
    except TimeoutError:
        raise PeerUnreachable(f"the other party did not connect within {PATIENCE:.0f} s") from None
    finally:
        server.close()
    return [connections[i] for i in range(count)]


async def connect(folder: Path, host: str, port: int, count: int) -> list[Connection]:
    """The data owner's end."""
    peer, own = identities(folder)
    context = tls.client_context(own, peer.certificate)
    connections: list[Connection] = []
    deadline = time.monotonic() + PATIENCE
    while len(connections) < count:
        try:
            connection = await dial(host, port, context, Timeouts())
        except (OSError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise PeerUnreachable(f"nobody listens at {host} port {port}: {error}") from error
            await asyncio.sleep(0.2)
            continue
        await connection.send_frame(Frame(b"bench", (memoryview(len(connections).to_bytes(2, "little")),)))
        connections.append(connection)
    return connections
