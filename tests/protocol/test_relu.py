"""Relus over the ideal dealer, against network.py's words for them."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol.millionaires import Layout
from mpcd.protocol.relu import relu, relu_needs, truncate_relu, truncate_relu_needs
from tests.protocol.ideal import edge_shares, opened, play, signed, splits, words


def comparison_bytes(n: int, layout: Layout) -> tuple[int, int]:
    full, q, levels = -(-n // 64), len(layout.blocks), len(layout.levels)
    tables = [(1 << block.width) - 1 for block in layout.blocks]
    triples = 3 * (q - 1) - levels
    return 8 * full * (tables[0] + 2 * sum(tables[1:]) + triples), 8 * full * (layout.bits + triples)


def check(x0: np.ndarray, x1: np.ndarray, bits: int, negative: np.ndarray | None = None) -> None:
    n = len(x0)
    played = play(relu, ((x0, bits, negative), (x1, bits, None)))
    z = signed(x0 + x1, bits)
    want = np.maximum(z, 0)
    if negative is not None:
        want = np.where(negative, np.minimum(z + 1, 0), want)
    assert np.array_equal(signed(opened(played.results, bits), bits), want)
    assert played.taken == relu_needs(n, bits)
    layout = Layout(bits - 1)
    sent = comparison_bytes(n, layout)
    assert played.sent == (sent[0] + words(n, n * bits), sent[1] + words(n, n * bits))
    assert played.flows == len(layout.levels) + 4


@pytest.mark.parametrize("bits", range(2, 7))
def test_every_sharing(bits: int) -> None:
    x0, x1 = splits(bits)
    check(x0, x1, bits)
    check(x0, x1, bits, np.ones(len(x0), np.bool_))
    check(x0, x1, bits, np.random.default_rng().integers(0, 2, len(x0)).astype(np.bool_))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_sizes(n: int) -> None:
    rng = np.random.default_rng()
    for bits in (17, 20, 21):
        x0, x1 = edge_shares(bits, n, rng)
        check(x0, x1, bits)
        check(x0, x1, bits, rng.integers(0, 2, n).astype(np.bool_))


@pytest.mark.parametrize("bits", range(7, 34))
def test_widths(bits: int) -> None:
    rng = np.random.default_rng()
    check(*edge_shares(bits, 100, rng), bits, rng.integers(0, 2, 100).astype(np.bool_))


def check_truncated(x0: np.ndarray, x1: np.ndarray, ring: int, fraction: int, bits: int) -> None:
    n = len(x0)
    played = play(truncate_relu, ((x0, fraction, bits), (x1, fraction, bits)))
    floor = signed(x0 + x1, ring) // (1 << fraction)
    wrapped = signed(floor.astype(np.uint64), bits)
    assert np.array_equal(signed(opened(played.results, bits), bits), np.maximum(wrapped, 0))
    assert played.taken == truncate_relu_needs(n, fraction, bits)
    layout = Layout(bits + fraction - 1, fraction)
    sent = comparison_bytes(n, layout)
    assert played.sent == (sent[0] + words(n * bits, n, n * bits), sent[1] + words(n, n, n * bits))
    levels = len(layout.levels)
    assert played.flows == levels + 5 + (levels + 5) % 2


@pytest.mark.parametrize("ring", range(3, 7))
def test_truncated_every_sharing(ring: int) -> None:
    x0, x1 = splits(ring)
    for fraction in range(1, ring - 1):
        for bits in range(2, ring - fraction + 1):
            check_truncated(x0, x1, ring, fraction, bits)


@pytest.mark.parametrize("fraction", range(1, 14))
def test_truncated_widths(fraction: int) -> None:
    rng = np.random.default_rng()
    for bits in (2, 3, 8, 17, 20, 21, 33):
        for ring in (bits + fraction, bits + fraction + 3):
            check_truncated(*edge_shares(ring, 70, rng), ring, fraction, bits)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_truncated_sizes(n: int) -> None:
    check_truncated(*edge_shares(32, n, np.random.default_rng()), 32, 12, 20)


def test_only_the_model_owner_has_negative_slopes() -> None:
    x = np.zeros(3, np.uint64)
    with pytest.raises(ValueError, match="model owner"):
        play(relu, ((x, 5, None), (x, 5, np.ones(3, np.bool_))))
