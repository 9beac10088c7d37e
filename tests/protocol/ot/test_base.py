"""Base OTs: the relation, the cost, and what a bad point gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from nacl import bindings as sodium

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import base
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError

SESSION = bytes(range(16))
IDENTITY = bytes([1]) + bytes(31)
ORDER_2 = bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")
ORDER_4 = bytes(32)
ORDER_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
NOT_CANONICAL = bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")


def run(**sessions: bytes) -> lockstep.Run:
    return lockstep.run(
        base.base_ots(Channel(0, sessions.get("p0", SESSION))),
        base.base_ots(Channel(1, sessions.get("p1", SESSION))),
    )


def test_receiver_has_the_chosen_key_only() -> None:
    outcome = run()
    for sender, receiver in (outcome.results, outcome.results[::-1]):
        chosen = sender.sender_keys[np.arange(128), receiver.choices]
        other = sender.sender_keys[np.arange(128), 1 - receiver.choices]
        assert (chosen == receiver.chosen_keys).all()
        assert (other != receiver.chosen_keys).any(axis=1).all()
        everything = sender.sender_keys.reshape(256, 16)
        assert len(np.unique(everything, axis=0)) == 256
    assert outcome.results[0].session_key == outcome.results[1].session_key


def test_cost() -> None:
    outcome = run()
    assert outcome.flows == 2
    for traffic in outcome.traffic:
        assert traffic.messages == 1
        # The blob travels in the header: its 32 bytes, and less than 100 of framing.
        assert traffic.payload_bytes + 32 == base.BYTES_SENT
        assert 32 < traffic.header_bytes < 132


def test_fresh_runs_share_nothing() -> None:
    first, second = run(), run()
    assert first.results[0].session_key != second.results[0].session_key
    both = np.concatenate([r.results[0].sender_keys.reshape(256, 16) for r in (first, second)])
    assert len(np.unique(both, axis=0)) == 512
    choices = np.concatenate([r.results[i].choices for r in (first, second) for i in (0, 1)])
    assert set(choices.tolist()) == {0, 1}
    assert 512 * 0.5 - 130 < choices.sum() < 512 * 0.5 + 130  # more than ten standard deviations


def test_session_id_is_bound() -> None:
    """With different session ids nothing agrees, though the run goes through."""
    p0, p1 = run(p1=bytes(16)).results
    assert p0.session_key != p1.session_key
    chosen = p0.sender_keys[np.arange(128), p1.choices]
    assert (chosen != p1.chosen_keys).any(axis=1).all()


def test_points_hide_the_choice() -> None:
    """All points are distinct valid elements, whichever slot is the receiver's own."""
    receiver = base.Receiver(SESSION, 0, Prg.fresh())
    points = [receiver.points[i, s].tobytes() for i in range(128) for s in (0, 1)]
    assert len(set(points)) == 256
    assert all(sodium.crypto_core_ed25519_is_valid_point(point) for point in points)


def test_directions_and_indices_are_separated() -> None:
    """The same points give unrelated keys in another place: index, slot and direction are hashed."""
    receiver = base.Receiver(SESSION, 0, Prg.fresh())
    sender = base.Sender(SESSION, 0, Prg(bytes(16)))
    twin = base.Sender(SESSION, 1, Prg(bytes(16)))
    assert sender.point == twin.point
    repeated = np.broadcast_to(receiver.points[0], (128, 2, 32)).copy()
    keys = np.concatenate([s.keys(repeated, bytes(32)).reshape(256, 16) for s in (sender, twin)])
    assert len(np.unique(keys, axis=0)) == 512


@pytest.mark.parametrize(
    "bad", [IDENTITY, ORDER_2, ORDER_4, ORDER_8, NOT_CANONICAL, b"\xff" * 32, b"\x02" + bytes(31)],
    ids=["identity", "order 2", "order 4", "order 8", "not canonical", "out of range", "not on the curve"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["sender_point", "points"])
def test_bad_points_are_refused(bad: bytes, field: str) -> None:
    with pytest.raises(WireError, match="valid element"):
        lockstep.run(base.base_ots(Channel(0, SESSION)), _cheat(Channel(1, SESSION), bad, field))


def test_point_with_a_small_component_is_refused() -> None:
    """An honest point plus one of order 8: on the curve, but outside the prime-order subgroup."""
    honest = base.Sender(SESSION, 0, Prg.fresh()).point
    mixed = sodium.crypto_core_ed25519_add(honest, ORDER_8)
    with pytest.raises(WireError, match="valid element"):
        lockstep.run(base.base_ots(Channel(0, SESSION)), _cheat(Channel(1, SESSION), mixed, "points"))


def test_points_that_cancel_are_refused() -> None:
    """R_0 = -H(R_1) makes the sender's product neutral."""
    sender = base.Sender(SESSION, 0, Prg.fresh())
    points = base.Receiver(SESSION, 0, Prg.fresh()).points
    image = base._hash_to_group(SESSION + bytes([0]), 3, 0, points[3, 1].tobytes())
    neutral = sodium.crypto_core_ed25519_sub(image, image)
    negative = sodium.crypto_core_ed25519_sub(neutral, image)
    points[3, 0] = np.frombuffer(negative, np.uint8)
    with pytest.raises(WireError, match="neutral"):
        sender.keys(points, bytes(32))


@pytest.mark.parametrize("shape", [(127, 2, 32), (128, 1, 32), (128, 2, 31)])
def test_wrong_number_of_points_is_refused(shape: tuple[int, int, int]) -> None:
    async def short(channel: Channel) -> None:
        await channel.send(base.BaseMessage(bytes(32), np.zeros(shape, np.uint8)))

    with pytest.raises(WireError):
        lockstep.run(base.base_ots(Channel(0, SESSION)), short(Channel(1, SESSION)))


async def _cheat(channel: Channel, bad: bytes, field: str) -> Any:
    sender = base.Sender(SESSION, channel.party, channel.prg)
    receiver = base.Receiver(SESSION, 1 - channel.party, channel.prg)
    message = base.BaseMessage(sender.point, receiver.points)
    if field == "sender_point":
        message = dataclasses.replace(message, sender_point=bad)
    else:
        message.points[64, 1] = np.frombuffer(bad, np.uint8)
    return await channel.exchange(message, points=(128, 2, 32))
