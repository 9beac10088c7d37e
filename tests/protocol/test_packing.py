"""Layouts: a whole layer done with the packing alone, by plain polynomial arithmetic on small rings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpcd.protocol import packing
from mpcd.protocol.network import NetworkError
from tests.protocol.one_layer import OP, Layer

LARGE = 10**6


def multiply_by_shift(x: np.ndarray, shift: int) -> np.ndarray:
    """x X^-shift mod X^n + 1, mod 2^64."""
    extended = np.concatenate([x, np.uint64(0) - x])
    return extended[shift : shift + len(x)]


def through_packing(layout: packing.Packing, weight: np.ndarray, images: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((layout.batch, layout.out_shape[0], layout.pixels), np.uint64)
    written = np.zeros(out.shape, np.int64)
    strip = layout.strip(images)
    for group, tile in layout.units():
        weights = layout.weights(weight, group)
        half = (layout.inputs + 1) // 2
        answers = np.zeros((layout.answers, layout.n), np.uint64)
        for first, last in ((0, half), (half, layout.inputs)):
            inputs = layout.polynomials(strip, group, tile, first, last)
            for tap in layout.taps(first, last):
                for r in range(tap.rows):
                    for c in range(tap.columns):
                        w = int(weights[tap.first_output + r, tap.first_channel + c, tap.u, tap.v]) * tap.sign
                        answers[r] += np.uint64(w % 2**64) * multiply_by_shift(inputs[c], tap.shift)
        for begin, count, position, at in layout.outputs_at(tile):
            for r in range(count):
                image, pixel = np.divmod(at, layout.pixels)
                channel = group * layout.outputs + begin + r
                out[image, channel, pixel] = answers[r, position]
                written[image, channel, pixel] += 1
    assert (written == 1).all()
    return out.reshape(layout.batch, *layout.out_shape)


def check(layer: Layer, batch: int, n: int, max_out_slots: int) -> packing.Packing:
    rng = np.random.default_rng()
    layout = packing.plan(layer.network(33, 1), OP, batch, n, max_out_slots)
    weight = rng.integers(-50, 51, layer.weight_shape)
    images = list(rng.integers(0, 2**64 - 1, (batch, *layer.shape), np.uint64, endpoint=True))
    got = through_packing(layout, weight, images)
    for y, image in zip(got, images, strict=True):
        np.testing.assert_array_equal(y, layer.apply(weight, image))
    assert layout.slots * layout.out_slots * layout.size <= n
    assert layout.out_slots <= max_out_slots
    return layout


pair = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None, max_examples=150)
@given(
    groups=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=pair,
    stride=pair,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    batch=st.integers(1, 4),
    n=st.sampled_from([64, 128, 256, 4096]),
    out_slots=st.sampled_from([1, 2, LARGE]),
)
def test_any_convolution(groups, channels, size, kernel, stride, padding, batch, n, out_slots):
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    assume((size[1] + 2 * padding[1]) * kernel[0] <= n)
    layer = Layer((groups * channels[0], *size), groups * channels[1], kernel, stride, padding, groups)
    check(layer, batch, n, out_slots)


def test_images_share_their_padding():
    layout = check(Layer((2, 7, 7), 2, (3, 3), (1, 1), (1, 1)), 3, 4096, 1)
    assert (layout.pitch, layout.image_rows, layout.strip_rows) == (8, 8, 25)


def test_pointwise_layers_have_no_gaps():
    layout = check(Layer((1, 56, 56), 1), 2, 4096, 1)
    assert layout.tile_rows == layout.step == 73
    assert layout.tiles == 2


def test_large_images_are_cut_into_bands_with_a_halo():
    layout = check(Layer((1, 112, 112), 1, (3, 3), (1, 1), (1, 1)), 1, 4096, 1)
    assert (layout.tile_rows, layout.step, layout.tiles) == (36, 34, 4)


def test_unused_phases_are_dropped():
    layout = check(Layer((2, 8, 8), 2, (1, 1), (2, 2)), 1, 4096, 1)
    assert layout.phases == ((0, 0),)


def test_small_layers_fill_their_ciphertexts():
    layout = check(Layer((64, 1, 1), 24), 2, 4096, LARGE)
    assert (layout.inputs, layout.answers) == (1, 1)
    layout = check(Layer((64, 1, 1), 24), 2, 256, LARGE)
    assert (layout.inputs, layout.answers) == (4, 3)


def test_refuses_rows_that_do_not_fit():
    with pytest.raises(NetworkError, match="operation 1: rows of 64 pixels"):
        packing.plan(Layer((1, 8, 64), 1, (3, 1)).network(33, 1), OP, 1, 128, 1)


def test_refuses_other_operations():
    with pytest.raises(NetworkError, match="operation 0 is Input"):
        packing.plan(Layer((1, 1, 1), 1).network(33, 1), 0, 1, 128, 1)
