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
_MASK27 = (1 << 27) - 1
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


class Remainder(NamedTuple):
    """Constants of ``remainder``. ``q``, ``offset``, ``half`` (4,); ``crt`` (4, 2): 1/(Q/q) mod q; ``reciprocal`` (4,)
    1/q as float64; ``down0``/``down24`` as in ``Base``; ``unit``; ``garner`` (6, 2): 1/q0 mod q1, q2, q3, 1/q1 mod q2,
    q3, 1/q2 mod q3; ``q01`` (3,): q0 q1 and its 27-bit halves; ``step`` (2,): floor(Q / 2^bits) in limbs of 54 bits;
    ``product`` Q mod 2^64; ``bits``; ``drop``."""

    q: Words
    offset: Words
    half: Words
    crt: Words
    reciprocal: Floats
    down0: Words
    down24: Words
    unit: Words
    garner: Words
    q01: Words
    step: Words
    product: np.uint64
    bits: np.uint64
    drop: np.uint64


def remainder_tables(primes: tuple[int, int, int, int], bits: int, drop: int) -> Remainder:
    """Constants for these primes, the ring 2^bits and remainders without their last ``drop`` bits."""
    t = base(primes, bits)
    total = math.prod(primes)
    q0, q1, q2, q3 = primes
    width = total.bit_length() - bits
    if not 1 <= drop <= 32 or drop >= width:
        raise ValueError(f"remainders of {width} bits cannot lose {drop}")
    inverses = [(q0, q1), (q0, q2), (q0, q3), (q1, q2), (q1, q3), (q2, q3)]
    step = total >> bits
    return Remainder(
        t.q,
        np.array([(1 << (width - 1)) % q for q in primes], np.uint64),
        t.half,
        _pairs([pow(total // q, -1, q) for q in primes], primes),
        1.0 / t.q.astype(np.float64),
        t.down0,
        t.down24,
        t.unit,
        _pairs([pow(x, -1, q) for x, q in inverses], tuple(q for _, q in inverses)),
        np.array([q0 * q1, q0 * q1 & _MASK27, q0 * q1 >> 27], np.uint64),
        np.array([step & ((1 << 54) - 1), step >> 54], np.uint64),
        t.product,
        t.bits,
        np.uint64(drop),
    )


@njit(cache=True, nogil=True)
def remainder(x: Residues, e: npt.NDArray[np.int32], t: Remainder) -> tuple[Words, Words, Words]:
    """Quotient and remainder of e - x + 2^(L - 1), L = log2 Q - bits rounded up, by Q / 2^bits.

    x: uint32 (k, 4, n) in [0, q); e: int32 (k, n), |e| <= 2^20. Returns uint64 (k, n) three times: w below 2^bits, and
    low + 2^64 high = round(rest / 2^drop), where rest = value - D(w), D(w) = round(Q w / 2^bits), w the one with
    D(w) <= value < D(w + 1): exactly. An estimate of w in floating point is at most two too small (one is taken off
    it: its error is below one for bits <= 48); two masked subtractions make it exact.
    """
    low = np.empty(e.shape, np.uint64)
    high = np.empty(e.shape, np.uint64)
    quotient = np.empty(e.shape, np.uint64)
    one = np.uint64(1)
    four = np.uint64(4)
    m27 = np.uint64((1 << 27) - 1)
    m54 = np.uint64((1 << 54) - 1)
    s27 = np.uint64(27)
    s54 = np.uint64(54)
    s63 = np.uint64(63)
    mask = (one << t.bits) - one
    middle = one << (t.bits - one)
    ring = float(one << t.bits)
    last = (one << t.drop) >> one
    q0 = t.q[0]
    q1 = t.q[1]
    q2 = t.q[2]
    q3 = t.q[3]
    v = np.empty((4, x.shape[2]), np.uint64)
    share = np.empty(x.shape[2], np.float64)
    rests = np.empty(x.shape[2], np.uint64)
    for i in range(x.shape[0]):
        for p in range(4):
            q = t.q[p]
            for j in range(x.shape[2]):
                total = np.uint64(np.int64(e[i, j]) + np.int64(q + q + t.offset[p]) - np.int64(x[i, p, j]))
                v[p, j] = below(shoup(total, one, t.unit[p], q), q)
        share[:] = 0.0
        for p in range(4):
            q = t.q[p]
            for j in range(x.shape[2]):
                y = below(shoup(v[p, j], t.crt[p, 0], t.crt[p, 1], q), q)
                share[j] += np.float64(np.int64(y)) * t.reciprocal[p]
        for j in range(x.shape[2]):
            part = share[j] - np.floor(share[j])
            w = np.uint64(np.int64(part * ring) - np.int64(1)) & mask
            quotient[i, j] = w
            rests[j] = (t.product * w + middle) & mask
        for p in range(4):
            q = t.q[p]
            for j in range(x.shape[2]):
                a = shoup(rests[j] & _MASK24, t.down0[p, 0], t.down0[p, 1], q)
                b = shoup(rests[j] >> _24, t.down24[p, 0], t.down24[p, 1], q)
                # v - D(w), D(w) = 1/2 - rest / 2^bits
                v[p, j] = below(shoup(v[p, j] + q - t.half[p] + a + b, one, t.unit[p], q), q)
        for j in range(x.shape[2]):
            w = quotient[i, j]
            rest = rests[j]
            x0 = v[0, j]
            x1 = below(shoup(v[1, j] + four * q1 - x0, t.garner[0, 0], t.garner[0, 1], q1), q1)
            y = shoup(v[2, j] + four * q2 - x0, t.garner[1, 0], t.garner[1, 1], q2)
            x2 = below(shoup(y + four * q2 - x1, t.garner[3, 0], t.garner[3, 1], q2), q2)
            y = shoup(v[3, j] + four * q3 - x0, t.garner[2, 0], t.garner[2, 1], q3)
            y = shoup(y + four * q3 - x1, t.garner[4, 0], t.garner[4, 1], q3)
            x3 = below(shoup(y + four * q3 - x2, t.garner[5, 0], t.garner[5, 1], q3), q3)
            # x0 + q0 x1 + q0 q1 (x2 + q2 x3) in limbs of 54 bits.
            top = x2 + q2 * x3
            top0 = top & m27
            top1 = top >> s27
            cross = t.q01[1] * top1 + t.q01[2] * top0
            bottom = x0 + q0 * x1 + t.q01[1] * top0 + ((cross & m27) << s27)
            lo = bottom & m54
            hi = (bottom >> s54) + (cross >> s27) + t.q01[2] * top1
            for _ in range(2):
                following = rest + (t.product & mask)
                less = lo - t.step[0] - (following >> t.bits)
                borrow = less >> s63
                less += borrow << s54
                more = hi - t.step[1] - borrow
                keep = np.uint64(0) - (more >> s63)
                lo = less ^ ((less ^ lo) & keep)
                hi = more ^ ((more ^ hi) & keep)
                rest ^= (rest ^ (following & mask)) & ~keep
                w += one + keep
            lo += last
            hi += lo >> s54
            lo &= m54
            quotient[i, j] = w & mask
            low[i, j] = (lo >> t.drop) | (hi << (s54 - t.drop))
            high[i, j] = hi >> (np.uint64(10) + t.drop)
    return quotient, low, high


@njit(cache=True, nogil=True)
def digits(low: Words, high: Words, bits: int, width: int) -> Floats:
    """Signed digits of low + 2^64 high - 2^(bits - 1): value = sum_i digit_i 2^(i width), |digit_i| <= 2^(width - 1).

    low, high: uint64 (k, n), together below 2^bits; 1 <= bits <= 118. Returns float64 (ceil(bits / width), k, 2n):
    each row is followed by its negative, so that x X^-t mod X^n + 1 is the slice [t, t + n).
    """
    count = (bits + width - 1) // width
    k, n = low.shape
    out = np.empty((count, k, 2 * n), np.float64)
    mask = (np.int64(1) << np.int64(width)) - np.int64(1)
    half = np.int64(1) << np.int64(width - 1)
    carries = np.empty(n, np.int64)
    for i in range(k):
        carries[:] = 0
        for d in range(count):
            at = d * width
            for j in range(n):
                if at == 0:
                    raw = low[i, j]
                elif at < 64:
                    raw = (low[i, j] >> np.uint64(at)) | (high[i, j] << np.uint64(64 - at))
                else:
                    raw = high[i, j] >> np.uint64(at - 64)
                value = (np.int64(raw) & mask) + carries[j]
                if d == count - 1:
                    value -= np.int64(1) << np.int64(bits - 1 - at)
                else:
                    carries[j] = (value + half) >> np.int64(width)
                    value -= carries[j] << np.int64(width)
                out[d, i, j] = float(value)
                out[d, i, n + j] = -float(value)
    return out


@njit(cache=True, nogil=True)
def residue_digits(x: Residues, prime: int, q: np.uint64, width: int) -> Floats:
    """Signed digits of x[:, prime] in [-q/2, q/2), as ``digits`` has them.

    x: uint32 (k, P, n) in [0, q). Returns float64 (ceil(b / width), k, 2n), b the bits of q.
    """
    n = x.shape[2]
    modulus = np.int64(q)
    bits = 0
    while (modulus >> np.int64(bits)) > 0:
        bits += 1
    count = (bits + width - 1) // width
    out = np.empty((count, x.shape[0], 2 * n), np.float64)
    middle = modulus >> np.int64(1)
    mask = (np.int64(1) << np.int64(width)) - np.int64(1)
    half = np.int64(1) << np.int64(width - 1)
    for i in range(x.shape[0]):
        for j in range(n):
            value = np.int64(x[i, prime, j])
            value -= modulus & ((middle - value) >> np.int64(63))
            for d in range(count):
                digit = value
                if d < count - 1:
                    digit = ((value + half) & mask) - half
                    value = (value - digit) >> np.int64(width)
                out[d, i, j] = float(digit)
                out[d, i, n + j] = -float(digit)
    return out


@njit(cache=True, nogil=True)
def accumulate(x: Residues, y: Floats, factors: Words, first: int, last: int, q: Words) -> None:
    """x[:, p] += factors[p] y mod q[p] for first <= p < last, in place.

    x: uint32 (k, P, n) in [0, q); y: float64 (k, n), integers of at most 2^53 - 2^28; factors: uint64 (P,) in [0, q).
    The quotient is off by at most one, so that quotient * q stays below 2^53 and the rest is exact in [-q, 2q).
    """
    for i in range(y.shape[0]):
        for p in range(first, last):
            modulus = float(q[p])
            reciprocal = 1.0 / modulus
            unit = (_ONE << _32) // q[p]
            w = factors[p]
            w_shoup = (w << _32) // q[p]
            for j in range(y.shape[1]):
                rest = y[i, j] - np.floor(y[i, j] * reciprocal) * modulus
                term = shoup(np.uint64(np.int64(rest + modulus)), w, w_shoup, q[p])
                total = np.uint64(x[i, p, j]) + term
                x[i, p, j] = below(shoup(total, _ONE, unit, q[p]), q[p])


@njit(cache=True, nogil=True)
def shorten(x: Residues, t: Switch, drop: int) -> Words:
    """round(X / 2^drop) for X modulo q0 q1 in [0, q0 q1). x: uint32 (k, 2, n) in [0, q). Returns uint64 (k, n)."""
    out = np.empty((x.shape[0], x.shape[2]), np.uint64)
    q0 = t.q[0]
    q1 = t.q[1]
    last = (_ONE << np.uint64(drop)) >> _ONE
    for i in range(x.shape[0]):
        for j in range(x.shape[2]):
            y = np.uint64(x[i, 0, j])
            g = shoup(np.uint64(x[i, 1, j]) + q1 + q1 - y, t.kept_garner[0], t.kept_garner[1], q1)
            out[i, j] = (y + q0 * below(g, q1) + last) >> np.uint64(drop)
    return out


@njit(cache=True, nogil=True)
def add_shortened(x: Residues, y: Words, drop: int, t: Switch) -> None:
    """x += 2^drop y modulo q0 and q1, in place. x: uint32 (k, 2, n) in [0, q); y: uint64 (k, n), 2^drop y < 2^54."""
    m27 = np.uint64((1 << 27) - 1)
    s27 = np.uint64(27)
    for i in range(x.shape[0]):
        for p in range(2):
            q = t.q[p]
            power = (_ONE << s27) % q
            power_shoup = (power << _32) // q
            for j in range(x.shape[2]):
                value = y[i, j] << np.uint64(drop)
                total = np.uint64(x[i, p, j]) + (value & m27) + shoup(value >> s27, power, power_shoup, q)
                x[i, p, j] = below(shoup(total, _ONE, t.unit[p], q), q)
