"""Greetings: both ends, with a peer that says anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import strategies as st

from mpcd.daemon.errors import PeerError, ProtocolViolation
from mpcd.daemon.network import greeting
from mpcd.daemon.network.greeting import Hello
from tests.fuzz.harness import Target, changed

MINE = Hello("alpha", "instance")


class Peer:
    """A connection that is all input."""

    peer_fingerprint = "f" * 64

    def __init__(self, payloads: list[bytes]) -> None:
        self._payloads = payloads

    async def recv_frame(self, limit: int) -> tuple[bytes, memoryview]:
        payload = self._payloads.pop(0) if self._payloads else b""
        return greeting.HEADER, memoryview(payload[:limit])

    async def send_frame(self, frame: Any) -> None:
        assert frame.payload_size <= greeting.LIMIT


def done(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Greetings(Target):
    def _hellos(self) -> list[dict[str, Any]]:
        hello = dataclasses.asdict(MINE)
        return [
            hello,
            {**hello, "purpose": "channel", "job": bytes(16)},
            {**hello, "purpose": "knock", "fingerprint": "a" * 64},
            {"welcome": True},
            {"welcome": False, "error": {"code": "busy", "message": "x", "hint": "", "exit_status": 6}},
            {"here": True},
        ]

    def seeds(self) -> Sequence[bytes]:
        return [bytes([way]) + msgpack.packb(fields) for way in range(4) for fields in self._hellos()]

    def structured(self) -> st.SearchStrategy[bytes]:
        fields = st.sampled_from(self._hellos()).flatmap(changed)
        return st.builds(lambda way, fields: bytes([way]) + msgpack.packb(fields), st.integers(0, 3), fields)

    def one(self, data: bytes) -> None:
        if not data:
            return
        peer: Any = Peer([data[1:]])
        try:
            way = data[0] % 4
            if way == 0:
                done(greeting.acceptor(peer, MINE, "beta"))
            elif way == 1:
                done(greeting.dialer(peer, MINE, "beta"))
            elif way == 2:
                done(greeting.welcomed(peer))
            else:
                done(greeting.confirmed(peer))
        except PeerError as error:
            assert str(error).isprintable()
            assert error.hint.isprintable()
        except ProtocolViolation:
            pass


def make(folder: Path) -> Target:
    return Greetings()
