"""From a decoded radiograph to the integers of the network's input, by a recipe.

Everything up to ``quantise`` is float64 with sums in a fixed order and no BLAS: the same file and recipe give the same
integers on every machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpcd.daemon.image import dicom
from mpcd.daemon.image.dicom import Radiograph
from mpcd.daemon.image.recipe import Recipe

Float = npt.NDArray[np.float64]


def preprocess(path: Path, recipe: Recipe) -> npt.NDArray[np.float32]:
    """Read one DICOM file: float32 (channels, size, size) as the network expects it. Raises dicom.DicomError."""
    return prepare(dicom.read(path, window=recipe.range == "window"), recipe)


def prepare(image: Radiograph, recipe: Recipe) -> npt.NDArray[np.float32]:
    """A decoded image, pixels in [0, 1], to float32 (channels, size, size): crop, resize, range, normalise."""
    pixels = crop_centre(image.pixels) if recipe.crop == "centre" else image.pixels
    grey = recipe.low + (recipe.high - recipe.low) * resize(pixels, recipe.size, recipe.interpolation)
    channels = [(grey - mean) / std for mean, std in zip(recipe.mean, recipe.std, strict=True)]
    return np.stack(channels).astype(np.float32)


def crop_centre(pixels: Float) -> Float:
    """The middle square of the short side; of an odd surplus the larger half is cut at the bottom or right."""
    rows, columns = pixels.shape
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    return pixels[top : top + side, left : left + side]


def resize(pixels: Float, size: int, interpolation: str) -> Float:
    """To (size, size), any size from any shape of at least 1 x 1.

    "bilinear-antialias" is PyTorch's bilinear with antialias=True (and Pillow's): pixel centres at i + 1/2, triangle of
    half-width max(1, scale), weights that sum to 1. "bilinear" has half-width 1; "nearest" takes the pixel under the
    centre. Values stay within the input's range (up to rounding).
    """
    columns_done = _resize_rows(pixels, size, interpolation)
    return np.ascontiguousarray(_resize_rows(columns_done.T, size, interpolation).T)


def _resize_rows(pixels: Float, size: int, interpolation: str) -> Float:
    length = pixels.shape[0]
    index, weight = _taps(length, size, interpolation)
    out = np.zeros((size, pixels.shape[1]), dtype=np.float64)
    for tap in range(index.shape[1]):
        out += weight[:, tap, None] * pixels[index[:, tap]]
    return out


def _taps(length: int, size: int, interpolation: str) -> tuple[npt.NDArray[np.int64], Float]:
    """For each of ``size`` outputs its input positions and weights, (size, taps); weight 0 pads."""
    scale = length / size
    centre = (np.arange(size) + 0.5) * scale
    if interpolation == "nearest":
        index = np.minimum(centre.astype(np.int64), length - 1)[:, None]
        return index, np.ones((size, 1))
    support = max(1.0, scale) if interpolation == "bilinear-antialias" else 1.0
    first = np.floor(centre - support).astype(np.int64)
    taps = int(np.ceil(support)) * 2 + 2
    index = first[:, None] + np.arange(taps)
    weight = np.maximum(0.0, 1.0 - np.abs((index + 0.5 - centre[:, None]) / support))
    if interpolation == "bilinear-antialias":
        weight[(index < 0) | (index >= length)] = 0.0
    total = np.zeros(size)
    for tap in range(taps):
        total += weight[:, tap]
    return np.clip(index, 0, length - 1), weight / total[:, None]


def quantise(x: npt.NDArray[np.floating], scale: float, bits: int) -> tuple[npt.NDArray[np.int64], int]:
    """round(x * scale), halves to even, saturated to [-2^(bits-1), 2^(bits-1)); and how many elements saturated.

    ``x`` finite; ``scale`` > 0 is the network's input_scale; ``bits`` 2 to 48 its input ring. Raises ValueError for
    what is not finite.
    """
    scaled = np.rint(np.asarray(x, dtype=np.float64) * scale)
    if not np.isfinite(scaled).all():
        raise ValueError("the image has values that are not finite")
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    saturated = int(np.count_nonzero((scaled < low) | (scaled > high)))
    return np.clip(scaled, low, high).astype(np.int64), saturated
