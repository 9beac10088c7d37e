"""Integers modulo a product of primes below 2^27, kept as residues: exact scaling, switching, and the float64 bridge.

Residues are uint32 (m, P, n), in [0, q) for each prime; constants come in a ``Base``. Division by secret numbers never
happens: an exact quotient (v - v mod d) / d is a product with 1 / d. No branch or index depends on data.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from mpcd.kernels.ntt import Residues, below, companion, shoup

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

MAX_BITS = 48
EXACT = (1 << 53) - (1 << 28)  # what a float64 sum may reach for ``accumulate``
_MASK24 = np.uint64((1 << 24) - 1)
_24 = np.uint64(24)
_32 = np.uint64(32)
_ONE = np.uint64(1)


class Base(NamedTuple):
    """``q`` uint64 (P,); ``unit`` floor(2^32 / q), which reduces any 32-bit number; ``power32`` and ``power56``
    uint64 (P, 2): 2^32 and 2^56 mod q with companions. For scaling by Q / 2^bits, Q the product: ``product`` Q mod
    2^64, ``bits``, ``half`` (P,) 2^-1 mod q, ``down0``/``down24`` (P, 2): 2^-bits and 2^(24 - bits) with companions."""

    q: Words
    unit: Words
    power32: Words
    power56: Words
    product: np.uint64
    bits: np.uint64
    half: Words
    down0: Words
    down24: Words


def base(primes: tuple[int, ...], bits: int) -> Base:
    """Constants of these primes and the ring 2^bits, 1 <= bits <= 48."""
    if not 1 <= bits <= MAX_BITS or any(q >= 1 << 27 for q in primes):
        raise ValueError(f"no base of {primes} for a ring of {bits} bits")
    down = [pow(2, -bits, q) for q in primes]
    return Base(
        np.array(primes, np.uint64),
        np.array([companion(1, q) for q in primes], np.uint64),
        _pairs([(1 << 32) % q for q in primes], primes),
        _pairs([(1 << 56) % q for q in primes], primes),
        np.uint64(math.prod(primes) & 0xFFFFFFFFFFFFFFFF),
        np.uint64(bits),
        np.array([pow(2, -1, q) for q in primes], np.uint64),
        _pairs(down, primes),
        _pairs([(d << 24) % q for d, q in zip(down, primes, strict=True)], primes),
    )


def _pairs(values: list[int], primes: tuple[int, ...]) -> Words:
    return np.array([[v, companion(v, q)] for v, q in zip(values, primes, strict=True)], np.uint64)


@njit(cache=True, nogil=True)
def scale(m: Words, t: Base) -> Residues:
    """round(Q m / 2^bits) = (v - v mod 2^bits) / 2^bits for v = Q m + 2^(bits - 1), modulo each prime.

    m: uint64 (k, n) below 2^bits. Returns uint32 (k, P, n) in [0, q). Since Q = 0 mod q, v is 2^(bits - 1) there,
    and v mod 2^bits needs no more than 64-bit words; it enters in two limbs of 24 bits.
    """
    primes = t.q.shape[0]
    out = np.empty((m.shape[0], primes, m.shape[1]), np.uint32)
    mask = (_ONE << t.bits) - _ONE
    middle = _ONE << (t.bits - _ONE)
    for i in range(m.shape[0]):
        for p in range(primes):
            q = t.q[p]
            start = t.half[p] + np.uint64(4) * q
            for j in range(m.shape[1]):
                rest = (t.product * m[i, j] + middle) & mask
                low = shoup(rest & _MASK24, t.down0[p, 0], t.down0[p, 1], q)
                high = shoup(rest >> _24, t.down24[p, 0], t.down24[p, 1], q)
                out[i, p, j] = below(shoup(start - low - high, _ONE, t.unit[p], q), q)
    return out


@njit(cache=True, nogil=True)
def lift(x: npt.NDArray[np.int32], q: Words) -> Residues:
    """x mod q. x: int32 (k, n), |x| < 2^25. Returns uint32 (k, P, n) in [0, q)."""
    out = np.empty((x.shape[0], q.shape[0], x.shape[1]), np.uint32)
    for i in range(x.shape[0]):
        for p in range(q.shape[0]):
            for j in range(x.shape[1]):
                out[i, p, j] = below(np.uint64(np.int64(x[i, j]) + np.int64(q[p])), q[p])
    return out


@njit(cache=True, nogil=True)
def add(x: Residues, y: Residues, q: Words) -> None:
    """x += y mod q, in place. uint32 (k, P, n), both in [0, q)."""
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            for j in range(x.shape[2]):
                x[i, p, j] = below(np.uint64(x[i, p, j]) + np.uint64(y[i, p, j]), q[p])


@njit(cache=True, nogil=True)
def subtract(x: Residues, y: Residues, q: Words) -> None:
    """x -= y mod q, in place. uint32 (k, P, n), both in [0, q)."""
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            for j in range(x.shape[2]):
                x[i, p, j] = below(np.uint64(x[i, p, j]) + q[p] - np.uint64(y[i, p, j]), q[p])


@njit(cache=True, nogil=True)
def add_small(x: Residues, e: npt.NDArray[np.int32], q: Words) -> None:
    """x += e mod q, in place. x: uint32 (k, P, n) in [0, q); e: int32 (k, n), |e| <= 2^20 (every q is above that)."""
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            for j in range(x.shape[2]):
                total = np.uint64(np.int64(x[i, p, j]) + np.int64(e[i, j]) + np.int64(q[p]))
                x[i, p, j] = below(below(total, q[p]), q[p])


@njit(cache=True, nogil=True)
def add_wide(x: Residues, high: Words, low: Words, centre: Words, t: Base) -> None:
    """x += high 2^32 + low - centre mod q, in place.

    x: uint32 (k, P, n) in [0, q); high: uint64 (k, n) below 2^56; low: below 2^32; centre: uint64 (P,) in [0, q).
    """
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            q = t.q[p]
            start = q - centre[p]
            for j in range(x.shape[2]):
                total = start + np.uint64(x[i, p, j]) + shoup(low[i, j], _ONE, t.unit[p], q)
                total += shoup(high[i, j] & _MASK24, t.power32[p, 0], t.power32[p, 1], q)
                total += shoup(high[i, j] >> _24, t.power56[p, 0], t.power56[p, 1], q)
                x[i, p, j] = below(shoup(total, _ONE, t.unit[p], q), q)


class Switch(NamedTuple):
    """Constants of dividing by P = q2 q3 and of rounding modulo q0 q1; (value, companion) each where two are needed.

    ``q`` (4,), ``unit`` (4,), ``half`` (4,) floor(P / 2) mod q; ``garner`` 1/q2 mod q3; ``second`` (2, 2) q2 and
    ``down`` (2, 2) 1/P mod q0, q1. For rounding: ``kept_garner`` 1/q0 mod q1; ``kept_half`` (q0 q1 - 1) / 2 and
    ``kept_half_residues`` (2,); ``kept_inverse`` 1/(q0 q1) mod 2^64; ``up`` (2, 2) 2^bits mod q0, q1; ``bits``.
    """

    q: Words
    unit: Words
    half: Words
    garner: Words
    second: Words
    down: Words
    kept_garner: Words
    kept_half: np.uint64
    kept_half_residues: Words
    kept_inverse: np.uint64
    up: Words
    bits: np.uint64


def switch_tables(primes: tuple[int, int, int, int], bits: int) -> Switch:
    """Constants for these four primes, of which the first two are kept, and the ring 2^bits."""
    kept, (q2, q3) = primes[:2], primes[2:]
    dropped, product = q2 * q3, kept[0] * kept[1]
    # The Garner steps take a residue of one prime as a number below twice the other.
    if not (q3 < q2 < 2 * q3 and kept[1] < kept[0] < 2 * kept[1] and q2 < kept[1]):
        raise ValueError("primes must fall, each pair within a factor of two")
    return Switch(
        np.array(primes, np.uint64),
        np.array([companion(1, q) for q in primes], np.uint64),
        np.array([dropped // 2 % q for q in primes], np.uint64),
        _pairs([pow(q2, -1, q3)], (q3,))[0],
        _pairs([q2, q2], kept),
        _pairs([pow(dropped, -1, q) for q in kept], kept),
        _pairs([pow(kept[0], -1, kept[1])], (kept[1],))[0],
        np.uint64(product // 2),
        np.array([product // 2 % q for q in kept], np.uint64),
        np.uint64(pow(product, -1, 1 << 64)),
        _pairs([(1 << bits) % q for q in kept], kept),
        np.uint64(bits),
    )


@njit(cache=True, nogil=True)
def switch(x: Residues, t: Switch) -> Residues:
    """round(x / (q2 q3)) modulo q0 and q1, for x modulo q0 q1 q2 q3.

    x: uint32 (k, 4, n) in [0, q). Returns uint32 (k, 2, n) in [0, q). (x + h - rho) / P with h = floor(P / 2),
    rho = (x + h) mod P = y + q2 g, y its residue modulo q2 and g from Garner's step.
    """
    out = np.empty((x.shape[0], 2, x.shape[2]), np.uint32)
    q2 = t.q[2]
    q3 = t.q[3]
    for i in range(x.shape[0]):
        for j in range(x.shape[2]):
            y = below(np.uint64(x[i, 2, j]) + t.half[2], q2)
            z = below(np.uint64(x[i, 3, j]) + t.half[3], q3)
            g = below(shoup(z + q3 + q3 - y, t.garner[0], t.garner[1], q3), q3)
            for p in range(2):
                q = t.q[p]
                rest = shoup(g, t.second[p, 0], t.second[p, 1], q) + y
                top = np.uint64(x[i, p, j]) + t.half[p] + np.uint64(3) * q - rest
                out[i, p, j] = below(shoup(top, t.down[p, 0], t.down[p, 1], q), q)
    return out


@njit(cache=True, nogil=True)
def round_to_ring(x: Residues, t: Switch) -> Words:
    """round(2^bits x / Q) mod 2^bits for x modulo Q = q0 q1.

    x: uint32 (k, 2, n) in [0, q). Returns uint64 (k, n) below 2^bits. With v = 2^bits x + (Q - 1) / 2 the quotient is
    (v - v mod Q) / Q, and modulo 2^bits only (Q - 1) / 2 is left of v.
    """
    out = np.empty((x.shape[0], x.shape[2]), np.uint64)
    q0 = t.q[0]
    q1 = t.q[1]
    mask = (_ONE << t.bits) - _ONE
    for i in range(x.shape[0]):
        for j in range(x.shape[2]):
            y = shoup(np.uint64(x[i, 0, j]), t.up[0, 0], t.up[0, 1], q0) + t.kept_half_residues[0]
            y = below(shoup(y, _ONE, t.unit[0], q0), q0)
            z = shoup(np.uint64(x[i, 1, j]), t.up[1, 0], t.up[1, 1], q1) + t.kept_half_residues[1]
            g = shoup(z + q1 + q1 - y, t.kept_garner[0], t.kept_garner[1], q1)
            rest = y + q0 * below(g, q1)
            out[i, j] = ((t.kept_half - rest) * t.kept_inverse) & mask
    return out


@njit(cache=True, nogil=True)
def to_float(x: Residues, prime: int, q: np.uint64) -> Floats:
    """Row i: x[i, prime] in [-q/2, q/2) as float64, then its negative: 2n long, so that x X^-t mod X^n + 1 is the
    slice [t, t + n).

    x: uint32 (k, P, n) in [0, q).
    """
    n = x.shape[2]
    out = np.empty((x.shape[0], 2 * n), np.float64)
    modulus = np.int64(q)
    half = np.int64(q >> _ONE)
    for i in range(x.shape[0]):
        for j in range(n):
            value = np.int64(x[i, prime, j])
            value -= modulus & ((half - value) >> np.int64(63))
            out[i, j] = float(value)
            out[i, n + j] = float(-value)
    return out


@njit(cache=True, nogil=True)
def accumulate(x: Residues, y: Floats, poly: int, prime: int, factor: int, q: np.uint64) -> None:
    """x[:, poly, prime] += factor y mod q, in place.

    x: uint32 (k, 2, P, n) in [0, q); y: float64 (k, n), integers of at most 2^53 - 2^28; factor in [0, q).
    The quotient is off by at most one, so that quotient * q stays below 2^53 and the rest is exact in [-q, 2q).
    """
    modulus = float(q)
    reciprocal = 1.0 / modulus
    unit = (_ONE << _32) // q
    w = np.uint64(factor)
    w_shoup = (w << _32) // q
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            rest = y[i, j] - np.floor(y[i, j] * reciprocal) * modulus
            term = shoup(np.uint64(np.int64(rest + modulus)), w, w_shoup, q)
            total = np.uint64(x[i, poly, prime, j]) + term
            x[i, poly, prime, j] = below(shoup(total, _ONE, unit, q), q)
