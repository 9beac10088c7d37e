"""Max pooling over the ideal dealer, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol import max_pool
from mpcd.protocol.millionaires import Layout
from tests.protocol.ideal import opened, play, share, signed, words

Pair = tuple[int, int]


def tree(values: list[int], bits: int) -> int:
    """Pairs (0, 1), (2, 3), ..., an odd last one carried."""
    half = 1 << (bits - 1)

    def wrap(v: int) -> int:
        return (v + half) % (2 * half) - half

    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        values = [wrap(y + max(wrap(x - y), 0)) for x, y in pairs] + (values[-1:] if len(values) % 2 else [])
    return values[0]


def pool(x: np.ndarray, bits: int, kernel: Pair, stride: Pair, padding: Pair, shape: Pair) -> np.ndarray:
    channels, height, width = x.shape
    out = np.zeros((channels, *shape), np.int64)
    for c, i, j in np.ndindex(out.shape):
        rows = [min(max(i * stride[0] - padding[0] + step, 0), height - 1) for step in range(kernel[0])]
        columns = [min(max(j * stride[1] - padding[1] + step, 0), width - 1) for step in range(kernel[1])]
        out[c, i, j] = tree([tree([int(x[c, row, column]) for column in columns], bits) for row in rows], bits)
    return out


def check(x: np.ndarray, bits: int, kernel: Pair, stride: Pair, padding: Pair) -> np.ndarray:
    x0, x1 = share(x, bits, np.random.default_rng())
    played = play(max_pool.max_pool, tuple((xi, bits, kernel, stride, padding) for xi in (x0, x1)))
    got = signed(opened(played.results, bits), bits)
    want = pool(x, bits, kernel, stride, padding, got.shape[1:])
    assert np.array_equal(got, want)
    assert played.taken == max_pool.needs(x.shape, bits, kernel, stride, padding)

    c, h, _ = x.shape
    _, out_h, out_w = got.shape
    batches = []
    for count, positions in ((kernel[1], c * h * out_w), (kernel[0], c * out_h * out_w)):
        while count > 1:
            batches.append(count // 2 * positions)
            count -= count // 2
    assert sum(batches) == c * h * out_w * (kernel[1] - 1) + c * out_h * out_w * (kernel[0] - 1)
    layout = Layout(bits - 1)
    q, levels = len(layout.blocks), len(layout.levels)
    tables = [(1 << block.width) - 1 for block in layout.blocks]
    triples = 3 * (q - 1) - levels
    full = sum(-(-n // 64) for n in batches)
    multiplexers = sum(words(n, n * bits) for n in batches)
    assert played.sent == (
        8 * full * (tables[0] + 2 * sum(tables[1:]) + triples) + multiplexers,
        8 * full * (bits - 1 + triples) + multiplexers,
    )
    flows = len(batches) * (levels + 4) - (levels % 2) * (len(batches) - 1)
    assert played.flows == (flows if batches else 0)
    return got


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((2, 8, 8), (3, 3), (2, 2), (1, 1)),  # DenseNet's and ResNet's stem
        ((2, 7, 9), (2, 2), (2, 2), (0, 0)),  # VGG
        ((1, 9, 9), (3, 3), (2, 2), (0, 0)),  # SqueezeNet
        ((3, 5, 6), (1, 4), (1, 3), (0, 2)),
        ((2, 6, 5), (5, 1), (2, 1), (2, 0)),
        ((1, 1, 1), (1, 1), (1, 1), (0, 0)),
        ((2, 7, 7), (7, 6), (1, 1), (3, 3)),
    ],
)
def test_windows(shape: tuple[int, int, int], kernel: Pair, stride: Pair, padding: Pair) -> None:
    rng = np.random.default_rng()
    for bits in (9, 18, 20):
        quarter = 1 << (bits - 2)
        x = rng.integers(-quarter, quarter, shape)  # differences fit: a true maximum
        x.reshape(-1)[0], x.reshape(-1)[-1] = -quarter, quarter - 1
        got = check(x, bits, kernel, stride, padding)
        if padding == (0, 0):
            view = np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))
            assert np.array_equal(got, view[:, :: stride[0], :: stride[1]].max((3, 4)))
        half = 1 << (bits - 1)
        check(rng.integers(-half, half, shape), bits, kernel, stride, padding)  # differences wrap
        check(rng.choice(np.array([-half, half - 1]), shape), bits, kernel, stride, padding)
