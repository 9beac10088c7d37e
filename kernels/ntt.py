"""Negacyclic number-theoretic transform modulo primes below 2^27, and Shoup's modular product.

Z_q[X]/(X^n + 1) with q = 1 mod 2n: ``forward`` maps coefficients to values at the odd powers of psi (a primitive 2n-th
root of one), where a product is taken value by value; ``inverse`` maps back.

A polynomial is a matrix of n / c rows of c coefficients, c = 2^(log2 n // 2). Butterflies over whole rows run along
them; those inside rows run across them, on the transposed matrix with a vector of roots, so that none is narrower than
n / c. Values stay transposed: value k c + j of the bit-reversed order is at place j n / c + k.

Source: Longa and Naehrig, CANS 2016 (eprint 2016/504), algorithms 1 and 2; lazy reduction as Harvey, arXiv 1205.2926.
With q < 2^27 and words of 32 bits the forward butterflies need no reduction at all: a value grows by 2q a stage, to
less than (1 + 2 log2 n) q <= 25 q < 2^32 for n <= 4096.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Residues = npt.NDArray[np.uint32]

MAX_LENGTH = 4096
MAX_PRIME = 1 << 27
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class Tables(NamedTuple):
    """For each of P primes: ``q`` uint64 (P,); powers of psi and of 1/psi, uint32 (P, n), each with its Shoup companion
    floor(w 2^32 / q): the first n / c in bit-reversed order, then for the stages inside rows a vector of n / c for each
    butterfly of a row; ``scale`` uint64 (P, 2): 1/n and its companion; ``rows`` n / c."""

    q: npt.NDArray[np.uint64]
    roots: Residues
    roots_shoup: Residues
    inverse_roots: Residues
    inverse_roots_shoup: Residues
    scale: npt.NDArray[np.uint64]
    rows: int


def companion(w: int, q: int) -> int:
    """Shoup's companion floor(w 2^32 / q) of a constant w in [0, q)."""
    return (w << 32) // q


def tables(primes: tuple[int, ...], n: int) -> Tables:
    """Tables for these primes (each = 1 mod 2n, below 2^27) and length n (a power of two, at most 4096)."""
    if n & (n - 1) or not 1 <= n <= MAX_LENGTH or any(q % (2 * n) != 1 or q >= MAX_PRIME for q in primes):
        raise ValueError(f"no transform of length {n} modulo {primes}")
    log_n = n.bit_length() - 1
    rows = n >> (log_n // 2)
    reversed_bits = [int(format(i, f"0{log_n}b")[::-1], 2) if log_n else 0 for i in range(n)]
    order = reversed_bits[:rows]
    blocks = 1  # of a row
    while blocks * rows < n:
        order += [reversed_bits[rows * blocks + r * blocks + block] for block in range(blocks) for r in range(rows)]
        blocks *= 2
    roots = np.empty((4, len(primes), n), np.uint32)
    scale = np.empty((len(primes), 2), np.uint64)
    for p, q in enumerate(primes):
        psi = _root(q, 2 * n)
        for row, base in ((0, psi), (2, pow(psi, -1, q))):
            powers = [1]
            for _ in range(n - 1):
                powers.append(powers[-1] * base % q)
            roots[row, p] = [powers[i] for i in order]
            roots[row + 1, p] = [companion(powers[i], q) for i in order]
        inverse = pow(n, -1, q)
        scale[p] = inverse, companion(inverse, q)
    return Tables(np.array(primes, np.uint64), roots[0], roots[1], roots[2], roots[3], scale, rows)


def _root(q: int, order: int) -> int:
    """The first primitive ``order``-th root of one modulo q that small bases give; order is a power of two."""
    for base in range(2, 1000):
        psi = pow(base, (q - 1) // order, q)
        if pow(psi, order // 2, q) == q - 1:
            return psi
    raise ValueError(f"{q} is not a prime = 1 mod {order}")


@njit(cache=True, nogil=True, inline="always")
def shoup(x: np.uint64, w: np.uint64, w_shoup: np.uint64, q: np.uint64) -> np.uint64:
    """x w mod q, in [0, 2q). x < 2^32; w < q < 2^31 with its companion; all uint64. No branch."""
    return x * w - ((x * w_shoup) >> _32) * q


@njit(cache=True, nogil=True, inline="always")
def below(x: np.uint64, q: np.uint64) -> np.uint64:
    """x mod q for x in [0, 2q), uint64, q < 2^63. No branch: the borrow becomes a mask."""
    reduced = x - q
    return reduced + (q & (np.uint64(0) - (reduced >> np.uint64(63))))


@njit(cache=True, nogil=True)
def _transpose(source: Residues, target: Residues, rows: int) -> None:
    """target[j, i] = source[i, j] of a matrix of ``rows`` rows, by strips of eight columns: a cache line each way."""
    columns = source.shape[0] // rows
    strip = min(8, columns)
    for first in range(0, columns, strip):
        for i in range(rows):
            for j in range(first, first + strip):
                target[j * rows + i] = source[i * columns + j]


@njit(cache=True, nogil=True)
def forward(x: Residues, t: Tables) -> None:
    """Coefficients to values, in place. x: uint32 (m, P, n) in [0, q), ensured in [0, q) again.

    No overflow: see the file's head. No branch or index depends on x.
    """
    one = np.uint64(1)
    n = x.shape[2]
    rows = t.rows
    turned = np.empty(n, np.uint32)
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            row = x[i, p]
            q = t.q[p]
            two_q = q + q
            half = n
            blocks = 1
            while blocks < rows:
                half >>= 1
                for block in range(blocks):
                    w = np.uint64(t.roots[p, blocks + block])
                    ws = np.uint64(t.roots_shoup[p, blocks + block])
                    start = 2 * block * half
                    low = row[start : start + half]
                    high = row[start + half : start + 2 * half]
                    for j in range(half):
                        v = shoup(np.uint64(high[j]), w, ws, q)
                        u = np.uint64(low[j])
                        low[j] = u + v
                        high[j] = u + two_q - v
                blocks <<= 1
            _transpose(row, turned, rows)
            half = n
            blocks = rows
            while blocks < n:
                half >>= 1
                for start in range(0, n, 2 * half):
                    at = blocks + start * blocks // n
                    roots = t.roots[p, at : at + rows]
                    roots_shoup = t.roots_shoup[p, at : at + rows]
                    for first in range(start, start + half, rows):
                        low = turned[first : first + rows]
                        high = turned[first + half : first + half + rows]
                        for j in range(rows):
                            v = shoup(np.uint64(high[j]), np.uint64(roots[j]), np.uint64(roots_shoup[j]), q)
                            u = np.uint64(low[j])
                            low[j] = u + v
                            high[j] = u + two_q - v
                blocks <<= 1
            unit = (one << _32) // q
            for j in range(n):
                row[j] = below(shoup(np.uint64(turned[j]), one, unit, q), q)


@njit(cache=True, nogil=True)
def inverse(x: Residues, t: Tables) -> None:
    """Values to coefficients, in place; inverse(forward(x)) = x. x: uint32 (m, P, n) in [0, q), ensured again.

    Between stages values are in [0, 2q); a sum is below 4q < 2^29 and is brought back. No branch or index depends on x.
    """
    n = x.shape[2]
    rows = t.rows
    turned = np.empty(n, np.uint32)
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            row = x[i, p]
            q = t.q[p]
            two_q = q + q
            half = rows
            blocks = n >> 1
            while half < n:
                for start in range(0, n, 2 * half):
                    at = blocks + start * blocks // n
                    roots = t.inverse_roots[p, at : at + rows]
                    roots_shoup = t.inverse_roots_shoup[p, at : at + rows]
                    for first in range(start, start + half, rows):
                        low = row[first : first + rows]
                        high = row[first + half : first + half + rows]
                        for j in range(rows):
                            u = np.uint64(low[j])
                            v = np.uint64(high[j])
                            low[j] = below(u + v, two_q)
                            high[j] = shoup(u + two_q - v, np.uint64(roots[j]), np.uint64(roots_shoup[j]), q)
                half <<= 1
                blocks >>= 1
            _transpose(row, turned, n // rows)
            half = n // rows
            blocks = rows >> 1
            while blocks >= 1:
                for block in range(blocks):
                    w = np.uint64(t.inverse_roots[p, blocks + block])
                    ws = np.uint64(t.inverse_roots_shoup[p, blocks + block])
                    start = 2 * block * half
                    low = turned[start : start + half]
                    high = turned[start + half : start + 2 * half]
                    for j in range(half):
                        u = np.uint64(low[j])
                        v = np.uint64(high[j])
                        low[j] = below(u + v, two_q)
                        high[j] = shoup(u + two_q - v, w, ws, q)
                half <<= 1
                blocks >>= 1
            s = t.scale[p, 0]
            ss = t.scale[p, 1]
            for j in range(n):
                row[j] = below(shoup(np.uint64(turned[j]), s, ss, q), q)


@njit(cache=True, nogil=True)
def companions(x: Residues, q: npt.NDArray[np.uint64]) -> Residues:
    """floor(x 2^32 / q). x: uint32 (P, n) in [0, q).

    By a float64 quotient, off by at most one, and one correction: no division instruction, whose time may depend on x.
    """
    out = np.empty(x.shape, np.uint32)
    for p in range(x.shape[0]):
        modulus = np.int64(q[p])
        reciprocal = 1.0 / float(q[p])
        for j in range(x.shape[1]):
            value = np.int64(x[p, j]) << np.int64(32)
            quotient = np.int64(float(value) * reciprocal)
            rest = value - quotient * modulus
            quotient += (rest >> np.int64(63)) - ((modulus - np.int64(1) - rest) >> np.int64(63))
            out[p, j] = quotient
    return out


@njit(cache=True, nogil=True)
def multiply(x: Residues, y: Residues, y_shoup: Residues, q: npt.NDArray[np.uint64]) -> Residues:
    """x y mod q, value by value. x: uint32 (m, P, n) in [0, q); y: (P, n) in [0, q) with its companions."""
    out = np.empty(x.shape, np.uint32)
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            for j in range(x.shape[2]):
                product = shoup(np.uint64(x[i, p, j]), np.uint64(y[p, j]), np.uint64(y_shoup[p, j]), q[p])
                out[i, p, j] = below(product, q[p])
    return out
