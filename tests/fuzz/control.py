"""The control socket: any requests; each is answered with a result or an error of the API, or the client is dropped."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import strategies as st

from mpcd.daemon.control.server import ControlServer
from tests.fuzz.harness import Target, changed

LENGTH = struct.Struct("<I")


async def take(params: Any, job: Any) -> dict[str, Any]:
    """One parameter of every kind."""
    found = {
        "name": params.text("name"),
        "number": params.optional_count("number"),
        "flag": params.flag("flag"),
        "names": params.optional_texts("names"),
        "path": str(params.optional_path("path")),
    }
    params.end()
    job.report("working", 1, 2, "half way")
    return found


VALID = (
    {"id": 1, "method": "take", "params": {"name": "x", "number": 3, "flag": True, "names": ["a"], "path": "/tmp"}},
    {"id": 2, "method": "take"},
    {"id": 3, "method": "nothing", "params": {}},
)


def framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


class Out:
    """A writer that keeps what it gets."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Control(Target):
    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._server = ControlServer(folder / "control.sock", {"take": take})

    def seeds(self) -> Sequence[bytes]:
        bodies = [msgpack.packb(valid) for valid in VALID]
        return [*map(framed, bodies), b"".join(map(framed, bodies)), LENGTH.pack((1 << 32) - 1), framed(b"\xc1")]

    def structured(self) -> st.SearchStrategy[bytes]:
        request = st.sampled_from(VALID).flatmap(changed).map(msgpack.packb).map(framed)
        return st.lists(request, min_size=1, max_size=3).map(b"".join)

    def one(self, data: bytes) -> None:
        self._loop.run_until_complete(self._one(data))

    async def _one(self, data: bytes) -> None:
        reader = asyncio.StreamReader(limit=1 << 21)
        reader.feed_data(data)
        asyncio.get_running_loop().call_later(0, lambda: None)
        out: Any = Out()
        serving = asyncio.create_task(self._server._serve(reader, out))
        for _ in range(30):
            await asyncio.sleep(0)
        reader.feed_eof()
        await serving
        at = 0
        while at < len(out.data):
            (size,) = LENGTH.unpack_from(out.data, at)
            answer = msgpack.unpackb(bytes(out.data[at + 4 : at + 4 + size]))
            at += 4 + size
            assert answer.get("error", {}).get("code") != "internal", (answer, data)
        assert at == len(out.data)
        assert not self._server._open

    def close(self) -> None:
        self._loop.close()


def make(folder: Path) -> Target:
    return Control(folder)
