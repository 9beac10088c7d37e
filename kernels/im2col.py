"""Convolution as a matrix product: the columns of an image, and an exact convolution modulo 2^bits over them."""

from __future__ import annotations

import itertools
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mpcd.kernels import gemm

T = TypeVar("T", np.float64, np.uint64)

_BLOCK = 1 << 22  # elements of columns held at once


def im2col(
    x: npt.NDArray[T],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    rows: tuple[int, int],
) -> npt.NDArray[T]:
    """columns[(c kh + u) kw + v, (i - rows[0]) out_w + j] = x[c, i sh + u - ph, j sw + v - pw], 0 outside.

    x: (c, h, w) of any dtype; output rows rows[0] <= i < rows[1]. Returns (c kh kw, (rows[1] - rows[0]) out_w).
    A view where the kernel is 1x1, the stride 1 and there is no padding.
    """
    c, h, w = x.shape
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    out_w = (w + 2 * pw - kw) // sw + 1
    first, last = rows
    if kernel == stride == (1, 1) and padding == (0, 0):
        return x[:, first:last].reshape(c, -1)
    top = first * sh - ph
    height = (last - first - 1) * sh + kh
    padded = np.zeros((c, height, w + 2 * pw), x.dtype)
    lo, hi = max(top, 0), min(top + height, h)
    if lo < hi:
        padded[:, lo - top : hi - top, pw : pw + w] = x[:, lo:hi]
    columns = np.empty((c, kh, kw, last - first, out_w), x.dtype)
    for u in range(kh):
        for v in range(kw):
            columns[:, u, v] = padded[:, u : u + (last - first - 1) * sh + 1 : sh, v : v + (out_w - 1) * sw + 1 : sw]
    return columns.reshape(c * kh * kw, -1)


def convolve(
    weight: npt.NDArray[np.int64],
    x: npt.NDArray[np.uint64],
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    bits: int,
    l1: int,
) -> npt.NDArray[np.uint64]:
    """Cross-correlation as in torch.nn.Conv2d, modulo 2^bits, exactly.

    weight: int64 (out, c / groups, kh, kw) with sum |w| <= l1 for each output; x: uint64 (c, h, w). Returns uint64
    (out, out_h, out_w) below 2^bits. Works by bands of output rows and blocks of outputs, in bounded memory.
    """
    out, per_group, kh, kw = weight.shape
    h, w = x.shape[1:]
    out_h = (h + 2 * padding[0] - kh) // stride[0] + 1
    out_w = (w + 2 * padding[1] - kw) // stride[1] + 1
    width = gemm.limb_width(l1)
    limbs = gemm.split(np.ascontiguousarray(x).reshape(-1), bits, width)
    band = max(1, _BLOCK // (per_group * kh * kw * out_w))
    result = np.zeros((out, out_h, out_w), np.uint64)
    # A float64 copy of the weights exists for a block of outputs at a time.
    block = max(1, _BLOCK // (per_group * kh * kw))
    for group, first in itertools.product(range(groups), range(0, out_h, band)):
        last = min(first + band, out_h)
        end = (group + 1) * (out // groups)
        for i, limb in enumerate(limbs):
            own = limb.reshape(x.shape)[group * per_group : (group + 1) * per_group]
            columns = im2col(own, (kh, kw), stride, padding, (first, last))
            for o in range(group * (out // groups), end, block):
                part = weight[o : min(o + block, end)]
                product = part.reshape(len(part), -1).astype(np.float64) @ columns
                target = result[o : o + len(part), first:last]
                flat = target.reshape(product.shape)
                gemm.add_shifted(flat, product, i * width, bits)
                target[...] = flat.reshape(target.shape)
    return result
