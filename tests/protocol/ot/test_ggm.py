"""Punctured trees: who knows which leaf, by a plain tree; cost; and what a wrong message gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel, Compute
from mpcd.protocol.ot import ggm
from mpcd.protocol.wire import WireError, array, message

SESSION = bytes(16)
DEPTHS = (2, 4, 8)


@message("test-ggm-other")
class Other:
    masked: Any = array("uint64", 4)


def base_ots(delta: str = "random") -> tuple[Any, Any, Any]:
    """(keys, choices, chosen keys) from a dealer."""
    rng = np.random.default_rng()
    keys = rng.integers(0, 256, (128, 2, 16), dtype=np.uint8)
    choices = {"zeros": np.zeros, "ones": np.ones}.get(delta, lambda n, t: rng.integers(0, 2, n, dtype=t))(
        128, np.uint8
    )
    return keys, choices, keys[np.arange(128), choices]


def puncture(depth: int, delta: str = "random") -> tuple[lockstep.Run, Any, Any]:
    keys, choices, chosen = base_ots(delta)
    outcome = lockstep.run(
        ggm.own(Channel(0, SESSION), keys, depth), ggm.puncture(Channel(1, SESSION), choices, chosen, depth)
    )
    return outcome, keys, choices


def plain_leaf(keys: Any, x: int) -> bytes:
    """Leaf x of the tree over these keys, (depth, 2, 16): from the root's child down, a bit of x a level, low first."""
    node = keys[0, 1 - (x & 1)].tobytes()
    for level in range(1, len(keys)):
        counter = bytes([x >> level & 1]) + bytes(15)
        node = Cipher(algorithms.AES(node), modes.ECB()).encryptor().update(counter)
    return node


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("delta", ["zeros", "ones", "random"])
def test_all_leaves_but_one(depth: int, delta: str) -> None:
    outcome, keys, choices = puncture(depth, delta)
    whole, punctured = outcome.results
    assert whole.shape == punctured.shape == (128 // depth, 1 << depth, 2)
    for i in range(128 // depth):
        tree = slice(depth * i, depth * (i + 1))
        point = int(np.packbits(choices[tree], bitorder="little")[0])
        for x in range(1, 1 << depth):
            assert punctured[i, x].tobytes() == whole[i, x ^ point].tobytes()
        assert not punctured[i, 0].any()
        for x in {0, 1, point, (1 << depth) - 1}:
            assert whole[i, x].tobytes() == plain_leaf(keys[tree], x)
    # No leaf is another's.
    assert len(np.unique(whole.reshape(-1, 2), axis=0)) == (128 // depth) << depth


@pytest.mark.parametrize(("depth", "sent"), [(2, 4096), (4, 4096), (8, 4096)])
def test_cost(depth: int, sent: int) -> None:
    outcome, _, _ = puncture(depth)
    assert outcome.flows == 1
    assert outcome.traffic[0].payload_bytes == ggm.bytes_sent(depth) == sent
    assert outcome.traffic[1].messages == 0


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_chosen_key_opens_the_other_half_only(depth: int) -> None:
    """At the last level, where the halves' sums can be read off the leaves."""
    keys, choices, chosen = base_ots()
    owner = ggm.own(Channel(0, SESSION), keys, depth)
    step = owner.send(None)
    while isinstance(step, Compute):
        step = owner.send(step.function(*step.args))
    words = np.frombuffer(b"".join(step.frame.payload), np.uint64)
    masked = words[: 4 * (depth - 1) * ggm.trees(depth)].reshape(-1, depth - 1, 2, 2)[:, -1]
    with pytest.raises(StopIteration) as stop:
        owner.send(None)
    halves = np.bitwise_xor.reduce(stop.value.value.reshape(-1, 2, 1 << (depth - 1), 2), axis=2)
    last = choices.reshape(-1, depth)[:, -1]
    key = chosen.view(np.uint64).reshape(-1, depth, 2)[:, -1]
    trees = np.arange(len(last))
    assert (masked[trees, 1 - last] ^ key == halves[trees, 1 - last]).all()
    closed = masked[trees, last]
    for guess in (closed, closed ^ key):
        assert (guess != halves[trees, last]).all()


@pytest.mark.parametrize("depth", [0, 1, 3, 5, 256])
def test_depths_out_of_range(depth: int) -> None:
    with pytest.raises(ValueError, match="do not make trees"):
        ggm.bytes_sent(depth)
    with pytest.raises(ValueError, match="do not make trees"):
        puncture(depth)


@pytest.mark.parametrize(
    ("cls", "shape"),
    [(ggm.Sums, (16, 7, 2, 2)), (ggm.Sums, (32, 2, 2, 2)), (ggm.Sums, (32, 3, 2, 3)), (Other, (32, 3, 2, 2))],
    ids=["another depth", "too few levels", "too long", "another kind"],
)
def test_wrong_messages_are_refused(cls: Any, shape: tuple[int, ...]) -> None:
    _, choices, chosen = base_ots()

    async def wrong(channel: Channel) -> None:
        masked = np.zeros(shape, np.uint64)
        await channel.send(Other(masked) if cls is Other else cls(masked, np.zeros((32, 4), np.uint64), bytes(32)))

    with pytest.raises(WireError):
        lockstep.run(ggm.puncture(Channel(0, SESSION), choices, chosen, 4), wrong(Channel(1, SESSION)))
