"""Signs and carries over the ideal dealer, against the opened value."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol.drelu import drelu, drelu_and_carry, drelu_needs
from mpcd.protocol.millionaires import Layout, millionaires_needs
from tests.protocol.ideal import Played, edge_shares, opened_bits, play, signed, splits


def check(x0: np.ndarray, x1: np.ndarray, bits: int, edge: int | None = None, seed: int = 0) -> Played:
    n = len(x0)
    played = play(drelu_and_carry, ((x0, bits, edge), (x1, bits, edge)), seed)
    (sign0, carry0), (sign1, carry1) = played.results
    assert np.array_equal(opened_bits((sign0, sign1), n), signed(x0 + x1, bits) >= 0)
    if edge is None:
        assert carry0 is carry1 is None
    else:
        low = np.uint64((1 << edge) - 1)
        assert np.array_equal(opened_bits((carry0, carry1), n), ((x0 & low) + (x1 & low)) >> np.uint64(edge))
    assert played.taken == drelu_needs(n, bits, edge) == millionaires_needs(Layout(bits - 1, edge), n)
    return played


@pytest.mark.parametrize("bits", range(2, 7))
def test_every_sharing(bits: int) -> None:
    x0, x1 = splits(bits)
    for edge in (None, *range(1, bits - 1)):
        check(x0, x1, bits, edge)


@pytest.mark.parametrize("bits", [*range(7, 34), 48, 64])
def test_widths(bits: int) -> None:
    rng = np.random.default_rng()
    x0, x1 = edge_shares(bits, 200, rng)
    check(x0, x1, bits)
    check(x0, x1, bits, int(rng.integers(1, bits - 1)))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_sizes_and_cost(n: int) -> None:
    x0, x1 = edge_shares(20, n, np.random.default_rng())
    played = check(x0, x1, 20)
    words = -(-n // 64)
    # 19 bits: blocks 4, 3, 3, 3, 3, 3; merges 3, 1, 1.
    triples = 3 * 5 - 3
    assert played.sent == (8 * words * (15 + 5 * 14 + triples), 8 * words * (19 + triples))
    assert played.flows == 5


def test_bits_above_the_ring_do_not_count() -> None:
    x0, x1 = np.random.default_rng().integers(0, 1 << 64, (2, 300), np.uint64)
    check(x0, x1, 11, 4)


def test_alone() -> None:
    x0, x1 = edge_shares(17, 100, np.random.default_rng())
    played = play(drelu, ((x0, 17), (x1, 17)))
    assert np.array_equal(opened_bits(played.results, 100), signed(x0 + x1, 17) >= 0)
