"""Oblivious transfer, per extension: base OTs and set-up, random correlated OTs, and comparison leaves made of them."""

from __future__ import annotations

from mpcd.daemon.bench.options import Options
from mpcd.daemon.bench.party import Party
from mpcd.daemon.control.server import UsageError
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import LeafNeed
from mpcd.protocol.ot import correlate
from mpcd.protocol.ot.extension import CHUNK

BLOCK = 4
SMALL = 1 << 10

DERIVED: tuple[tuple[str, tuple[str, ...]], ...] = ()


async def once(party: Party, options: Options, small: bool) -> None:
    for extension in chosen(options):
        count = SMALL if small else options.cots
        party.say(f"ot: {extension}")
        channel = party.channel()
        async with party.measure(f"{extension} set-up", 1, "set-up"):
            ots = await party.drive(correlate.set_up(channel, extension))
        if small:
            await party.drive(_extend(channel, ots, SMALL))
        async with party.measure(f"{extension} random COT", count, "COT"):
            await party.drive(_extend(channel, ots, count))
        need = LeafNeed(BLOCK, -(-count // BLOCK))
        async with party.measure(f"{extension} leaves", need.count * BLOCK, "COT"):
            await party.drive(_leaves(channel, ots, need))


def chosen(options: Options) -> tuple[correlate.Extension, ...]:
    """The extensions to measure, in the order of correlate.EXTENSIONS. Raises UsageError for an unknown one."""
    unknown = set(options.extensions) - set(correlate.EXTENSIONS)
    if unknown:
        raise UsageError(f"no such OT extension: {', '.join(sorted(unknown))}; there are {extensions()}")
    return tuple(e for e in correlate.EXTENSIONS if not options.extensions or e in options.extensions)


def extensions() -> str:
    return ", ".join(correlate.EXTENSIONS)


async def _extend(channel: Channel, ots: correlate.OtPair, count: int) -> None:
    """``count`` correlated OTs in direction A, checked, neither hashed nor kept."""
    end = ots.sending.cot if channel.party == MODEL_OWNER else ots.receiving.cot
    for first in range(0, count, CHUNK):
        await end.extend(channel, min(CHUNK, count - first))
        await end.checkpoint(channel)
    await ots.check(channel)


async def _leaves(channel: Channel, ots: correlate.OtPair, need: LeafNeed) -> None:
    await ots.make(channel, need)
    await ots.check(channel)
