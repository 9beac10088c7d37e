"""Exact truncation over the ideal dealer, against floor division."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol import truncation
from mpcd.protocol.millionaires import Layout
from tests.protocol.ideal import edge_shares, opened, play, share, signed, splits, words


def check(x0: np.ndarray, x1: np.ndarray, ring: int, fraction: int, bits: int, seed: int = 0) -> None:
    played = play(truncation.truncate, ((x0, fraction, bits), (x1, fraction, bits)), seed)
    n, mask = len(x0), np.uint64((1 << bits) - 1)
    floor = signed(x0 + x1, ring) // (1 << fraction)
    assert np.array_equal(opened(played.results, bits), floor.astype(np.uint64) & mask)
    assert played.taken == truncation.needs(n, fraction, bits)
    layout = Layout(fraction)
    full, q, levels = -(-n // 64), len(layout.blocks), len(layout.levels)
    tables = [(1 << block.width) - 1 for block in layout.blocks]
    triples = 3 * (q - 1) - levels
    assert played.sent == (
        8 * full * (tables[0] + 2 * sum(tables[1:]) + triples) + words(n * bits),
        8 * full * (fraction + triples) + words(n),
    )
    assert played.flows == levels + 3 + (levels + 3) % 2


@pytest.mark.parametrize("ring", range(2, 7))
def test_every_sharing(ring: int) -> None:
    x0, x1 = splits(ring)
    for fraction in range(1, ring):
        for bits in range(1, ring - fraction + 1):
            check(x0, x1, ring, fraction, bits)


@pytest.mark.parametrize("fraction", range(1, 14))
def test_widths(fraction: int) -> None:
    rng = np.random.default_rng()
    for bits in range(2, 34, 3):
        for ring in (bits + fraction, bits + fraction + 5):
            x0, x1 = edge_shares(ring, 100, rng)
            check(x0, x1, ring, fraction, bits, ring)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_sizes(n: int) -> None:
    rng = np.random.default_rng()
    x = rng.integers(-(1 << 31), 1 << 31, n)
    x[: min(n, 5)] = [-(1 << 31), -1, 0, (1 << 12) - 1, -(1 << 12)][: min(n, 5)]
    check(*share(x, 32, rng), 32, 12, 20)
