"""Single-point correlated OT over ideal correlated OTs: its relation, its cost, what travels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpcd.kernels import half_tree
from mpcd.kernels.aes import expand_key
from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import spcot
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError

SESSION = bytes(16)
ROUND_KEYS = expand_key(np.arange(16, dtype=np.uint8))
LOW = np.array([1, 0], np.uint64)


def cots(n: int) -> tuple[Any, Any, Any]:
    """(delta, q, t) from a dealer, choice bits in bit 0."""
    rng = np.random.default_rng()
    delta = rng.integers(0, 1 << 64, 2, np.uint64) | LOW
    q = rng.integers(0, 1 << 64, (n, 2), np.uint64) & ~LOW
    return delta, q, q ^ rng.integers(0, 2, (n, 1), np.uint64) * delta


def run(count: int, depth: int, seed: bytes | None = None, sent: tuple[Any, Any, Any] | None = None) -> tuple[Any, ...]:
    delta, q, t = cots(count * depth) if sent is None else sent

    async def send(channel: Channel) -> Any:
        trees = spcot.Sender(ROUND_KEYS, delta, count, channel.prg)
        choices = await channel.recv(spcot.Choices, b=spcot.choices_shape(count, depth))
        await channel.send(trees.sums(q, choices))
        v = np.empty((count, 1 << depth, 2), np.uint64)
        half_tree.grow(trees.round_keys, trees.roots, delta, v)
        return v

    async def receive(channel: Channel) -> Any:
        trees = spcot.Receiver(ROUND_KEYS, count, depth, channel.prg)
        await channel.send(trees.choices(t[:, 0]))
        trees.open(t, await channel.recv(spcot.Sums, c=spcot.sums_shape(count, depth)))
        w = np.empty((count, 1 << depth, 2), np.uint64)
        half_tree.grow_punctured(trees.round_keys, trees.points, trees.siblings, w)
        return trees.points, w

    prg = None if seed is None else Prg(seed)
    return lockstep.run(send(Channel(0, SESSION)), receive(Channel(1, SESSION, prg))), delta


@pytest.mark.parametrize(("count", "depth"), [(1, 2), (1, 6), (64, 3), (13, 10), (3, 13)])
def test_relation_and_cost(count: int, depth: int) -> None:
    outcome, delta = run(count, depth)
    v, (points, w) = outcome.results
    assert points.shape == (count,)
    assert (points < 1 << depth).all()
    one = np.arange(1 << depth, dtype=np.uint64) == points[:, None]
    assert (w == v ^ one[:, :, None] * delta).all()
    assert not (v & LOW).any()
    assert (w[:, :, 0] & np.uint64(1) == one).all()
    assert outcome.flows == 2
    assert outcome.traffic[1].payload_bytes == 8 * ((count * depth + 63) // 64)
    assert outcome.traffic[0].payload_bytes == 16 * count * depth


def test_points_are_uniform_and_differ() -> None:
    _, (points, _) = run(4000, 3)[0].results
    counts = np.bincount(points.astype(np.int64), minlength=8)
    assert (abs(counts - 500) < 10 * np.sqrt(500)).all()


def test_choices_hide_the_points() -> None:
    """The same points over other correlated OTs send other bits."""
    first, second = (run(100, 10, bytes(16))[0] for _ in range(2))
    assert (first.results[1][0] == second.results[1][0]).all()
    assert first.traffic[1].digest.digest() != second.traffic[1].digest.digest()


def test_roots_are_fresh() -> None:
    """The same correlated OTs and points, twice: other trees and sums."""
    sent = cots(50)
    first, second = (run(5, 10, bytes(16), sent)[0] for _ in range(2))
    assert first.traffic[1].digest.digest() == second.traffic[1].digest.digest()
    assert not (first.results[0] == second.results[0]).all(axis=2).any()


def test_wrong_lengths_are_refused() -> None:
    async def send(channel: Channel) -> None:
        await channel.recv(spcot.Choices, b=spcot.choices_shape(13, 10))

    async def receive(channel: Channel) -> None:
        await channel.send(spcot.Choices(np.zeros(2, np.uint64)))

    with pytest.raises(WireError):
        lockstep.run(send(Channel(0, SESSION)), receive(Channel(1, SESSION)))
