"""The link: how fast TLS is each way and both ways at once, and how long a message takes there and back."""

from __future__ import annotations

import asyncio
import os

from mpcd.daemon.bench.options import Options
from mpcd.daemon.bench.party import Party
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER
from mpcd.protocol.wire import Frame

MESSAGE = 1 << 22
ROUND_TRIPS = 200

DERIVED: tuple[tuple[str, tuple[str, ...]], ...] = ()


async def once(party: Party, options: Options, small: bool) -> None:
    messages = 1 if small else max(1, options.megabytes * 1_000_000 // MESSAGE)
    size = messages * MESSAGE
    for name, sender in (("model owner to data owner", MODEL_OWNER), ("data owner to model owner", DATA_OWNER)):
        async with party.measure(name, size, "byte"):
            await (_send if party.number == sender else _receive)(party, messages)
            await (_receive if party.number == sender else _send)(party, 1, 1)
    async with party.measure("both ways at once", 2 * size, "byte"):
        await asyncio.gather(_send(party, messages), _receive(party, messages))
    trips = 1 if small else ROUND_TRIPS
    async with party.measure("round trip", trips, "round trip"):
        for _ in range(trips):
            if party.number == DATA_OWNER:
                await _send(party, 1, 1)
                await _receive(party, 1)
            else:
                await _receive(party, 1)
                await _send(party, 1, 1)


async def _send(party: Party, messages: int, size: int = MESSAGE) -> None:
    payload = memoryview(os.urandom(size))
    for _ in range(messages):
        await party.lanes[0].send_frame(Frame(b"bench", (payload,)))


async def _receive(party: Party, messages: int, size: int = MESSAGE) -> None:
    for _ in range(messages):
        await party.lanes[0].recv_frame(size)
