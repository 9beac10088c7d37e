"""Growing the ring over the ideal dealer."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol.growth import extend, extend_needs, grow, grow_needs
from mpcd.protocol.millionaires import Layout
from tests.protocol.ideal import edge_shares, opened, play, share, signed, splits, words


def check_grow(x0: np.ndarray, x1: np.ndarray, bits: int, wide: int, offset: np.ndarray | None) -> None:
    """Checks the elements that keep the bound; there must be some."""
    n = len(x0)
    played = play(grow, ((x0, bits, wide, offset), (x1, bits, wide, None)))
    x = signed(x0 + x1, bits)
    shifted = x if offset is None else x + offset.astype(np.int64)
    good = (shifted >= 0) & (shifted < 1 << (bits - 1))
    assert good.any()
    assert np.array_equal(signed(opened(played.results, wide), wide)[good], x[good])
    assert played.taken == grow_needs(n, bits, wide)
    assert played.sent == (words(n * (wide - bits)), words(n))
    assert played.flows == 2


@pytest.mark.parametrize("bits", range(2, 7))
def test_every_sharing(bits: int) -> None:
    x0, x1 = splits(bits)
    top = (1 << (bits - 1)) - 1
    for wide in range(bits + 1, bits + 4):
        check_grow(x0, x1, bits, wide, None)
        for c in range(top + 1):
            check_grow(x0, x1, bits, wide, np.full(len(x0), c, np.uint64))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_outputs_of_relus_of_either_sign(n: int) -> None:
    rng = np.random.default_rng()
    for bits, wide in ((2, 3), (17, 29), (20, 32), (21, 33), (33, 46)):
        top = (1 << (bits - 1)) - 1
        offset = rng.choice(np.array([0, top]), n)
        x = rng.integers(0, top, n, endpoint=True) - offset
        x[0] = -offset[0]
        x[-1] = top - offset[-1]
        check_grow(*share(x, bits, rng), bits, wide, offset.astype(np.uint64))


def check_extend(x0: np.ndarray, x1: np.ndarray, bits: int, wide: int) -> None:
    n = len(x0)
    played = play(extend, ((x0, bits, wide), (x1, bits, wide)))
    assert np.array_equal(signed(opened(played.results, wide), wide), signed(x0 + x1, bits))
    assert played.taken == extend_needs(n, bits, wide)
    layout = Layout(bits)
    full, q, levels = -(-n // 64), len(layout.blocks), len(layout.levels)
    tables = [(1 << block.width) - 1 for block in layout.blocks]
    triples = 3 * (q - 1) - levels
    assert played.sent == (
        8 * full * (tables[0] + 2 * sum(tables[1:]) + triples) + words(n * (wide - bits)),
        8 * full * (bits + triples) + words(n),
    )
    assert played.flows == levels + 3 + (levels + 3) % 2


@pytest.mark.parametrize("bits", range(2, 7))
def test_extend_every_sharing(bits: int) -> None:
    x0, x1 = splits(bits)
    check_extend(x0, x1, bits, bits + 1)
    check_extend(x0, x1, bits, bits + 7)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_extend_widths(n: int) -> None:
    rng = np.random.default_rng()
    for bits in (7, 12, 17, 20, 33):
        check_extend(*edge_shares(bits, n, rng), bits, bits + 12)


def test_only_the_model_owner_has_offsets() -> None:
    x = np.zeros(3, np.uint64)
    with pytest.raises(ValueError, match="model owner"):
        play(grow, ((x, 5, 9, None), (x, 5, 9, x)))
