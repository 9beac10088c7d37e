"""A vendor whose daemon answers calls with anything: the hospital gets errors in plain words, and no bug is met."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mpcd.daemon.errors import PeerError
from tests.daemon import two_daemons
from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, VENDOR, Client

LIES = 120


def lie(truth: Any, rng: random.Random) -> Any:
    """The truth with one or more of its parts exchanged for anything."""
    anything: list[Any] = [
        None, True, -1, 0, 1 << 63, 1.5, float("nan"), "", "x", "\x1b[2J", "a" * 64, "../x", "9" * 5000,
        b"", bytes(16), os.urandom(500), [], [[]], {}, {"": None}, [MODEL] * 50, [1, "a"],
    ]  # fmt: skip
    if isinstance(truth, dict) and truth:
        key = rng.choice(sorted(truth))
        if rng.random() < 0.15:
            return {k: v for k, v in truth.items() if k != key}
        return {**truth, key: lie(truth[key], rng)}
    if isinstance(truth, bytes) and truth and rng.random() < 0.6:
        at = rng.randrange(len(truth))
        return truth[:at] + rng.choice((b"", b"\xff", b"\0\0")) + truth[at + 1 :]
    if isinstance(truth, str) and truth and rng.random() < 0.4:
        return truth.replace(rng.choice(truth.split() or [truth]), rng.choice(("0x" + "f" * 5000, "nan", "1e999", "[")))
    return rng.choice(anything)


class Liar:
    """Makes liars of honest handlers, while ``lies``."""

    def __init__(self, rng: random.Random) -> None:
        self.lies = True
        self._rng = rng

    def of(self, honest: Callable[[str, Any], Awaitable[dict[str, Any]]]) -> Any:
        async def handler(peer: str, params: dict[str, Any]) -> Any:
            answer = await honest(peer, params)
            return lie(answer, self._rng) if self.lies and self._rng.random() < 0.7 else answer

        return handler


async def linked(vendor: Any, hospital: Any) -> None:
    async with asyncio.timeout(20):
        while not (hospital.net.connected(VENDOR) and vendor.net.connected(HOSPITAL)):
            await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
def test_a_vendor_that_lies(run: Any, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    codes: dict[str, int] = {}
    told: list[str] = []

    async def main() -> str:
        async with two_daemons.daemons(tmp_path, 1) as (vendor, hospital):
            client = Client(hospital.context.paths.control_socket)
            honest = dict(vendor.net._handlers)
            methods = ("catalogue.list", "catalogue.get", "units.sync", "session.propose", "session.states")
            liar = Liar(rng)
            vendor.net._handlers.update({name: liar.of(honest[name]) for name in methods})
            vendor.net._records[HOSPITAL].link.current.connection.abort()  # type: ignore[union-attr]
            await asyncio.sleep(0.1)
            await linked(vendor, hospital)
            asked: list[tuple[str, dict[str, Any]]] = [
                ("model.list", {"peer": VENDOR}),
                ("offline.make", {"peer": VENDOR, "model": MODEL, "images": 1, "estimate_only": True}),
                (
                    "session.start",
                    {"peer": VENDOR, "model": MODEL, "dataset": DATASET, "reveal": "scores", "estimate_only": True},
                ),
                ("model.list", {"peer": VENDOR}),
                ("model.list", {"peer": VENDOR}),
                ("session.start", {"peer": VENDOR, "model": MODEL, "dataset": DATASET, "reveal": "scores"}),
            ]
            for number in range(LIES):
                method, params = asked[number % len(asked)]
                try:
                    async with asyncio.timeout(30):
                        await client.call(method, **params)
                except PeerError as error:
                    codes[error.code] = codes.get(error.code, 0) + 1
                    told.append(f"{method}: {error}")
                await linked(vendor, hospital)  # an answer that is no map ends the link, and another comes
            liar.lies = False
            for session in (await client.call("session.list"))["sessions"]:
                if session["state"] not in ("done", "failed", "denied", "cancelled"):
                    await client.call("session.cancel", session=session["id"])
            began = await client.call(
                "session.start", peer=VENDOR, model=MODEL, dataset=DATASET, images=1, reveal="scores"
            )
            id: str = began["session"]["id"]
            await Client(vendor.context.paths.control_socket).call("session.approve", session=id)
            async with asyncio.timeout(120):
                while (session := (await client.call("session.show", session=id))["session"])["state"] != "done":
                    assert session["state"] not in ("failed", "denied"), session["reason"]
                    await asyncio.sleep(0.1)
            assert hospital.net.connected(VENDOR)
            assert vendor.net.connected(HOSPITAL)
            return id

    id = run(main())
    assert sum(codes.values()) > LIES // 4, codes
    assert "internal" not in codes, f"seed {seed}: {told}"
    for text in told:
        assert text.isprintable(), f"seed {seed}: {text!r}"
        assert len(text) < 3000, f"seed {seed}: {text}"
    expected = two_daemons.expected(tmp_path)
    assert two_daemons.results(tmp_path, id) == {0: expected[0]}
