"""Millionaires' over the ideal dealer, against Python's <."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpcd.protocol import lockstep, millionaires
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import AndNeed, CorrelationError, LeafNeed
from mpcd.protocol.millionaires import Corrections, Entries, Layout, millionaires_needs
from mpcd.protocol.wire import WireError
from tests.protocol.ideal import SESSION, Played, dealer, edge_shares, opened_bits, play, splits


def compare(a: np.ndarray, b: np.ndarray, layout: Layout, seed: int = 0) -> Played:
    """Run, check results, needs, bytes and flows against the docstring."""
    played = play(millionaires.millionaires, ((a, layout), (b, layout)), seed)
    mask = np.uint64((1 << layout.bits) - 1)
    shares = played.results[0].whole, played.results[1].whole
    assert np.array_equal(opened_bits(shares, len(a)), (a & mask) < (b & mask))
    if layout.edge is None:
        assert played.results[0].low is None
    else:
        low = np.uint64((1 << layout.edge) - 1)
        shares = played.results[0].low, played.results[1].low
        assert np.array_equal(opened_bits(shares, len(a)), (a & low) < (b & low))
    assert played.taken == millionaires_needs(layout, len(a))
    words, q, levels = -(-len(a) // 64), len(layout.blocks), len(layout.levels)
    tables = [(1 << block.width) - 1 for block in layout.blocks]
    triples = 3 * (q - 1) - levels
    assert played.sent[0] == 8 * words * (tables[0] + 2 * sum(tables[1:]) + triples)
    assert played.sent[1] == 8 * words * (layout.bits + triples)
    assert played.flows == levels + 2
    return played


@pytest.mark.parametrize("bits", range(1, 7))
def test_every_pair(bits: int) -> None:
    a, b = splits(bits)
    for edge in (None, *range(1, bits)):
        compare(a, b, Layout(bits, edge))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_sizes(n: int) -> None:
    rng = np.random.default_rng()
    for bits, edge in ((19, None), (32, 12)):
        a, b = edge_shares(bits, n, rng)
        compare(a, b, Layout(bits, edge), n)


@pytest.mark.parametrize("bits", [*range(7, 34), 47, 63, 64])
def test_widths(bits: int) -> None:
    rng = np.random.default_rng()
    a, b = edge_shares(bits, 150, rng)
    b[40:90] = a[40:90]  # equal
    flipped = np.uint64(1) << rng.integers(0, bits, 50, np.uint64)
    b[90:140] = a[90:140] ^ flipped  # decided in one bit
    compare(a, b, Layout(bits))
    for edge in {1, int(rng.integers(1, bits)), bits - 1}:
        compare(a, b, Layout(bits, edge))


def test_bits_above_the_layout_do_not_count() -> None:
    a, b = np.random.default_rng().integers(0, 1 << 64, (2, 100), np.uint64)
    compare(a, b, Layout(9, 5))


@pytest.mark.parametrize("bits", range(1, 65))
def test_layouts(bits: int) -> None:
    for edge in (None, *range(1, bits)):
        layout = Layout(bits, edge)
        ends = [block.shift + block.width for block in layout.blocks]
        assert [0, *ends] == [block.shift for block in layout.blocks] + [bits]
        assert 1 <= layout.blocks[0].width <= 4
        assert all(1 <= block.width <= 3 for block in layout.blocks[1:])
        assert edge is None or edge in ends
        parts = [bits] if edge is None else [edge, bits - edge]
        lowest = max(1, -(-(parts[0] - 1) // 3))
        assert len(layout.blocks) == lowest + sum(-(-part // 3) for part in parts[1:])
        spans = {i: (block.shift, block.shift + block.width) for i, block in enumerate(layout.blocks)}
        for level in layout.levels:
            ready = dict(spans)
            for merge in level:
                assert ready[merge.low][1] == ready[merge.high][0]
                spans[merge.node] = (ready[merge.low][0], ready[merge.high][1])
            assert spans[level[0].node][0] == 0
        assert spans[max(spans)] == (0, bits)
        if edge is None:
            assert layout.edge_node is None
            assert len(layout.levels) == math.ceil(math.log2(len(layout.blocks)))
        else:
            assert layout.edge_node is not None
            assert spans[layout.edge_node] == (0, edge)


def test_needs_of_a_truncated_relu() -> None:
    layout = Layout(20 - 1 + 11, 11)
    widths = [3, 3, 3, 2, 3, 3, 3, 3, 3, 2, 2]
    assert [block.width for block in layout.blocks] == widths
    assert millionaires_needs(layout, 100) == (
        *(LeafNeed(width, 100) for width in widths),
        AndNeed(128 * 5),
        AndNeed(128 * 3),
        AndNeed(128 * 1),
        AndNeed(128 * 1),
    )


@pytest.mark.parametrize(("bits", "edge"), [(0, None), (65, None), (8, 0), (8, 8), (8, 9)])
def test_impossible_layouts(bits: int, edge: int | None) -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        Layout(bits, edge)


def test_parties_that_disagree_are_refused() -> None:
    x = np.zeros(10, np.uint64)
    with pytest.raises(CorrelationError):
        play(millionaires.millionaires, ((x, Layout(8)), (x[:9], Layout(8))))


def test_wrong_frames_are_refused() -> None:
    layout = Layout(8)
    x = np.zeros(70, np.uint64)

    async def short_corrections(channel: Channel) -> None:
        await channel.send(Corrections(np.zeros((8, 1), np.uint64)))

    with pytest.raises(WireError, match="should be"):
        lockstep.run(
            millionaires.millionaires(Channel(0, SESSION), dealer(0)[0], x, layout),
            short_corrections(Channel(1, SESSION)),
        )

    for size in (2 * layout.entry_words - 1, 2 * layout.entry_words + 1):

        async def wrong_entries(channel: Channel, size: int) -> None:
            await channel.recv(Corrections, planes=(8, 2))
            await channel.send(Entries(np.zeros(size, np.uint64)))

        with pytest.raises(WireError):
            lockstep.run(
                wrong_entries(Channel(0, SESSION), size),
                millionaires.millionaires(Channel(1, SESSION), dealer(0)[1], x, layout),
            )
