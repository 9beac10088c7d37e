"""The extension from punctured trees: its relation, its cost, its streams, and what a wrong message gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel, Compute, Send
from mpcd.protocol.ot import iknp, softspoken
from mpcd.protocol.ot.extension import CHUNK
from mpcd.protocol.wire import WireError, array, message

SESSION = bytes(16)
DEPTHS = (2, 4, 8)


@message("test-softspoken-other")
class Other:
    c: Any = array("uint64", 2)


def ideal_trees(depth: int, delta: Any = None) -> tuple[softspoken.Sender, softspoken.Receiver, Any]:
    """Both ends over trees from a dealer, and all leaves."""
    rng = np.random.default_rng()
    leaves = rng.integers(0, 1 << 64, (128 // depth, 1 << depth, 2), dtype=np.uint64)
    choices = rng.integers(0, 2, 128, dtype=np.uint8) if delta is None else delta
    punctured = np.zeros_like(leaves)
    for i in range(len(leaves)):
        point = int(np.packbits(choices[depth * i : depth * (i + 1)], bitorder="little")[0])
        for x in range(1, 1 << depth):
            punctured[i, x] = leaves[i, x ^ point]
    return softspoken.Sender(choices, punctured), softspoken.Receiver(leaves), leaves


def extend(depth: int, counts: Sequence[int], delta: Any = None) -> tuple[lockstep.Run, Any]:
    sender, receiver, _ = ideal_trees(depth, delta)

    async def send(channel: Channel) -> list[Any]:
        return [(await sender.extend(channel, n)).copy() for n in counts]

    async def receive(channel: Channel) -> list[Any]:
        return [tuple(part.copy() for part in await receiver.extend(channel, n)) for n in counts]

    return lockstep.run(send(Channel(0, SESSION)), receive(Channel(1, SESSION))), sender.delta


def unpacked(words: Any, n: int) -> Any:
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:n]


def holds(q: Any, x: Any, t: Any, delta: Any) -> bool:
    return bool((t == q ^ np.where(unpacked(x, len(q))[:, None] == 1, delta, np.uint64(0))).all())


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "counts",
    [(1,), (63,), (64,), (65,), (127, 128, 129), (1000,), (CHUNK,), (CHUNK - 1, 5, 20_000)],
    ids=str,
)
def test_relation_and_cost(depth: int, counts: tuple[int, ...]) -> None:
    outcome, delta = extend(depth, counts)
    seen = []
    for n, q, (x, t) in zip(counts, *outcome.results, strict=True):
        assert q.shape == t.shape == (n, 2)
        assert len(x) == (n + 63) // 64
        assert unpacked(x, 64 * len(x))[n:].sum() == 0
        assert holds(q, x, t, delta)
        seen.append(q)
    # The streams go on: no row comes back in a later call.
    assert len(np.unique(np.concatenate(seen), axis=0)) == sum(counts)
    assert outcome.flows == 1
    assert outcome.traffic[0].messages == 0
    # The first message is the check's mask.
    assert outcome.traffic[1].messages == len(counts) + 1
    assert outcome.traffic[1].payload_bytes == sum(softspoken.bytes_sent(n, depth) for n in (128, *counts))


@pytest.mark.parametrize(("depth", "block"), [(2, 1008), (4, 496), (8, 240)])
def test_bytes(depth: int, block: int) -> None:
    """128 / k - 1 bits an OT: with k = 1 it would be IKNP's 128, less one for the choices that are no longer chosen."""
    assert softspoken.bytes_sent(1, depth) == softspoken.bytes_sent(128, depth) == block
    assert softspoken.bytes_sent(129, depth) == 2 * block
    assert block == iknp.bytes_sent(128) // depth - 16


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("bit", [0, 1])
def test_extreme_deltas(depth: int, bit: int) -> None:
    outcome, delta = extend(depth, (300,), np.full(128, bit, np.uint8))
    (q,), ((x, t),) = outcome.results
    assert holds(q, x, t, delta)
    assert (delta == (0 if bit == 0 else 2**64 - 1)).all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_choices_and_rows_are_balanced(depth: int) -> None:
    n = CHUNK
    outcome, _ = extend(depth, (n,))
    (q,), ((x, t),) = outcome.results
    ten_sigma = 10 * np.sqrt(n) / 2
    assert abs(int(unpacked(x, n).sum()) - n / 2) < ten_sigma
    for rows in (q, t):
        columns = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
        assert (abs(columns - n / 2) < ten_sigma).all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_corrections_are_balanced_and_independent(depth: int) -> None:
    """No correction, nor the XOR of two or of one with the choices, is fixed."""
    n = 20_000 // 128 * 128
    _, receiver, _ = ideal_trees(depth)
    coroutine = receiver.extend(Channel(1, SESSION), n)
    sent: list[Any] = []
    answer = None
    while len(sent) < 2:  # the check's mask, then its own
        step = coroutine.send(answer)
        answer = step.function(*step.args) if isinstance(step, Compute) else None
        sent += [step] if isinstance(step, Send) else []
    c = np.frombuffer(b"".join(step.frame.payload), np.uint64).reshape(128 // depth - 1, -1)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    x, _ = stop.value.value
    streams = np.unpackbits(np.concatenate([c, x[None]]).view(np.uint8), axis=1, bitorder="little").astype(np.int64)
    signs = 1 - 2 * streams
    products = signs @ signs.T
    np.fill_diagonal(products, 0)
    assert (abs(products) < 10 * np.sqrt(n)).all()
    assert (abs(signs.sum(axis=1)) < 10 * np.sqrt(n)).all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_missing_leaf_hides_the_choices(depth: int) -> None:
    """Other leaves at the punctured points: the Sender has the same, choices and corrections are unrelated."""
    _, _, leaves = ideal_trees(depth, np.zeros(128, np.uint8))
    other = leaves.copy()
    other[:, 0] ^= np.uint64(1)
    outcomes = []
    for each in (leaves, other):
        receiver = softspoken.Receiver(each)
        sender = softspoken.Sender(
            np.zeros(128, np.uint8), each * (np.arange(1 << depth) > 0)[None, :, None].astype("u8")
        )
        outcomes.append(
            lockstep.run(sender.extend(Channel(0, SESSION), 6400), receiver.extend(Channel(1, SESSION), 6400))
        )
    first, second = outcomes
    assert (first.results[0] == second.results[0]).all()
    assert abs(int(unpacked(first.results[1][0] ^ second.results[1][0], 6400).sum()) - 3200) < 400
    assert first.traffic[1].digest.digest() != second.traffic[1].digest.digest()


@pytest.mark.parametrize("depth", DEPTHS)
def test_receiver_runs_ahead(depth: int) -> None:
    """All of the receiver's messages may be under way before the sender reads its first."""
    sender, receiver, _ = ideal_trees(depth)

    async def receive_first(channel: Channel) -> list[Any]:
        return [tuple(part.copy() for part in await receiver.extend(channel, 300)) for _ in range(8)]

    async def send(channel: Channel) -> list[Any]:
        return [(await sender.extend(channel, 300)).copy() for _ in range(8)]

    # P0 is driven first and to the end: here that is the receiver.
    outcome = lockstep.run(receive_first(Channel(0, SESSION)), send(Channel(1, SESSION)))
    for (x, t), q in zip(*outcome.results, strict=True):
        assert holds(q, x, t, sender.delta)


@pytest.mark.parametrize("n", [0, -1, CHUNK + 1])
def test_counts_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match="rows at a time"):
        extend(4, (n,))


@pytest.mark.parametrize(
    ("cls", "shape"),
    [
        (softspoken.Corrections, (31, 4)),
        (softspoken.Corrections, (32, 2)),
        (softspoken.Corrections, (15, 2)),
        (softspoken.Corrections, (31, 0)),
        (Other, (31, 2)),
        (iknp.Columns, (128, 2)),
    ],
    ids=["too long", "too many columns", "another k", "empty", "another kind", "another extension"],
)
def test_wrong_messages_are_refused(cls: Any, shape: tuple[int, int]) -> None:
    sender, _, _ = ideal_trees(4)

    async def wrong(channel: Channel) -> None:
        await channel.send(cls(np.zeros(shape, np.uint64)))

    with pytest.raises(WireError):
        lockstep.run(sender.extend(Channel(0, SESSION), 100), wrong(Channel(1, SESSION)))
