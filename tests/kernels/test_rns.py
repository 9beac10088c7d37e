import math

import numpy as np
import pytest

from mpcd.kernels import rns

PRIMES = (134176769, 134111233, 67084289, 67043329)
Q = math.prod(PRIMES)
KEPT = PRIMES[0] * PRIMES[1]
DROPPED = PRIMES[2] * PRIMES[3]
MODULI = np.array(PRIMES, np.uint64)
BITS = [1, 2, 24, 25, 33, 40, 44, 48]


def residues(values, primes=PRIMES):
    """(k, n) Python integers to uint32 (k, P, n)."""
    return np.array([[[v % q for v in row] for q in primes] for row in values], np.uint32)


def integers(count, top, seed=0):
    """Edges of [0, top) and random numbers between, (2, count)."""
    rng = np.random.default_rng(seed)
    edges = [v % top for v in (0, 1, top - 1, top // 2, top // 2 + 1, top // 2 - 1)]
    values = [int.from_bytes(rng.bytes(20), "little") % top for _ in range(2 * count)]
    values[: len(edges)] = edges
    return [values[:count], values[count:]]


@pytest.mark.parametrize("bits", BITS)
def test_scale(bits):
    m = integers(65, 1 << bits)
    got = rns.scale(np.array(m, np.uint64), rns.base(PRIMES, bits))
    np.testing.assert_array_equal(got, residues([[(2 * Q * v + (1 << bits)) >> (bits + 1) for v in row] for row in m]))


@pytest.mark.parametrize("bits", BITS)
def test_round_to_ring(bits):
    x = integers(65, KEPT)
    got = rns.round_to_ring(residues(x, PRIMES[:2]), rns.switch_tables(PRIMES, bits))
    expected = [[((2 * (v << bits) + KEPT) // (2 * KEPT)) % (1 << bits) for v in row] for row in x]
    assert got.tolist() == expected


def test_switch():
    x = integers(257, Q)
    x[0][:4] = [DROPPED // 2, DROPPED // 2 + 1, Q - DROPPED // 2, Q - DROPPED // 2 - 1]
    got = rns.switch(residues(x), rns.switch_tables(PRIMES, 33))
    np.testing.assert_array_equal(
        got, residues([[(2 * v + DROPPED) // (2 * DROPPED) for v in row] for row in x], PRIMES[:2])
    )


def test_sums():
    x, y = integers(64, Q, 1), integers(64, Q, 2)
    total, difference = residues(x), residues(x)
    rns.add(total, residues(y), MODULI)
    rns.subtract(difference, residues(y), MODULI)
    for got, sign in ((total, 1), (difference, -1)):
        np.testing.assert_array_equal(
            got, residues([[a + sign * b for a, b in zip(r, s, strict=True)] for r, s in zip(x, y, strict=True)])
        )


def test_small_terms():
    e = np.random.default_rng(3).integers(-(1 << 20), (1 << 20) + 1, (2, 64)).astype(np.int32)
    e[0, :6] = [0, 1, -1, 21, -(1 << 20), 1 << 20]
    np.testing.assert_array_equal(rns.lift(e, MODULI), residues(e.tolist()))
    for start in (0, Q - 1):
        x = residues([[start] * 64] * 2)
        rns.add_small(x, e, MODULI)
        np.testing.assert_array_equal(x, residues([[start + v for v in row] for row in e.tolist()]))


def test_wide_terms():
    high, low = integers(64, 1 << 56, 4), integers(64, 1 << 32, 5)
    centre = 1 << 78
    x = integers(64, Q, 6)
    got = residues(x)
    rns.add_wide(
        got,
        np.array(high, np.uint64),
        np.array(low, np.uint64),
        np.array([centre % q for q in PRIMES], np.uint64),
        rns.base(PRIMES, 33),
    )
    expected = [
        [v + (h << 32) + w - centre for v, h, w in zip(*r, strict=True)] for r in zip(x, high, low, strict=True)
    ]
    np.testing.assert_array_equal(got, residues(expected))


@pytest.mark.parametrize("prime", range(4))
def test_to_float_is_centred_and_negacyclic(prime):
    q = PRIMES[prime]
    x = residues(integers(64, Q, 7))
    x[0, prime, :4] = [q // 2, q // 2 + 1, q - 1, 0]
    got = rns.to_float(x, prime, MODULI[prime])
    value = x[:, prime].astype(np.int64)
    value = np.where(value > q // 2, value - q, value)
    assert abs(got).max() <= 2**26
    np.testing.assert_array_equal(got, np.concatenate([value, -value], axis=1))
    # x X^-t mod X^n + 1
    t = 13
    np.testing.assert_array_equal(got[:, t : t + 64], np.concatenate([value[:, t:], -value[:, :t]], axis=1))


@pytest.mark.parametrize("factor", [1, 2**20, None])
def test_accumulate(factor):
    rng = np.random.default_rng(8)
    y = rng.integers(-rns.EXACT, rns.EXACT, (3, 64), endpoint=True)
    for p, q in enumerate(PRIMES):
        y[0, :8] = [0, 1, -1, rns.EXACT, -rns.EXACT, q, -q, rns.EXACT // q * q]
        f = q - 1 if factor is None else factor
        x = rng.integers(0, q, (3, 2, 4, 64)).astype(np.uint32)
        x[0] = q - 1
        expected = x.copy()
        expected[:, 1, p] = (x[:, 1, p].astype(object) + f * y.astype(object)) % q
        rns.accumulate(x, y.astype(np.float64), 1, p, f, MODULI[p])
        np.testing.assert_array_equal(x, expected)


def test_refusals():
    with pytest.raises(ValueError, match="no base"):
        rns.base(PRIMES, 49)
    with pytest.raises(ValueError, match="no base"):
        rns.base((268582913,), 33)
    with pytest.raises(ValueError, match="primes must fall"):
        rns.switch_tables((PRIMES[2], PRIMES[3], PRIMES[0], PRIMES[1]), 33)
