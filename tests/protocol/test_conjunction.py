"""AND over the ideal dealer."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.conjunction import Opened, conjunction, conjunction_needs
from mpcd.protocol.wire import WireError
from tests.protocol.ideal import SESSION, dealer, play


@pytest.mark.parametrize("m", [1, 2, 5])
def test_products(m: int) -> None:
    rng = np.random.default_rng()
    for m2 in (0, m - 1, m):
        shares = [[rng.integers(0, 1 << 64, (rows, 3), np.uint64) for rows in (m, m, m2)] for _ in range(2)]
        x, y, y2 = (s0 ^ s1 for s0, s1 in zip(*shares, strict=True))
        played = play(conjunction, (tuple(shares[0]), tuple(shares[1])))
        first, second = (r0 ^ r1 for r0, r1 in zip(*played.results, strict=True))
        assert np.array_equal(first, x & y)
        assert np.array_equal(second, x[m - m2 :] & y2)
        assert played.taken == conjunction_needs(m, 3)
        assert played.sent == (8 * 3 * (2 * m + m2),) * 2
        assert played.flows == 2


def test_wrong_frame_is_refused() -> None:
    x = np.zeros((2, 3), np.uint64)

    async def short(channel: Channel) -> None:
        await channel.send(Opened(np.zeros((5, 3), np.uint64)))

    with pytest.raises(WireError, match="should be"):
        lockstep.run(conjunction(Channel(0, SESSION), dealer(0)[0], x, x, x), short(Channel(1, SESSION)))
