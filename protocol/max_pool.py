"""The largest element of every window, by a tree of max(x, y) = y + relu(x - y) mod 2^k.

Along rows first: for each output column the elements of the window's row, then, over those maxima, along columns.
In both, elements 0, 1, 2, ... of the window from left to right (top to bottom) are combined in pairs (0, 1), (2, 3),
..., x the first and y the second; an odd last one is carried up; until one is left. A position over the image's edge
is the nearest element inside (padding is at most half the window, so that one lies in the window). x - y is wrapped to
[-2^(k-1), 2^(k-1)): where all differences fit, this is the maximum.

1. For each level along rows, then along columns: one ``relu`` of all its pairs.

Cost: for kernel (h, w), input (C, H, _), output (C, H', W'): C H W' (w - 1) relus along rows and C H' W' (h - 1) along
columns, in B = ceil(log2 w) + ceil(log2 h) batches; B (L + 4) flows for L levels of a relu, less B - 1 where L is
odd (a batch that P1 ends shares that flow with the next, which P1 starts).
Adversary: as ``relu``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mpcd.protocol import local
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import Need, Source
from mpcd.protocol.network import windows
from mpcd.protocol.relu import relu, relu_needs

Share = npt.NDArray[np.uint64]


def needs(
    shape: tuple[int, int, int],
    bits: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Need, ...]:
    """For an input of ``shape`` (channels, height, width)."""
    channels, height, _ = shape
    out_height, out_width = (
        windows(size, k, s, p) for size, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True)
    )
    rows = (pairs * channels * height * out_width for pairs in _pairs(kernel[1]))
    columns = (pairs * channels * out_height * out_width for pairs in _pairs(kernel[0]))
    return tuple(need for n in (*rows, *columns) for need in relu_needs(n, bits))


def _pairs(count: int) -> Iterator[int]:
    """Pairs in each level of a tree over ``count``."""
    while count > 1:
        yield count // 2
        count -= count // 2


async def max_pool(
    channel: Channel,
    source: Source,
    x: Share,
    bits: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Share:
    """Either party. x: uint64 (channels, height, width) mod 2^bits. Returns uint64 (channels, H', W') mod 2^bits."""
    for axis in (2, 1):
        at = axis - 1
        parts = await channel.compute(_slices, x, axis, kernel[at], stride[at], padding[at])
        x = await _maximum(channel, source, parts, bits)
    return x


def _slices(x: Share, axis: int, kernel: int, stride: int, padding: int) -> Share:
    """Element i of every window along ``axis``, for each i: uint64 (kernel, ...)."""
    size = x.shape[axis]
    starts = np.arange(windows(size, kernel, stride, padding)) * stride - padding
    return np.stack([np.take(x, np.clip(starts + i, 0, size - 1), axis) for i in range(kernel)])


async def _maximum(channel: Channel, source: Source, parts: Share, bits: int) -> Share:
    """Maximum along the first axis."""
    while len(parts) > 1:
        pairs = len(parts) // 2
        x, y, carried = parts[0 : 2 * pairs : 2], parts[1 : 2 * pairs : 2], parts[2 * pairs :]
        difference = await channel.compute(_difference, x, y, bits)
        positive = await relu(channel, source, difference, bits)
        largest = await channel.compute(local.add, y, positive.reshape(y.shape), bits)
        parts = np.concatenate([largest, carried])
    only: Share = parts[0]
    return only


def _difference(x: Share, y: Share, bits: int) -> Share:
    return local.reduce(x - y, bits).reshape(-1)
