"""Sums of carry-less products with integer multiplications alone.

A factor is split into four that have one bit in four: in the integer product of two such no sum of at most 16 bits
reaches the next place that counts (Pornin, BearSSL, "ghash_ctmul64"; https://www.bearssl.org/constanttime.html). The
upper half of a product is the lower half of the reversed factors' product, reversed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.cpu import linked

Words = npt.NDArray[np.uint64]

LANES = 1


@linked
def _low(a: np.uint64, b: np.uint64) -> np.uint64:
    """The low 64 bits of the carry-less product."""
    result = np.uint64(0)
    for place in range(4):
        total = np.uint64(0)
        for i in range(4):
            left = a & (np.uint64(0x1111111111111111) << np.uint64(i))
            right = b & (np.uint64(0x1111111111111111) << np.uint64((place - i) % 4))
            total ^= left * right
        result |= total & (np.uint64(0x1111111111111111) << np.uint64(place))
    return result


@linked
def _reversed(a: np.uint64) -> np.uint64:
    """Bit i becomes bit 63 - i."""
    for shift, mask in (
        (1, 0x5555555555555555),
        (2, 0x3333333333333333),
        (4, 0x0F0F0F0F0F0F0F0F),
        (8, 0x00FF00FF00FF00FF),
        (16, 0x0000FFFF0000FFFF),
    ):
        a = ((a >> np.uint64(shift)) & np.uint64(mask)) | ((a & np.uint64(mask)) << np.uint64(shift))
    return np.uint64((a >> np.uint64(32)) | (a << np.uint64(32)))


@linked
def _high(a: np.uint64, b: np.uint64) -> np.uint64:
    """Bits 64 and up of the carry-less product."""
    return np.uint64(_reversed(_low(_reversed(a), _reversed(b))) >> np.uint64(1))


@linked
def add_products(x: Words, i: int, y: Words, j: int, n: int, parts: Words) -> None:
    """parts += the carry-less products of blocks i, ..., i + n - 1 of x and j, ..., j + n - 1 of y, not reduced.

    x, y: uint64, C order, two words a block, low half first. parts: uint64 (3, 2): the sums of the products of low
    halves, of low with high ones, and of high halves. No branch or index depends on x or y.
    """
    a, b = x.reshape(-1), y.reshape(-1)
    for k in range(n):
        for v in range(2):
            for w in range(2):
                left, right = a[2 * (i + k) + v], b[2 * (j + k) + w]
                parts[v + w, 0] ^= _low(left, right)
                parts[v + w, 1] ^= _high(left, right)
