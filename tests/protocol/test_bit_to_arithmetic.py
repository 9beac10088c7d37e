"""Bits into rings over the ideal dealer."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol.bit_to_arithmetic import bit_to_arithmetic, bit_to_arithmetic_needs
from tests.protocol.ideal import opened, pack, play, words


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_bits(n: int) -> None:
    rng = np.random.default_rng()
    for bits in (*range(1, 34), 48):
        b0, b1 = rng.integers(0, 2, (2, n), np.uint8)
        b0[:4], b1[:4] = [0, 0, 1, 1][:n], [0, 1, 0, 1][:n]
        played = play(bit_to_arithmetic, ((pack(b0), n, bits), (pack(b1), n, bits)), bits)
        assert np.array_equal(opened(played.results, bits), b0 ^ b1)
        assert played.taken == bit_to_arithmetic_needs(n, bits)
        assert played.sent == (words(n * bits), words(n))
        assert played.flows == 2
