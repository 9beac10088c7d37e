"""Exact integer matrix products through float64 BLAS.

A float64 sum of integers is exact, in any order and with or without fused multiply-add, while no partial sum leaves
[-2^53, 2^53]. With sum |w| <= l1 along each row of W that holds for operands of up to 2^53 / l1: the operand is cut
into as few signed limbs of that width as its ring needs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


def limb_width(l1: int) -> int:
    """The widest signed limb b with l1 2^(b - 1) <= 2^53. Raises ValueError where not even one bit fits."""
    width = 54 - max(l1 - 1, 0).bit_length()
    if width < 2:
        raise ValueError(f"weights with a sum of {l1} are beyond exact float64 products")
    return width


def limb_count(bits: int, l1: int) -> int:
    """Limbs of a ``bits``-bit operand under weights of row sum l1."""
    return -(-bits // limb_width(l1))


@njit(cache=True, nogil=True)
def split(x: Words, bits: int, width: int) -> Floats:
    """x = sum_i limb_i 2^(i width) mod 2^bits, limb_i in [-2^(width - 1), 2^(width - 1)] as float64.

    x: uint64 (n,), reduced mod 2^bits here; 1 <= bits <= 63, 2 <= width <= 54. Returns float64 (limbs, n) with
    limbs = ceil(bits / width). No branch or index depends on x.
    """
    limbs = (bits + width - 1) // width
    out = np.empty((limbs, x.shape[0]), np.float64)
    unused = np.int64(64 - bits)
    half = np.int64(1) << np.int64(width - 1)
    mask = (np.int64(1) << np.int64(width)) - np.int64(1)
    for j in range(x.shape[0]):
        rest = (np.int64(x[j]) << unused) >> unused
        for i in range(limbs - 1):
            limb = ((rest + half) & mask) - half
            out[i, j] = float(limb)
            rest = (rest - limb) >> np.int64(width)
        out[limbs - 1, j] = float(rest)
    return out


@njit(cache=True, nogil=True)
def add_shifted(out: Words, product: Floats, shift: int, bits: int) -> None:
    """out = (out + product 2^shift) mod 2^bits, in place.

    out: uint64 (m, n); product: float64 (m, n), integers of at most 2^53; 0 <= shift < 64, 1 <= bits <= 63.
    """
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = (out[i, j] + (np.uint64(np.int64(product[i, j])) << np.uint64(shift))) & mask


def matmul(weight: npt.NDArray[np.int64], x: Words, bits: int, l1: int) -> Words:
    """W x mod 2^bits, exactly.

    weight: int64 (m, k), rows with sum |w| <= l1; x: uint64 (k, n). Returns uint64 (m, n) below 2^bits.
    """
    width = limb_width(l1)
    limbs = split(np.ascontiguousarray(x).reshape(-1), bits, width)
    w = weight.astype(np.float64)
    out = np.zeros((weight.shape[0], x.shape[1]), np.uint64)
    for i, limb in enumerate(limbs):
        add_shifted(out, w @ limb.reshape(x.shape), i * width, bits)
    return out
