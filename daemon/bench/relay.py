"""A slower link, imitated in user space: TCP relayed with a rate and a delay, for machines without tc netem.

    python -m mpcd.daemon.bench.relay HOST PORT MBIT RTT_MS

listens on loopback, prints its address, and joins every connection to HOST PORT. All connections share the rate, each
direction its own; every byte arrives half a round trip after it went through. TCP's own reaction to such a link (slow
start, loss) is not imitated.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import uvloop

CHUNK = 64 * 1024
QUEUE_SECONDS = 0.05  # of the rate: what the slowest hop's buffer holds


class _Direction:
    """One way of the link."""

    def __init__(self, bytes_per_second: float, delay: float) -> None:
        self.bytes_per_second = bytes_per_second
        self.delay = delay
        self.free = 0.0  # when the last byte so far has gone through

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the reader's end."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        task = asyncio.create_task(self._deliver(queue, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                self.free = max(time.monotonic(), self.free) + len(data) / self.bytes_per_second
                queue.put_nowait((self.free + self.delay, data))
                await asyncio.sleep(self.free - time.monotonic() - QUEUE_SECONDS)
        queue.put_nowait((time.monotonic() + self.delay, b""))
        await task

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - time.monotonic())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()


async def relay(host: str, port: int, megabits: float, round_trip: float) -> None:
    """Until cancelled."""
    there, back = (_Direction(megabits * 1e6 / 8, round_trip / 2000) for _ in range(2))

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, port, limit=CHUNK)
        await asyncio.gather(there.carry(reader, far_writer), back.carry(far_reader, writer))

    server = await asyncio.start_server(join, "127.0.0.1", 0, limit=CHUNK)
    print(*server.sockets[0].getsockname(), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(relay(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
