"""Argmax over the ideal dealer, against NumPy's, which also takes the first of equal ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpcd.protocol.argmax import argmax, argmax_needs, position_bits
from mpcd.protocol.millionaires import Layout
from tests.protocol.ideal import opened, play, share, words


def check(x: np.ndarray, bits: int) -> None:
    rows, n = x.shape
    x0, x1 = share(x, bits, np.random.default_rng())
    played = play(argmax, ((x0, bits), (x1, bits)))
    p = position_bits(n)
    assert np.array_equal(opened(played.results, p), x.argmax(1))
    assert played.taken == argmax_needs(rows, n, bits)

    layout = Layout(bits - 1)
    q, levels = len(layout.blocks), len(layout.levels)
    tables = [(1 << block.width) - 1 for block in layout.blocks]
    triples = 3 * (q - 1) - levels
    sent, left = [0, 0], n
    while left > 1:
        pairs = rows * (left // 2)
        left -= left // 2
        both = words(pairs, pairs * p) + (words(pairs, pairs * bits) if left > 1 else 0)
        full = -(-pairs // 64)
        sent[0] += 8 * full * (tables[0] + 2 * sum(tables[1:]) + triples) + both
        sent[1] += 8 * full * (bits - 1 + triples) + both
    assert played.sent == tuple(sent)
    depth = math.ceil(math.log2(n))
    assert played.flows == (depth * (levels + 6) - 2 - (levels % 2) * (depth - 1) if depth else 0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33])
def test_rows(n: int) -> None:
    rng = np.random.default_rng()
    for bits, rows in ((4, 50), (9, 65), (20, 5), (33, 1)):
        quarter = 1 << (bits - 2)
        x = rng.integers(-quarter, quarter, (rows, n))
        x[0] = rng.choice(np.array([-quarter, quarter - 1]), n)
        x[-1] = x[-1, 0]
        check(x, bits)


def test_ties_go_to_the_first() -> None:
    check(np.array([[3, 7, 7, 1, 7], [0, 0, 0, 0, 0], [-1, -2, -1, -3, -1], [1, 2, 3, 4, 4]]), 6)
