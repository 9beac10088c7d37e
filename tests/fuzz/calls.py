"""The control link: any frames, to a link that has calls of its own under way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import strategies as st

from mpcd.daemon.errors import MpcdError, NotFound, PeerClosed, PeerError, ProtocolViolation
from mpcd.daemon.network import rpc
from mpcd.daemon.network.greeting import Hello
from mpcd.daemon.network.rpc import Link
from tests.fuzz.harness import Target, changed


class Wire:
    """A connection that brings these frames and keeps what is answered."""

    failure: Exception | None = None

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = frames
        self.answers: list[list[Any]] = []

    async def recv_frame(self, limit: int) -> tuple[bytes, memoryview]:
        if not self._frames:
            await asyncio.sleep(0)
            raise PeerClosed()
        return rpc.HEADER, memoryview(self._frames.pop(0)[:limit])

    async def send_frame(self, frame: Any) -> None:
        self.answers.append(msgpack.unpackb(b"".join(frame.payload)))

    def abort(self) -> None:
        self.failure = PeerClosed()


async def echo(peer: str, params: dict[str, Any]) -> dict[str, Any]:
    return params


async def refuse(peer: str, params: dict[str, Any]) -> dict[str, Any]:
    raise NotFound("/secret/path")


VALID = (
    ["call", 1, "echo", {"a": 1}],
    ["call", 2, "refuse", {}],
    ["call", 3, "nothing", {}],
    ["result", 0, {"a": b"x"}],
    ["error", 0, {"code": "busy", "message": "x", "hint": "y", "exit_status": 6}],
    ["error", 5, None],
)


class Calls(Target):
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def seeds(self) -> Sequence[bytes]:
        return [msgpack.packb(valid) for valid in VALID] + [
            b"\xdd\xff\xff\xff\xff", b"\x91" * 2000, b"\xdc\x10\x00" + b"\x90" * 4096,
        ]  # fmt: skip

    def structured(self) -> st.SearchStrategy[bytes]:
        return st.sampled_from(VALID).flatmap(changed).map(msgpack.packb)

    def one(self, data: bytes) -> None:
        self._loop.run_until_complete(self._one(data))

    async def _one(self, data: bytes) -> None:
        wire: Any = Wire([data, data])
        theirs = Hello("beta", "x")
        link = Link("beta", wire, theirs, {"echo": echo, "refuse": refuse}, dialled=True, most_calls=8)
        call = asyncio.create_task(link.call("x", {}, 5.0))
        await asyncio.sleep(0)
        reason = await link.run()
        assert isinstance(reason, (ProtocolViolation, PeerClosed)), reason
        try:
            assert isinstance(await call, dict)
        except (PeerError, PeerClosed):
            pass
        except MpcdError as error:
            raise AssertionError(f"the caller gets {error!r}") from error
        for _ in range(10):
            if not link._tasks:
                break
            await asyncio.sleep(0)
        assert not link._pending
        assert link._at_work == 0 or link._tasks
        assert "secret" not in repr(wire.answers)

    def close(self) -> None:
        self._loop.close()


def make(folder: Path) -> Target:
    return Calls()
