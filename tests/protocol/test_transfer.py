"""Transfer of the chosen element over the ideal dealer, either party the sender."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.transfer import Corrections, Elements, transfer_needs, transfer_receive, transfer_send
from mpcd.protocol.wire import WireError
from tests.protocol.ideal import SESSION, dealer, opened, pack, play, words


@pytest.mark.parametrize("sender", [0, 1])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_chosen_element(sender: int, n: int) -> None:
    rng = np.random.default_rng()

    async def party(channel: Channel, source: object, *args: object) -> np.ndarray:
        run = transfer_send if channel.party == sender else transfer_receive
        return await run(channel, source, *args)

    for bits in (1, 2, 13, 20, 33, 63, 64):
        v0, v1 = rng.integers(0, (1 << bits) - 1, (2, n), np.uint64, endpoint=True)
        s = rng.integers(0, 2, n, np.uint8)
        inputs = ((v0, v1, bits), (pack(s), n, bits))
        played = play(party, inputs if sender == 0 else inputs[::-1], bits)
        if bits < 64:
            assert np.array_equal(opened(played.results, bits), np.where(s, v1, v0))
        else:
            assert np.array_equal(played.results[0] + played.results[1], np.where(s, v1, v0))
        assert played.taken == transfer_needs(n, bits, sender)
        assert played.sent[sender] == words(n * bits)
        assert played.sent[1 - sender] == words(n)
        assert played.flows == 2


def test_wrong_frames_are_refused() -> None:
    x = np.zeros(70, np.uint64)

    async def long_corrections(channel: Channel) -> None:
        await channel.send(Corrections(np.zeros(3, np.uint64)))

    with pytest.raises(WireError):
        lockstep.run(transfer_send(Channel(0, SESSION), dealer(0)[0], x, x, 9), long_corrections(Channel(1, SESSION)))

    async def short_elements(channel: Channel) -> None:
        await channel.recv(Corrections, words=(2,))
        await channel.send(Elements(np.zeros(9, np.uint64)))

    with pytest.raises(WireError, match="should be"):
        lockstep.run(
            short_elements(Channel(0, SESSION)),
            transfer_receive(Channel(1, SESSION), dealer(0)[1], np.zeros(2, np.uint64), 70, 9),
        )
