"""Crop, resize, normalise and quantise, against loops, Pillow's and PyTorch's resize where they are installed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcd.daemon.image import dicom, recipe
from mpcd.daemon.image.preprocess import crop_centre, prepare, preprocess, quantise, resize

SHAPES = [(512, 512), (300, 500), (100, 50), (224, 224), (7, 3), (1, 1), (1, 40), (449, 225)]


def naive_resize(x: np.ndarray, size: int) -> np.ndarray:
    """The definition: triangle of half-width max(1, scale) around each output's centre."""

    def weights(length: int) -> np.ndarray:
        out = np.zeros((size, length))
        scale = length / size
        for i in range(size):
            for j in range(length):
                out[i, j] = max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / max(1.0, scale))
            out[i] /= out[i].sum()
        return out

    return weights(x.shape[0]) @ x @ weights(x.shape[1]).T


@pytest.mark.parametrize("shape", SHAPES)
def test_antialiased_resize_is_its_definition(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random(shape)
    for size in (8, 33):
        assert np.allclose(resize(x, size, "bilinear-antialias"), naive_resize(x, size), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_resize_against_torch(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).random(shape)
    t = torch.from_numpy(x)[None, None]
    for size in (32, 224):
        modes = {
            "bilinear-antialias": {"mode": "bilinear", "antialias": True},
            "bilinear": {"mode": "bilinear"},
            "nearest": {"mode": "nearest-exact"},
        }
        for name, options in modes.items():
            expected = torch.nn.functional.interpolate(t, (size, size), **options)[0, 0].numpy()
            assert np.allclose(resize(x, size, name), expected, atol=1e-9), name


def test_resize_against_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    x = np.random.default_rng(2).random((301, 257)).astype(np.float32)
    expected = np.asarray(image.fromarray(x).resize((64, 64), image.Resampling.BILINEAR))
    assert np.allclose(resize(x.astype(np.float64), 64, "bilinear-antialias"), expected, atol=1e-6)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 50), st.sampled_from(recipe.INTERPOLATIONS))
def test_resize_stays_in_range_and_keeps_constants(rows: int, columns: int, size: int, interpolation: str) -> None:
    x = np.random.default_rng(rows * 61 + columns).random((rows, columns))
    out = resize(x, size, interpolation)
    assert out.shape == (size, size)
    assert x.min() - 1e-12 <= out.min()
    assert out.max() <= x.max() + 1e-12
    assert np.allclose(resize(np.full((rows, columns), 0.3), size, interpolation), 0.3, atol=1e-14)


def test_same_size_is_the_same_image() -> None:
    x = np.random.default_rng(3).random((24, 24))
    for interpolation in recipe.INTERPOLATIONS:
        assert np.array_equal(resize(x, 24, interpolation), x)


def test_crop_centre() -> None:
    x = np.arange(35.0).reshape(5, 7)
    assert np.array_equal(crop_centre(x), x[:, 1:6])
    assert np.array_equal(crop_centre(x.T), x.T[1:6])
    assert np.array_equal(crop_centre(x[:, :6]), x[:, :5])


def test_recipes_end_to_end(tmp_path: Path) -> None:
    x = np.random.default_rng(4).integers(0, 4096, (300, 260))
    dicom.write(
        tmp_path / "a.dcm",
        x,
        bits_stored=12,
        syntax="jpeg-ls",
        photometric="MONOCHROME1",
        instance_uid=dicom.make_uid("x"),
    )
    grey = naive_resize((1 - x / 4095)[20:280], 224)
    out = preprocess(tmp_path / "a.dcm", recipe.load("imagenet-224"))
    assert (out.shape, out.dtype) == ((3, 224, 224), np.float32)
    for c, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        assert np.allclose(out[c], (grey - mean) / std, atol=1e-5)
    xrv = preprocess(tmp_path / "a.dcm", recipe.load("xrv-224"))
    assert xrv.shape == (1, 224, 224)
    assert np.allclose(xrv[0], 2048 * grey - 1024, atol=1e-3)
    squeezed = dataclasses.replace(recipe.load("xrv-224"), crop="none")
    assert np.allclose(
        prepare(dicom.read(tmp_path / "a.dcm"), squeezed)[0], 2048 * naive_resize(1 - x / 4095, 224) - 1024, atol=1e-3
    )


def test_quantise_rounds_half_to_even_and_counts_saturation() -> None:
    values, saturated = quantise(np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127.4, 127.6, -128.4, -129.0, 1e9]), 1.0, 8)
    assert values.dtype == np.int64
    assert values.tolist() == [0, 2, 2, 0, -2, 127, 127, -128, -128, 127]
    assert saturated == 3


@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.floats(1e-3, 1e6), st.integers(2, 48))
def test_quantise_against_python(xs: list[float], scale: float, bits: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    values, saturated = quantise(np.array(xs, dtype=np.float64), scale, bits)
    exact = [round(x * scale) for x in xs]
    assert values.tolist() == [min(max(v, low), high) for v in exact]
    assert saturated == sum(not low <= v <= high for v in exact)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_quantise_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantise(np.array([bad]), 1.0, 8)
