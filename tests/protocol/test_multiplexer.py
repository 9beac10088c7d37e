"""b z over the ideal dealer."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.multiplexer import multiplexer, multiplexer_needs
from mpcd.protocol.transfer import Corrections, Elements
from mpcd.protocol.wire import WireError
from tests.protocol.ideal import SESSION, dealer, edge_shares, opened, pack, play, splits, words


def check(b: np.ndarray, z: tuple[np.ndarray, np.ndarray], bits: int, seed: int = 0) -> None:
    """b: uint8 (2, n), both parties' bits."""
    n = len(z[0])
    played = play(multiplexer, tuple((pack(b[i]), z[i], bits) for i in (0, 1)), seed)
    mask = np.uint64((1 << bits) - 1)
    assert np.array_equal(opened(played.results, bits), (b[0] ^ b[1]) * ((z[0] + z[1]) & mask))
    assert played.taken == multiplexer_needs(n, bits)
    assert played.sent == (words(n, n * bits),) * 2
    assert played.flows == 3


@pytest.mark.parametrize("bits", range(1, 6))
def test_every_sharing(bits: int) -> None:
    z = splits(bits)
    n = len(z[0])
    for b in range(4):
        check(np.repeat(np.array([[b & 1], [b >> 1]], np.uint8), n, 1), z, bits, b)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_sizes_and_widths(n: int) -> None:
    rng = np.random.default_rng()
    for bits in (*range(2, 34), 48):
        check(rng.integers(0, 2, (2, n), np.uint8), edge_shares(bits, n, rng), bits, bits)


def test_bits_above_the_ring_do_not_count() -> None:
    rng = np.random.default_rng()
    z = rng.integers(0, 1 << 64, (2, 100), np.uint64)
    check(rng.integers(0, 2, (2, 100), np.uint8), (z[0], z[1]), 13)


def test_wrong_frames_are_refused() -> None:
    async def surplus_elements(channel: Channel) -> None:
        await channel.exchange(Corrections(np.zeros(2, np.uint64)), words=(2,))
        await channel.send(Elements(np.zeros(11, np.uint64)))

    with pytest.raises(WireError):
        lockstep.run(
            multiplexer(Channel(0, SESSION), dealer(0)[0], np.zeros(2, np.uint64), np.zeros(70, np.uint64), 9),
            surplus_elements(Channel(1, SESSION)),
        )
