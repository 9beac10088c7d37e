"""Who deviates is caught: in corrections, in choices that differ by column, in sums of trees, answers and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import AndNeed, LeafNeed, StringNeed
from mpcd.protocol.ot import consistency, correlate, ferret, ggm, iknp, softspoken, spcot
from mpcd.protocol.ot.extension import CHUNK
from mpcd.protocol.ot.inbox import Inbox
from mpcd.protocol.wire import Deviation

SESSION = b"a session's id.."
TALKING: tuple[correlate.Extension, ...] = ("iknp", "softspoken2", "softspoken4", "softspoken8")
SMALL = ferret.Parameters(bits=8, trees=16, depth=7)


class Cheat(Channel):
    """A channel that changes the message number ``at`` of one kind before it is sent."""

    def __init__(self, party: int, cls: type, change: Callable[[Any], Any], at: int = 0) -> None:
        super().__init__(party, SESSION)
        self._cls, self._change, self._at = cls, change, at
        self.done = False

    async def send(self, message: Any) -> None:
        if isinstance(message, self._cls):
            if self._at == 0:
                message, self.done = self._change(message), True
            self._at -= 1
        await super().send(message)


def flip(array: Any, place: int) -> Any:
    """A copy with one bit changed."""
    changed = np.array(array)
    changed.reshape(-1).view(np.uint8)[place // 8] ^= np.uint8(1 << place % 8)
    return changed


def correction_of(extension: str) -> tuple[type, str]:
    return (iknp.Columns, "u") if extension == "iknp" else (softspoken.Corrections, "c")


def run(honest: int, cheat: Cheat, extension: correlate.Extension, needs: list[Any]) -> None:
    async def party(channel: Channel) -> None:
        ots = await correlate.set_up(channel, extension)
        for need in needs:
            await ots.make(channel, need)
        await ots.check(channel)

    channels = (Channel(0, SESSION), cheat) if honest == 0 else (cheat, Channel(1, SESSION))
    lockstep.run(*(party(channel) for channel in channels))
    assert not cheat.done, "the change went unnoticed"


@pytest.mark.parametrize("extension", TALKING)
@pytest.mark.parametrize("where", ["mask", "first", "last", "padding"])
def test_a_flipped_bit_is_caught(extension: correlate.Extension, where: str) -> None:
    """In every other column of a message (a flip of one alone is unseen where delta_i is zero): in the mask, in the
    first chunk, in the last and in rows that nobody uses."""
    cls, field = correction_of(extension)
    rng = np.random.default_rng()

    def change(message: Any) -> Any:
        columns = np.array(getattr(message, field))
        row = {"padding": 64 * columns.shape[1] - 1}.get(where, int(rng.integers(0, 100)))
        columns[int(rng.integers(2)) :: 2, row // 64] ^= np.uint64(1 << row % 64)
        return cls(columns)

    # Direction A's receiver is P1; two needs of one chunk each after the mask.
    cheat = Cheat(1, cls, change, {"mask": 0, "first": 1}.get(where, 2))
    with pytest.raises(Deviation, match="the peer deviated from the protocol: its corrections"):
        run(0, cheat, extension, [LeafNeed(4, 1000), StringNeed(20, 1000, 0)])


@pytest.mark.parametrize("extension", TALKING)
@pytest.mark.parametrize("zero", [True, False])
def test_one_bit_is_a_guess_of_delta(extension: correlate.Extension, zero: bool) -> None:
    """A flipped bit of one correction goes unseen just when delta_i is zero: all that selective failure can learn."""
    cls, field = correction_of(extension)
    rng = np.random.default_rng()
    keys, choices = rng.integers(0, 256, (128, 2, 16), np.uint8), rng.integers(0, 2, 128, np.uint8)
    sender: Any
    receiver: Any
    if extension == "iknp":
        choices[5] = not zero
        sender, receiver = iknp.Sender(choices, keys[np.arange(128), choices]), iknp.Receiver(keys)
    else:
        depth = int(extension[-1])
        choices[6 * depth : 7 * depth] = 0
        choices[6 * depth + int(rng.integers(depth))] = not zero
        own, punctured = lockstep.run(
            ggm.own(Channel(1, SESSION), keys, depth),
            ggm.puncture(Channel(0, SESSION), choices, keys[np.arange(128), choices], depth),
        ).results
        sender, receiver = softspoken.Sender(choices, punctured), softspoken.Receiver(own)

    async def party(end: Any, channel: Channel) -> None:
        await end.extend(channel, 300)
        await end.check(channel)

    row = 5 * 64 * 6  # bits of three blocks a row
    cheat = Cheat(1, cls, lambda m: cls(flip(getattr(m, field), row + 77)), 1)
    honest = party(sender, Channel(0, SESSION))
    if zero:
        lockstep.run(honest, party(receiver, cheat))
        assert cheat.done
    else:
        with pytest.raises(Deviation):
            lockstep.run(honest, party(receiver, cheat))


@pytest.mark.parametrize("extension", TALKING)
@pytest.mark.parametrize("field", ["u", "v"])
def test_a_wrong_answer_is_caught(extension: correlate.Extension, field: str) -> None:
    def change(message: Any) -> Any:
        fields = {"u": message.u, "v": message.v}
        return consistency.Answer(**{**fields, field: flip(fields[field], 99)})

    with pytest.raises(Deviation):
        run(0, Cheat(1, consistency.Answer, change), extension, [LeafNeed(1, 10)])


@pytest.mark.parametrize("extension", TALKING)
def test_both_directions_are_checked(extension: correlate.Extension) -> None:
    cls, field = correction_of(extension)
    rng = np.random.default_rng()
    for cheater in (0, 1):
        noise = Cheat(cheater, cls, lambda m: cls(rng.integers(0, 1 << 64, getattr(m, field).shape, np.uint64)), 1)
        with pytest.raises(Deviation):
            run(1 - cheater, noise, extension, [AndNeed(500)])


def test_the_choices_of_one_column_cannot_move_to_the_next_key() -> None:
    """A difference in one group cannot be made good in a later one, whose correction is chosen with the first's key."""
    rng = np.random.default_rng()
    keys = rng.integers(0, 256, (128, 2, 16), np.uint8)
    delta = np.ones(128, np.uint8)
    sender, receiver = iknp.Sender(delta, keys[:, 1]), iknp.Receiver(keys)
    group = consistency.GROUP // CHUNK

    async def send() -> None:
        channel = Channel(0, SESSION)
        for _ in range(group + 1):
            await sender.extend(channel, CHUNK)
            await sender.checkpoint(channel)
        await sender.check(channel)

    async def receive() -> None:
        change = lambda m: iknp.Columns(flip(m.u, 3))  # noqa: E731
        channel = Cheat(1, iknp.Columns, change, 1)
        for i in range(group + 1):
            if i == group:  # the same bit again, so that a plain sum over groups would cancel
                channel = Cheat(1, iknp.Columns, change, 0)
                channel._sent = group + 1
            await receiver.extend(channel, CHUNK)
            await receiver.checkpoint(channel)
        await receiver.check(channel)

    with pytest.raises(Deviation):
        lockstep.run(send(), receive())


@pytest.mark.parametrize("extension", ["iknp", "softspoken4"])
def test_many_groups_and_periods(extension: correlate.Extension) -> None:
    """Honest runs through several keys and checks, in both directions: right and nothing left over."""
    needs = [LeafNeed(4, 560_000), AndNeed(2_200_000), StringNeed(9, 70, 1)]

    async def party(i: int) -> list[Any]:
        channel = Channel(i, SESSION)
        ots = await correlate.set_up(channel, extension)
        made = []
        for _ in range(2):
            made += [await ots.make(channel, need) for need in needs]
            await ots.check(channel)
        await ots.check(channel)  # of nothing
        return made

    outcome = lockstep.run(party(0), party(1))
    for need, ours, theirs in zip(needs * 2, *outcome.results, strict=True):
        if isinstance(need, AndNeed):
            a, b, c = (getattr(ours, name) ^ getattr(theirs, name) for name in ("a", "b", "c"))
            assert (c == a & b).all()
    assert outcome.flows > 10
    assert outcome.traffic[0].messages > outcome.traffic[1].messages // 3


def test_answers_are_masked() -> None:
    """The same streams and keys, zero or not, with other masks: the answer changes by the masks alone."""
    rng = np.random.default_rng()
    keys = rng.integers(0, 256, (128, 2, 16), np.uint8)
    answers = []
    for r in (bytes(16), bytes(16)):
        receiver = iknp.Receiver(keys)

        async def challenge(r: bytes = r) -> Any:
            channel = Channel(0, SESSION)
            for blocks in (1, 3):
                await channel.recv(iknp.Columns, u=(128, 2 * blocks))
            await channel.send(consistency.Challenge(r))
            return await channel.recv(consistency.Answer, u=(2,), v=(128, 2))

        async def answer(end: iknp.Receiver = receiver) -> None:
            channel = Channel(1, SESSION)
            await end.extend(channel, 300)
            await end.check(channel)

        answers.append(lockstep.run(challenge(), answer()).results[0])
    assert answers[0].u.any()
    assert (answers[0].u != answers[1].u).any()
    assert (answers[0].v == answers[1].v).all()  # of columns that the Sender's own are made of


@pytest.mark.parametrize("depth", [2, 4, 8])
@pytest.mark.parametrize("field", ["masked", "totals", "digest"])
def test_wrong_sums_of_trees_are_caught(depth: int, field: str) -> None:
    rng = np.random.default_rng()
    keys, choices = rng.integers(0, 256, (128, 2, 16), np.uint8), rng.integers(0, 2, 128, np.uint8)

    def change(message: ggm.Sums) -> ggm.Sums:
        fields = {name: getattr(message, name) for name in ("masked", "totals", "digest")}
        if field == "digest":
            fields[field] = bytes(32)
        else:  # of every tree: a half that is not looked at goes unseen
            fields[field] = fields[field] ^ rng.integers(0, 1 << 64, fields[field].shape, np.uint64)
        return ggm.Sums(**fields)

    with pytest.raises(Deviation, match="its trees"):
        lockstep.run(
            ggm.own(Cheat(0, ggm.Sums, change), keys, depth),
            ggm.puncture(Channel(1, SESSION), choices, keys[np.arange(128), choices], depth),
        )


class Silent:
    def __init__(self) -> None:
        rng = np.random.default_rng()
        keys, delta = rng.integers(0, 256, (128, 2, 16), np.uint8), rng.integers(0, 2, 128, np.uint8)
        inboxes = Inbox(), Inbox()
        ends = iknp.Sender(delta, keys[np.arange(128), delta], inboxes[0]), iknp.Receiver(keys, inboxes[1])
        self.inboxes = inboxes
        self.sender = ferret.Sender(ends[0], b"a public session", 0, SMALL, inboxes[0])
        self.receiver = ferret.Receiver(ends[1], b"a public session", 0, SMALL, inboxes[1])

    def run(self, sending: Channel, receiving: Channel, n: int) -> None:
        async def party(i: int, end: Any, channel: Channel) -> None:
            for first in range(0, n, 1000):
                await end.extend(channel, min(1000, n - first))
            await end.check(channel)
            await self.inboxes[i].drain(channel)

        lockstep.run(party(0, self.sender, sending), party(1, self.receiver, receiving))


@pytest.mark.parametrize("n", [64, SMALL.fresh // 2, SMALL.fresh, SMALL.fresh + 1, 3 * SMALL.fresh])
@pytest.mark.parametrize("level", [0, 3, 6])
def test_wrong_sums_of_points_are_caught(n: int, level: int) -> None:
    """In one tree, whether its outputs were made use of or not."""

    def change(message: spcot.Sums) -> spcot.Sums:
        c = message.c.copy()
        c[SMALL.depth * 11 + level, 1] ^= np.uint64(1 << 40)
        return spcot.Sums(c)

    with pytest.raises(Deviation, match="single-point"):
        Silent().run(Cheat(0, spcot.Sums, change), Channel(1, SESSION), n)


def test_wrong_sums_of_a_later_iteration_are_caught() -> None:
    cheat = Cheat(0, spcot.Sums, lambda m: spcot.Sums(flip(m.c, 128 * 5 + 70)), 2)
    with pytest.raises(Deviation, match="single-point"):
        Silent().run(cheat, Channel(1, SESSION), 3 * SMALL.fresh)


def test_a_wrong_value_is_caught() -> None:
    with pytest.raises(Deviation, match="single-point"):
        Silent().run(Cheat(0, ferret.Value, lambda _: ferret.Value(bytes(32))), Channel(1, SESSION), 64)


def test_the_first_correlated_ots_are_checked() -> None:
    rng = np.random.default_rng()
    noise = Cheat(1, iknp.Columns, lambda m: iknp.Columns(rng.integers(0, 1 << 64, m.u.shape, np.uint64)), 1)
    with pytest.raises(Deviation, match="corrections"):
        Silent().run(Channel(0, SESSION), noise, 64)


def test_masks_of_points_differ() -> None:
    """What the Receiver sends of its points is not their sum: with the same points, other COTs send another mask."""
    masks = set()

    def note(message: ferret.Mask) -> ferret.Mask:
        masks.add(message.x)
        return message

    for _ in range(2):
        Silent().run(Channel(0, SESSION), Cheat(1, ferret.Mask, note), 64)
    assert len(masks) == 2
