"""The silent extension: its relation over several iterations, its cost, its schedule, its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import ferret, iknp
from mpcd.protocol.ot.extension import CHUNK
from mpcd.protocol.ot.inbox import Inbox
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError

SESSION = bytes(16)
# No security at all: for tests of the schedule.
SMALL = ferret.Parameters(bits=8, trees=16, depth=7)


class Ends:
    """Both ends over base OTs from a dealer; their streams go on from run to run."""

    def __init__(self, parameters: ferret.Parameters, direction: int = 0) -> None:
        rng = np.random.default_rng()
        keys = rng.integers(0, 256, (128, 2, 16), np.uint8)
        delta = rng.integers(0, 2, 128, np.uint8)
        base = iknp.Sender(delta, keys[np.arange(128), delta]), iknp.Receiver(keys)
        self.base_delta = base[0].delta
        self.inboxes = Inbox(), Inbox()
        self.sender = ferret.Sender(base[0], b"a public session", direction, parameters, self.inboxes[0])
        self.receiver = ferret.Receiver(base[1], b"a public session", direction, parameters, self.inboxes[1])

    async def send(self, channel: Channel, counts: Sequence[int]) -> list[Any]:
        rows = [(await self.sender.extend(channel, n)).copy() for n in counts]
        await self.inboxes[0].drain(channel)
        return rows

    async def receive(self, channel: Channel, counts: Sequence[int]) -> list[Any]:
        rows = [tuple(part.copy() for part in await self.receiver.extend(channel, n)) for n in counts]
        await self.inboxes[1].drain(channel)
        return rows

    def run(self, counts: Sequence[int], seed: bytes | None = None) -> lockstep.Run:
        prg = None if seed is None else Prg(seed)
        return lockstep.run(self.send(Channel(0, SESSION), counts), self.receive(Channel(1, SESSION, prg), counts))

    def check(self, outcome: lockstep.Run, counts: Sequence[int]) -> tuple[Any, Any]:
        """The relation; returns all q and all choice bits."""
        rows, choices = [], []
        for n, q, (x, t) in zip(counts, *outcome.results, strict=True):
            assert q.shape == t.shape == (n, 2)
            assert x.shape == ((n + 63) // 64,)
            bits = np.unpackbits(x.view(np.uint8), bitorder="little")
            assert not bits[n:].any()
            bits = bits[:n].astype(np.uint64)
            assert (t == q ^ bits[:, None] * self.sender.delta).all()
            assert (t[:, 0] & np.uint64(1) == bits).all()
            rows.append(q)
            choices.append(bits)
        return np.concatenate(rows), np.concatenate(choices)


def drawn(counts: Sequence[int]) -> int:
    return sum(-(-n // 64) * 64 for n in counts)


def sent(outcome: lockstep.Run) -> tuple[int, int]:
    """From Receiver, from Sender."""
    return outcome.traffic[1].payload_bytes, outcome.traffic[0].payload_bytes


HALF = SMALL.fresh // 2 // 64 * 64


@pytest.mark.parametrize(
    "counts",
    [
        (1,),
        (63, 64, 65, 127),
        (HALF,),
        (HALF + 64,),
        (SMALL.fresh,),
        (SMALL.fresh, 1),
        (SMALL.fresh - 64, 65),
        (SMALL.fresh + 1,),
        (1000, 1, 3 * SMALL.fresh, 77, HALF),
        (CHUNK, 5),
    ],
    ids=str,
)
def test_relation_and_cost(counts: tuple[int, ...]) -> None:
    ends = Ends(SMALL)
    outcome = ends.run(counts)
    q, _ = ends.check(outcome, counts)
    assert len(np.unique(q, axis=0)) == len(q)  # no row comes back, in any iteration
    assert not (q[:, 0] & np.uint64(1)).any()
    assert sent(outcome) == ferret.bytes_sent(SMALL, drawn(counts))


def test_cost_of_every_length() -> None:
    """The formula follows the streams block by block."""
    ends = Ends(SMALL)
    total = np.zeros(2, int)
    for i in range(1, 3 * SMALL.fresh // 192 + 3):
        total += sent(ends.run((192,)))
        assert tuple(total) == ferret.bytes_sent(SMALL, 192 * i)
    assert ferret.bytes_sent(SMALL, 0) == (0, 0)


@pytest.mark.parametrize("name", ferret.SETS)
def test_real_parameters(name: str) -> None:
    parameters = ferret.SETS[name]
    ends = Ends(parameters)
    whole = name == "2^16"  # into the second iteration; of the others the beginning
    counts = [CHUNK] * (parameters.fresh // CHUNK + 1 if whole else 2)
    outcome = ends.run(counts)
    q, x = ends.check(outcome, counts)
    assert sent(outcome) == ferret.bytes_sent(parameters, drawn(counts))
    ten_sigma = 10 * np.sqrt(len(x)) / 2
    assert abs(int(x.sum()) - len(x) / 2) < ten_sigma
    columns = np.unpackbits(q.view(np.uint8), axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    assert columns[0] == 0
    assert (abs(columns[1:] - len(x) / 2) < ten_sigma).all()


def test_bits_a_cot() -> None:
    """The docstring's last column, choices and sums alone."""
    for (name, p), bits in zip(ferret.SETS.items(), (1.38, 0.74, 0.40, 0.21), strict=True):
        one, many = (sum(ferret.bytes_sent(p, i * p.fresh)) for i in (1, 101))
        assert 8 * (many - one) / (100 * p.fresh) == pytest.approx(bits, abs=0.005), name


def test_nobody_waits_within_an_iteration() -> None:
    """After an iteration's begin, its rows come without a message; the next one's are under way by then."""
    ends = Ends(SMALL)
    ends.run((64,))
    rest = SMALL.fresh - 64
    assert ends.run((rest // 4,)).flows == 0
    answered = ends.run((rest // 2,))
    assert (answered.flows, answered.traffic[0].messages, answered.traffic[1].messages) == (1, 1, 0)
    ends.run((SMALL.fresh - drawn((64, rest // 4, rest // 2)),))
    begun = ends.run((64,))
    # The Sender's value of the check before, then the Receiver's mask for the next and its choices.
    assert (begun.flows, begun.traffic[0].messages, begun.traffic[1].messages) == (2, 1, 2)


def test_delta_is_the_base_ots_but_for_bit_0() -> None:
    ends = Ends(SMALL)
    assert (ends.sender.delta == ends.base_delta | np.array([1, 0], np.uint64)).all()


def test_messages_hide_the_choices() -> None:
    """The same random points and choices of the Receiver over new base OTs send other messages."""
    first, second = (Ends(SMALL).run((1000,), bytes(16)) for _ in range(2))
    assert first.traffic[1].digest.digest() != second.traffic[1].digest.digest()


def test_directions_have_codes_of_their_own() -> None:
    """Another direction, session or iteration: another key for every purpose."""
    ends = Ends(SMALL), Ends(SMALL, direction=1)
    keys = {end.sender._outputs.key(purpose).tobytes() for end in ends for purpose in (b"code", b"trees")}
    for end in ends:
        end.run((64,))
    keys |= {end.sender._outputs.key(purpose).tobytes() for end in ends for purpose in (b"code", b"trees")}
    assert len(keys) == 8


@pytest.mark.parametrize("n", [0, -1, CHUNK + 1])
def test_counts_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match="rows at a time"):
        Ends(SMALL).run((n,))


def test_sets_are_as_published() -> None:
    outputs = {name: p.outputs for name, p in ferret.SETS.items()}
    assert outputs == {"2^16": 870_400, "2^17": 2_396_160, "2^18": 6_225_920, "2^19": 15_564_800}
    for p in ferret.SETS.values():
        assert p.reserve < p.outputs // 8
        assert p.reserve % 64 == p.fresh % 64 == 0
        assert p.points < 1 << 15
    assert SMALL not in ferret.SETS.values()


def test_other_parameters_at_the_peer_are_refused() -> None:
    sender, receiver = Ends(SMALL), Ends(ferret.Parameters(8, 17, 7))
    with pytest.raises(WireError):
        lockstep.run(sender.send(Channel(0, SESSION), (64,)), receiver.receive(Channel(1, SESSION), (64,)))
