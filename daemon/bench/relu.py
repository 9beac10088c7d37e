"""Comparisons as DenseNet-121 has them, each offline and online: k = 17, f = 16, in a ring of 33 bits.

``relu``: Relu, then Grow; ``truncate-relu``: TruncateRelu, then Grow; ``truncate``: Truncate; ``mix``: all three in
DenseNet-121's proportions, counted in ReLUs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from mpcd.daemon.bench.options import Options
from mpcd.daemon.bench.ot import chosen
from mpcd.daemon.bench.party import Party
from mpcd.protocol import growth, relu, truncation
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import Need, Source
from mpcd.protocol.ot import correlate
from mpcd.protocol.randomness import Prg

K, F = 17, 16
WIDE = K + F
# Of DenseNet-121's ReLUs follow the batch-norm of a concatenation, a bottleneck; truncations for each ReLU.
AFTER_NORM, AFTER_BOTTLENECK, TRUNCATIONS = 0.7136, 0.2864, 0.1366
SMALL = 256
KINDS = ("relu", "truncate-relu", "truncate")

DERIVED: tuple[tuple[str, tuple[str, ...]], ...] = ()

Parts = Sequence[tuple[str, int]]


async def once(party: Party, options: Options, small: bool) -> None:
    n = SMALL if small else options.elements
    mix = (("relu", _part(n, AFTER_NORM)), ("truncate-relu", _part(n, AFTER_BOTTLENECK)))
    mixes: list[tuple[str, int, Parts]] = [(kind, n, ((kind, n),)) for kind in KINDS]
    mixes.append(("mix", sum(count for _, count in mix), (*mix, ("truncate", _part(n, TRUNCATIONS)))))
    for extension in chosen(options):
        party.say(f"relu: {extension}")
        channel = party.channel()
        ots = await party.drive(correlate.set_up(channel, extension))
        await party.drive(_make(channel, ots, _needs("relu", 64), _Kept()))  # silent ones begin with much to do
        for name, count, parts in mixes:
            async with party.measure(f"{extension} {name}, offline + online", count, "element"):
                kept = _Kept()
                async with party.measure(f"{extension} {name}, offline", count, "element"):
                    needs = tuple(need for kind, size in parts for need in _needs(kind, size))
                    await party.drive(_make(channel, ots, needs, kept))
                async with party.measure(f"{extension} {name}, online", count, "element"):
                    for kind, size in parts:
                        await party.drive(_use(channel, kept, kind, size))


def _part(n: int, share: float) -> int:
    return max(1, round(n * share))


class _Kept:
    """What was made, until it is used: a source in memory."""

    def __init__(self) -> None:
        self.rows: deque[Any] = deque()

    def take(self, need: Need) -> Any:
        return self.rows.popleft()


def _needs(kind: str, n: int) -> tuple[Need, ...]:
    match kind:
        case "relu":
            return relu.relu_needs(n, K) + growth.grow_needs(n, K, WIDE)
        case "truncate-relu":
            return relu.truncate_relu_needs(n, F, K) + growth.grow_needs(n, K, WIDE)
        case _:
            return truncation.needs(n, F, K)


async def _make(channel: Channel, ots: correlate.OtPair, needs: Sequence[Need], kept: _Kept) -> None:
    for need in needs:
        kept.rows.append(await ots.make(channel, need))
    await ots.check(channel)


async def _use(channel: Channel, source: Source, kind: str, n: int) -> None:
    x = Prg.fresh().uniform((n,), K if kind == "relu" else WIDE)
    match kind:
        case "relu":
            y = await relu.relu(channel, source, x, K)
            await growth.grow(channel, source, y, K, WIDE)
        case "truncate-relu":
            y = await relu.truncate_relu(channel, source, x, F, K)
            await growth.grow(channel, source, y, K, WIDE)
        case _:
            await truncation.truncate(channel, source, x, F, K)
