"""Leaves shared by several comparisons: who shares, what it costs, and the same bits as without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpcd.protocol import lockstep, preprocessing
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import LeafNeed
from mpcd.protocol.millionaires import Layout, Less, millionaires
from mpcd.protocol.network import Relu
from mpcd.protocol.shared_leaves import USES, Piece, SharedLeaves, comparisons, leaf_needs
from tests.protocol.ideal import SESSION, dealer, opened_bits
from tests.protocol.small_networks import dense, many_thresholds, residual


@pytest.mark.parametrize("build", [dense, many_thresholds])
def test_every_use_has_its_pads(build: Any) -> None:
    """Pieces cover the input in order; each value's packs hold just the uses that it has, in packs of four."""
    network, _ = build(3)
    found = comparisons(network)
    left: dict[int, int] = {}
    for index, op in enumerate(network.ops):
        if index not in found:
            continue
        assert isinstance(op, Relu)
        assert sum(piece.count for piece in found[index]) == network.values[op.inputs[0]].size
        for piece in found[index]:
            assert piece.count == network.values[piece.value].size
            assert 0 <= piece.uses <= USES
            if piece.uses:
                assert left.get(piece.value, 0) == 0, "a pack ends before the next one begins"
                left[piece.value] = piece.uses
            left[piece.value] -= 1
    assert found
    assert not any(left.values())


def test_nobody_shares_without_need() -> None:
    network, _ = residual(1)
    assert comparisons(network) == {}


def test_fewer_ots() -> None:
    """Leaves of a shared piece are made once a pack."""
    network, _ = many_thresholds(1)
    alone = [need for i in range(len(network.ops)) for need in preprocessing.op_needs(network, i)]
    shared = preprocessing.plan(network)
    uses = [sum(n.count * n.uses for n in needs if isinstance(n, LeafNeed)) for needs in (alone, shared)]
    made = [sum(n.count for n in needs if isinstance(n, LeafNeed)) for needs in (alone, shared)]
    assert uses[0] == uses[1]
    assert made[1] < 0.6 * made[0]
    assert [n for n in alone if not isinstance(n, LeafNeed)] == [n for n in shared if not isinstance(n, LeafNeed)]


@pytest.mark.parametrize("bits", [1, 4, 16, 17, 33])
def test_against_less_than(bits: int) -> None:
    """Two features, three comparisons of other numbers at P0: [a < b] each time, bytes and flows as stated."""
    rng = np.random.default_rng()
    sizes = {1: 70, 2: 129}
    layout = Layout(bits)
    runs = (
        (Piece(1, 70, 3), Piece(2, 129, 2)),
        (Piece(2, 129, 0), Piece(1, 70, 0)),
        (Piece(1, 70, 0),),
    )
    b = {value: rng.integers(0, 1 << 64, n, np.uint64) for value, n in sizes.items()}
    a = [rng.integers(0, 1 << 64, sum(p.count for p in pieces), np.uint64) for pieces in runs]
    a[0][:70] = b[1]  # equal

    async def party(channel: Channel, source: Any) -> list[Less]:
        shared, found = SharedLeaves(), []
        for number, pieces in enumerate(runs):
            x = a[number] if channel.party == 0 else np.concatenate([b[p.value] for p in pieces])

            async def leaves(c: Any, s: Any, y: Any, lay: Any, pieces: Any = pieces) -> Any:
                return await shared.shares(c, s, y, lay, pieces)

            found.append(await millionaires(channel, source, x, layout, leaves))
        assert not shared._packs, "nothing is kept beyond its last use"
        return found

    sources = dealer(int(rng.integers(1 << 32)))
    run = lockstep.run(party(Channel(0, SESSION), sources[0]), party(Channel(1, SESSION), sources[1]))
    mask = np.uint64((1 << bits) - 1)
    for number, pieces in enumerate(runs):
        theirs = np.concatenate([b[p.value] for p in pieces])
        shares = tuple(run.results[p][number].whole for p in (0, 1))
        assert np.array_equal(opened_bits(shares, len(theirs)), (a[number] & mask) < (theirs & mask))
    assert sources[0].taken == sources[1].taken
    assert tuple(n for n in sources[0].taken if isinstance(n, LeafNeed)) == leaf_needs(layout, runs[0])
    triples = [3 * (len(layout.blocks) - 1) - len(layout.levels)] * 3
    words = [-(-len(x) // 64) for x in a]
    expected = 8 * (layout.bits * (2 + 3) + sum(w * t for w, t in zip(words, triples, strict=True)))
    assert run.traffic[1].payload_bytes == expected
    assert run.traffic[0].payload_bytes == 8 * sum(
        w * (layout.entry_words + t) for w, t in zip(words, triples, strict=True)
    )


def test_a_pad_serves_once() -> None:
    """What P0 sends for the same comparison again is masked anew."""
    rng = np.random.default_rng()
    x = rng.integers(0, 1 << 16, 64, np.uint64)
    sent = []

    async def party(channel: Channel, source: Any) -> None:
        shared = SharedLeaves()
        for uses in (4, 0, 0, 0):
            pieces = (Piece(1, 64, uses),)
            await shared.shares(_Recording(channel, sent), source, x, Layout(16), pieces)

    sources = dealer(int(rng.integers(1 << 32)))
    lockstep.run(party(Channel(0, SESSION), sources[0]), party(Channel(1, SESSION), sources[1]))
    assert len(sent) == 4
    assert len({entries.tobytes() for entries in sent}) == 4


class _Recording(Channel):
    """P0's messages, kept."""

    def __init__(self, channel: Channel, sent: list[Any]) -> None:
        self._channel, self._list = channel, sent
        self.party, self.session, self.prg = channel.party, channel.session, channel.prg

    async def send(self, message: Any) -> None:
        if self.party == 0:
            self._list.append(message.words)
        await self._channel.send(message)

    async def recv(self, cls: Any, **shapes: Any) -> Any:
        return await self._channel.recv(cls, **shapes)
