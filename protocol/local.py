"""Operations on shares that need no message: both parties do the same to their own share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Share = npt.NDArray[np.uint64]
T = TypeVar("T", bound=np.generic)


def reduce(x: Share, bits: int) -> Share:
    """x mod 2^bits."""
    return x & np.uint64((1 << bits) - 1)


def add(x: Share, y: Share, bits: int) -> Share:
    """x + y mod 2^bits."""
    return reduce(x + y, bits)


def sum_pool(x: Share, kernel: tuple[int, int], stride: tuple[int, int], bits: int) -> Share:
    """Window sums of x (channels, height, width) mod 2^bits; average pooling but for the division."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    return reduce(windows[:, :: stride[0], :: stride[1]].sum(axis=(3, 4), dtype=np.uint64), bits)


def per_channel(vector: npt.NDArray[T], shape: tuple[int, int, int]) -> npt.NDArray[T]:
    """A number per channel, repeated over that channel's pixels: flat, of the shape's size."""
    return np.repeat(vector, shape[1] * shape[2])
