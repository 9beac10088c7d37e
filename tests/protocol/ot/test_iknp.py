"""The correlated OT extension: its relation, its cost, its streams, and what a wrong message gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import iknp
from mpcd.protocol.ot.extension import CHUNK
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError, array, message

SESSION = bytes(16)


@message("test-iknp-other")
class Other:
    u: Any = array("uint64", 2)


def ideal_base(rng: np.random.Generator) -> tuple[iknp.Sender, iknp.Receiver]:
    """Both ends over base OTs from a dealer."""
    keys = rng.integers(0, 256, (128, 2, 16), dtype=np.uint8)
    delta = rng.integers(0, 2, 128, dtype=np.uint8)
    return iknp.Sender(delta, keys[np.arange(128), delta]), iknp.Receiver(keys)


def extend(counts: Sequence[int], seed: bytes | None = None) -> tuple[lockstep.Run, Any]:
    sender, receiver = ideal_base(np.random.default_rng())

    async def send(channel: Channel) -> list[Any]:
        return [(await sender.extend(channel, n)).copy() for n in counts]

    async def receive(channel: Channel) -> list[Any]:
        return [tuple(part.copy() for part in await receiver.extend(channel, n)) for n in counts]

    prg = None if seed is None else Prg(seed)
    return lockstep.run(send(Channel(0, SESSION)), receive(Channel(1, SESSION, prg))), sender.delta


def unpacked(words: Any, n: int) -> Any:
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:n]


@pytest.mark.parametrize(
    "counts",
    [(1,), (63,), (64,), (65,), (127, 128, 129), (1000,), (CHUNK,), (CHUNK - 1, 5, 20_000)],
    ids=str,
)
def test_relation_and_cost(counts: tuple[int, ...]) -> None:
    outcome, delta = extend(counts)
    seen = []
    for n, q, (x, t) in zip(counts, *outcome.results, strict=True):
        assert q.shape == t.shape == (n, 2)
        assert len(x) == (n + 63) // 64
        assert unpacked(x, 64 * len(x))[n:].sum() == 0
        assert (t == q ^ np.where(unpacked(x, n)[:, None] == 1, delta, np.uint64(0))).all()
        seen.append(q)
    # The streams go on: no row comes back in a later call.
    assert len(np.unique(np.concatenate(seen), axis=0)) == sum(counts)
    assert outcome.flows == 1
    assert outcome.traffic[0].messages == 0
    # The first message is the check's mask.
    assert outcome.traffic[1].messages == len(counts) + 1
    assert outcome.traffic[1].payload_bytes == iknp.bytes_sent(128) + sum(map(iknp.bytes_sent, counts))
    assert iknp.bytes_sent(1) == iknp.bytes_sent(128) == 2048
    assert iknp.bytes_sent(129) == 4096


def test_choices_and_rows_are_balanced() -> None:
    n = CHUNK
    outcome, _ = extend((n,))
    (q,), ((x, t),) = outcome.results
    ten_sigma = 10 * np.sqrt(n) / 2
    assert abs(int(unpacked(x, n).sum()) - n / 2) < ten_sigma
    for rows in (q, t):
        columns = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
        assert (abs(columns - n / 2) < ten_sigma).all()


def test_columns_hide_the_choices() -> None:
    """Repeating the choices (a replayed generator) over new keys gives unrelated columns."""
    first, _ = extend((10_000,), seed=bytes(16))
    second, _ = extend((10_000,), seed=bytes(16))
    assert (first.results[1][0][0] == second.results[1][0][0]).all()
    assert first.traffic[1].digest.digest() != second.traffic[1].digest.digest()


def test_receiver_runs_ahead() -> None:
    """All of the receiver's messages may be under way before the sender reads its first."""
    sender, receiver = ideal_base(np.random.default_rng())

    async def receive_first(channel: Channel) -> list[Any]:
        return [tuple(part.copy() for part in await receiver.extend(channel, 300)) for _ in range(8)]

    async def send(channel: Channel) -> list[Any]:
        return [(await sender.extend(channel, 300)).copy() for _ in range(8)]

    # P0 is driven first and to the end: here that is the receiver.
    outcome = lockstep.run(receive_first(Channel(0, SESSION)), send(Channel(1, SESSION)))
    for (x, t), q in zip(*outcome.results, strict=True):
        assert (t == q ^ np.where(unpacked(x, 300)[:, None] == 1, sender.delta, np.uint64(0))).all()


@pytest.mark.parametrize("n", [0, -1, CHUNK + 1])
def test_counts_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match="rows at a time"):
        extend((n,))


@pytest.mark.parametrize(
    ("cls", "shape"),
    [(iknp.Columns, (128, 4)), (iknp.Columns, (127, 2)), (iknp.Columns, (128, 0)), (Other, (128, 2))],
    ids=["too long", "too few columns", "empty", "another kind"],
)
def test_wrong_messages_are_refused(cls: Any, shape: tuple[int, int]) -> None:
    sender, _ = ideal_base(np.random.default_rng())

    async def wrong(channel: Channel) -> None:
        await channel.send(cls(np.zeros(shape, np.uint64)))

    with pytest.raises(WireError):
        lockstep.run(sender.extend(Channel(0, SESSION), 100), wrong(Channel(1, SESSION)))
