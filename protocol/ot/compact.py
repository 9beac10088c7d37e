"""Keeping what a unit's oblivious transfers grow from, in place of the correlations: a small part of the space.

Boyle, Couteau, Gilboa, Ishai, Kohl and Scholl, "Efficient Pseudorandom Correlation Generators: Silent OT Extension and
More" (CRYPTO 2019, eprint 2019/1129): short seeds are agreed on now, and each party expands its own later, alone. Here
the seeds are ferret.py's punctured trees, which are all that its messages bring; from them and the running iteration's
input of the code a party makes the very rows that it would have made at once, with the same hash keys and tweaks.

1. ``keep``: goes through the needs and exchanges what making them exchanges, without rows and without pads; the check
   at the end grows every tree once.
2. ``expand``: makes them from what was kept. Nothing is sent, so the parties need not do it at the same time, and one
   may keep seeds while the other made its correlations at once.

Cost at rest (``kept_bytes``): for each iteration begun, 16 t bytes where this party is the Sender and t (16 h + 2)
where it is the Receiver, and 16 k bytes a direction. In time the rows of the reserves are made twice.

Adversary: as ferret.py. What was kept is as secret as the correlations, and as single-use: expanding it again gives
the same pads, so daemon/offline/store.py lets a unit be opened once whatever it is kept as.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mpcd.kernels import ot_hash
from mpcd.kernels.bits import clear_tail
from mpcd.protocol.channel import Channel, Compute, Effect
from mpcd.protocol.correlations import CorrelationError, Need
from mpcd.protocol.ot import correlate, ferret, pads
from mpcd.protocol.ot.inbox import Inbox

Words = npt.NDArray[np.uint64]
M = TypeVar("M")

_PADS = frozenset(
    {
        ot_hash.leaf_pads_sender,
        ot_hash.leaf_pads_receiver,
        ot_hash.string_sender,
        ot_hash.string_receiver,
        ot_hash.and_sender,
        ot_hash.and_receiver,
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Direction:
    """One direction's seeds, and the first tweak of its hash. ``delta``: the Sender's, else None."""

    seeds: ferret.Seeds
    tweak: int
    delta: Words | None


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """One unit's, at one party. ``extension`` is a silent one; ``session_key``: 16 bytes, of the base OTs."""

    extension: correlate.Extension
    session_key: bytes
    sending: Direction
    receiving: Direction


async def keep(channel: Channel, ots: correlate.OtPair, needs: Iterable[Need], tell: Callable[[Need], None]) -> Kept:
    """Step 1 for one unit. Raises ValueError unless the extension is silent. ``tell(need)``: so much is done."""
    sender, receiver = ots.sending.cot, ots.receiving.cot
    if not (isinstance(sender, ferret.Sender) and isinstance(receiver, ferret.Receiver)):
        raise ValueError("only a silent extension has seeds to keep")
    sending = Direction(sender.keep(), ots.sending.keys.next, sender.delta)
    receiving = Direction(receiver.keep(), ots.receiving.keys.next, None)
    try:
        quiet = _WithoutPads(channel)
        for need in needs:
            await ots.make(quiet, need)
            tell(need)
        await ots.check(channel)
    finally:
        sender.seeds = receiver.seeds = None
    return Kept(ots.extension, ots.session_key, sending, receiving)


def expand(party: int, kept: Kept, needs: Iterable[Need]) -> Iterator[Any]:
    """Step 2: the correlations of the unit's needs, one at a time; ``needs`` as for ``keep``, in the same order."""
    parameters = correlate.silent_parameters(kept.extension)
    key, sending, receiving = kept.session_key, kept.sending, kept.receiving
    if sending.delta is None:
        raise ValueError("the sending direction has no delta")
    sender = _Sender(ferret.SenderOutputs(key, party, parameters, sending.delta), sending.seeds, sending.delta)
    receiver = _Receiver(ferret.ReceiverOutputs(key, 1 - party, parameters), receiving.seeds)
    ots = correlate.OtPair(
        pads.SendingEnd(sender, pads.HashKeys(key, party, sending.tweak)),
        pads.ReceivingEnd(receiver, pads.HashKeys(key, 1 - party, receiving.tweak)),
        kept.extension,
        key,
        Inbox(),
    )
    channel = Channel(party, key)
    for need in needs:
        yield _alone(ots.make(channel, need))


def _alone(work: Coroutine[Effect, Any, Any]) -> Any:
    """Run what only computes."""
    answer = None
    try:
        while True:
            effect = work.send(answer)
            if not isinstance(effect, Compute):
                raise TypeError(f"nobody else is here: {type(effect).__name__}")
            answer = effect.function(*effect.args)
    except StopIteration as end:
        return end.value
    finally:
        work.close()


def kept_bytes(needs: Iterable[Need], extension: str) -> tuple[int, int]:
    """About what P0 and P1 keep for ``needs``: a unit in the middle of a batch."""
    p = correlate.silent_parameters(extension)
    drawn = [correlate.rows_by_direction(need) for need in needs]
    a, b = (-(-sum(rows) // p.fresh) + 1 for rows in zip(*drawn, strict=True))
    sender, receiver = 16 * p.trees, (16 * p.depth + 2) * p.trees
    tables = 2 * 16 * p.dimension
    return a * sender + b * receiver + tables, a * receiver + b * sender + tables


class _WithoutPads(Channel):
    """Another channel, but the kernels that turn rows into pads do not run: there are no rows."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.party, self.session, self.prg = channel.party, channel.session, channel.prg

    async def send(self, message: Any) -> None:
        await self._channel.send(message)

    async def recv(self, cls: type[M], **shapes: tuple[int, ...]) -> M:
        return await self._channel.recv(cls, **shapes)

    async def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        if function in _PADS:
            return None  # they write into their arguments
        return await self._channel.compute(function, *args)


class _Again(ferret.Drawing):
    """The rows of one direction, once more from their seeds, which were checked when they were kept."""

    def __init__(self, outputs: ferret.Outputs, seeds: ferret.Seeds) -> None:
        super().__init__(outputs)
        self._seeds = seeds
        self._trees = iter(seeds.trees)

    async def _begin(self, channel: Channel) -> None:
        outputs, seeds = self._outputs, self._seeds
        first = outputs.iteration == 0
        if first and seeds.table is not None:
            outputs.iteration, outputs.reserve = seeds.iteration, seeds.table
        trees = next(self._trees, None)
        if trees is None:
            raise CorrelationError("the unit's seeds end before its correlations")
        await outputs.begin(channel, trees)
        if first:
            outputs.position = seeds.position

    async def check(self, channel: Channel) -> None:
        """Was done when the seeds were kept."""


class _Sender(_Again):
    def __init__(self, outputs: ferret.Outputs, seeds: ferret.Seeds, delta: Words) -> None:
        super().__init__(outputs, seeds)
        self.delta = delta

    async def extend(self, channel: Channel, n: int) -> Words:
        return await self._draw(channel, n, np.empty(0, np.uint64))


class _Receiver(_Again):
    runs_ahead = False

    async def extend(self, channel: Channel, n: int) -> tuple[Words, Words]:
        x = np.empty(ferret.rows_drawn(n) // 64, np.uint64)
        t = await self._draw(channel, n, x)
        return clear_tail(x, n), t
