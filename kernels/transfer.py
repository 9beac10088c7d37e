"""Random 1-of-2 OT of ring elements turned into shares of a chosen element, and the multiplexer's form of it.

The sender has v0, v1 and random pads m0, m1; the receiver has a bit s, a random choice c and m = m_c. The receiver
sends d = c xor s, so that p_j = m_(j xor d) is known to it for j = s only. The sender keeps v0 - p_0 and sends
u = v1 - v0 + p_0 - p_1; the receiver keeps m + s u. The two sum to v_s mod 2^bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def transfer_send(
    v0: npt.NDArray[np.uint64],
    v1: npt.NDArray[np.uint64],
    m0: npt.NDArray[np.uint64],
    m1: npt.NDArray[np.uint64],
    corrections: npt.NDArray[np.uint64],
    bits: int,
    share: npt.NDArray[np.uint64],
    element: npt.NDArray[np.uint64],
) -> None:
    """share = v0 - p_0, element = v1 - v0 + p_0 - p_1.

    v0, v1, m0, m1: uint64 (n,), any values. corrections: uint64 (ceil(n / 64),). 1 <= bits <= 64.
    Fills share, element: uint64 (n,), below 2^bits. No branch or index depends on a value or a bit.
    """
    n = v0.shape[0]
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)
    for w in range((n + 63) // 64):
        word = corrections[w]
        for i in range(min(64, n - 64 * w)):
            at = 64 * w + i
            swap = np.uint64(0) - ((word >> np.uint64(i)) & np.uint64(1))
            exchange = (m0[at] ^ m1[at]) & swap
            p0 = m0[at] ^ exchange
            p1 = m1[at] ^ exchange
            share[at] = (v0[at] - p0) & mask
            element[at] = (v1[at] - v0[at] + p0 - p1) & mask


@njit(cache=True, nogil=True)
def multiplex_send(
    b: npt.NDArray[np.uint64],
    z: npt.NDArray[np.uint64],
    m0: npt.NDArray[np.uint64],
    m1: npt.NDArray[np.uint64],
    corrections: npt.NDArray[np.uint64],
    bits: int,
    share: npt.NDArray[np.uint64],
    element: npt.NDArray[np.uint64],
) -> None:
    """``transfer_send`` of v_j = (b xor j) z, in one pass.

    b, corrections: uint64 (ceil(n / 64),) words. z, m0, m1: uint64 (n,), any values. 1 <= bits <= 64.
    Fills share, element: uint64 (n,), below 2^bits. No branch or index depends on a value or a bit.
    """
    n = z.shape[0]
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)
    for w in range((n + 63) // 64):
        word = corrections[w]
        selected = b[w]
        for i in range(min(64, n - 64 * w)):
            at = 64 * w + i
            swap = np.uint64(0) - ((word >> np.uint64(i)) & np.uint64(1))
            exchange = (m0[at] ^ m1[at]) & swap
            p0 = m0[at] ^ exchange
            p1 = m1[at] ^ exchange
            v0 = z[at] & (np.uint64(0) - ((selected >> np.uint64(i)) & np.uint64(1)))
            v1 = z[at] ^ v0
            share[at] = (v0 - p0) & mask
            element[at] = (v1 - v0 + p0 - p1) & mask


@njit(cache=True, nogil=True)
def transfer_receive(
    s: npt.NDArray[np.uint64],
    m: npt.NDArray[np.uint64],
    element: npt.NDArray[np.uint64],
    bits: int,
    share: npt.NDArray[np.uint64],
) -> None:
    """share += m + s * element.

    s: uint64 (ceil(n / 64),) words. m, element: uint64 (n,), any values. 1 <= bits <= 64.
    share: uint64 (n,), any values, ends below 2^bits. No branch or index depends on a value or a bit.
    """
    n = m.shape[0]
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)
    for w in range((n + 63) // 64):
        word = s[w]
        for i in range(min(64, n - 64 * w)):
            at = 64 * w + i
            chosen = element[at] & (np.uint64(0) - ((word >> np.uint64(i)) & np.uint64(1)))
            share[at] = (share[at] + m[at] + chosen) & mask
