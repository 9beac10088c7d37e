"""The frame decoder, as it is under TLS: any bytes, in any pieces, read with any limits."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mpcd.daemon.errors import LinkError, ProtocolViolation
from mpcd.daemon.network.transport import KEEPALIVE, PREFIX, Connection
from mpcd.protocol.wire import MAX_HEADER
from tests.fuzz.harness import Target

LIMITS = (0, 1, 100, 8192, 1 << 20)


class Clear:
    """Where the decoder looks for plain text: TLS with nothing in it."""

    def __init__(self, incoming: ssl.MemoryBIO) -> None:
        self._incoming = incoming

    def read(self, most: int, into: memoryview) -> int:
        data = self._incoming.read(most)
        into[: len(data)] = data
        return len(data)

    def pending(self) -> int:
        return 0


class Frames(Target):
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def seeds(self) -> Sequence[bytes]:
        frame = PREFIX.pack(3, 5) + b"rpc" + b"hello"
        return [
            b"\x02\x10" + frame,
            b"\x02\x03" + frame * 3 + KEEPALIVE + frame,
            b"\x01\x50" + PREFIX.pack(MAX_HEADER, 0) + bytes(MAX_HEADER),
            b"\x00\x01" + KEEPALIVE * 200,
            b"\x04\xff" + PREFIX.pack(3, 1 << 20) + b"rpc" + bytes(2000),
            b"\x03\x07" + PREFIX.pack(3, 1 << 62) + b"rpc",
        ]

    def structured(self) -> st.SearchStrategy[bytes]:
        sizes = st.sampled_from([0, 1, 3, 100, MAX_HEADER, MAX_HEADER + 1, (1 << 32) - 1])
        most = st.sampled_from([0, 1, 100, 101, 8192, 1 << 20, 1 << 40, (1 << 64) - 1])
        frame = st.builds(
            lambda header, payload, body: PREFIX.pack(header, payload) + body, sizes, most, st.binary(max_size=200)
        )
        return st.builds(
            lambda limit, piece, frames: bytes([limit, piece]) + b"".join(frames),
            st.integers(0, 255),
            st.integers(0, 255),
            st.lists(frame, max_size=5),
        )

    def one(self, data: bytes) -> None:
        self._loop.run_until_complete(self._one(data[:2], data[2:]))

    async def _one(self, how: bytes, data: bytes) -> None:
        if len(how) < 2:
            return
        limit, piece = LIMITS[how[0] % len(LIMITS)], how[1] + 1
        connection = Connection(self._context, server_side=False)
        connection._tls = Clear(connection._incoming)  # type: ignore[assignment]
        connection._open = True
        taken = bytearray()
        for start in range(0, min(len(data), 64 * piece), piece):
            self._feed(connection, data[start : start + piece])
            while (frame := await self._next(connection, limit)) is not None:
                header, payload = frame
                assert 0 < len(header) <= MAX_HEADER
                assert len(payload) <= limit
                taken += PREFIX.pack(len(header), len(payload)) + header + payload
            if connection.failure is not None:
                assert isinstance(connection.failure, (ProtocolViolation, LinkError)), connection.failure
                break
            assert len(connection._target) <= max(MAX_HEADER, limit), "more than the reader allowed is kept"
        assert bytes(taken) == data[: len(taken)] or KEEPALIVE in data, "frames are not what was sent"

    @staticmethod
    def _feed(connection: Connection, piece: bytes) -> None:
        connection.get_buffer(len(piece))[: len(piece)] = piece
        connection.buffer_updated(len(piece))

    @staticmethod
    async def _next(connection: Connection, limit: int) -> Any:
        """The next frame, if it is there."""
        reading = connection.recv_frame(limit).__await__()
        try:
            reading.send(None)  # type: ignore[attr-defined]
        except StopIteration as stop:
            return stop.value
        except (ProtocolViolation, LinkError):
            return None
        reading.close()  # type: ignore[attr-defined]
        return None

    def close(self) -> None:
        self._loop.close()


def make(folder: Path) -> Target:
    return Frames()
