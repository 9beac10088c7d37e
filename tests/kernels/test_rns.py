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


@pytest.mark.parametrize(
    ("bits", "drop"), [(1, 1), (2, 3), (17, 5), (24, 32), (29, 16), (33, 3), (33, 9), (40, 3), (44, 3), (48, 1)]
)
def test_remainder(bits, drop):
    """Around every kind of edge of a step, and anywhere."""
    t = rns.remainder_tables(PRIMES, bits, drop)
    half = 1 << (105 - bits)

    def scaled(w):
        return (2 * Q * w + (1 << bits)) >> (bits + 1)

    values = [v for row in integers(60, Q, bits) for v in row]
    edges = (0, 1, (1 << bits) - 1, 1 << (bits - 1), 12345 % (1 << bits))
    values += [(scaled(w) + d) % Q for w in edges for d in (-2, -1, 0, 1, 2)]
    e = np.random.default_rng().integers(-21, 22, len(values)).astype(np.int32)
    x = residues([[error + half - v for v, error in zip(values, e.tolist(), strict=True)]])
    quotient, low, high = rns.remainder(x, e[None], t)
    for v, w, lo, hi in zip(values, *(part[0].tolist() for part in (quotient, low, high)), strict=True):
        rest = (v - scaled(w)) % Q
        assert 0 <= w < 1 << bits
        assert rest < scaled(w + 1) - scaled(w)
        assert lo + (hi << 64) == (rest + (1 << (drop - 1))) >> drop


def test_the_last_step_wraps_around():
    t = rns.remainder_tables(PRIMES, 33, 1)
    x = residues([[1 + (1 << 72), -(1 << 72)]])  # values Q - 1 and 2^73
    quotient, _, _ = rns.remainder(x, np.zeros((1, 2), np.int32), t)
    assert quotient.tolist() == [[(1 << 33) - 1, ((1 << 73) << 33) // Q]]


@pytest.mark.parametrize("width", [3, 20, 31, 36, 50])
@pytest.mark.parametrize("bits", [1, 33, 60, 64, 70, 104])
def test_digits(bits, width):
    values = integers(70, 1 << bits, bits)
    low, high = (np.array([[v >> at & 2**64 - 1 for v in row] for row in values], np.uint64) for at in (0, 64))
    got = rns.digits(low, high, bits, width)
    assert got.shape == (-(-bits // width), 2, 140)
    assert abs(got).max() <= 2 ** (width - 1)
    total = sum(d.astype(np.int64).astype(object) << (i * width) for i, d in enumerate(got))
    assert total[:, :70].tolist() == [[v - (1 << bits - 1) for v in row] for row in values]
    np.testing.assert_array_equal(got[:, :, 70:], -got[:, :, :70])


@pytest.mark.parametrize("width", [3, 14, 27, 40])
@pytest.mark.parametrize("prime", range(4))
def test_residue_digits(prime, width):
    q = PRIMES[prime]
    x = residues(integers(64, Q, 7))
    x[0, prime, :4] = [q // 2, q // 2 + 1, q - 1, 0]
    got = rns.residue_digits(x, prime, MODULI[prime], width)
    assert len(got) == -(-q.bit_length() // width)
    assert abs(got).max() <= 2 ** (min(width, 27) - 1)
    value = x[:, prime].astype(np.int64)
    value = np.where(value > q // 2, value - q, value)
    total = sum(d.astype(np.int64) << (i * width) for i, d in enumerate(got))
    np.testing.assert_array_equal(total, np.concatenate([value, -value], axis=1))
    # x X^-t mod X^n + 1
    t = 13
    np.testing.assert_array_equal(total[:, t : t + 64], np.concatenate([value[:, t:], -value[:, :t]], axis=1))


@pytest.mark.parametrize("factor", [1, 2**20, None])
@pytest.mark.parametrize("primes", [(0, 4), (1, 2), (3, 4)])
def test_accumulate(factor, primes):
    rng = np.random.default_rng(8)
    y = rng.integers(-rns.EXACT, rns.EXACT, (3, 64), endpoint=True)
    edges = [v for q in PRIMES for v in (q, -q, rns.EXACT // q * q)]
    y[0, : 5 + len(edges)] = [0, 1, -1, rns.EXACT, -rns.EXACT, *edges]
    factors = MODULI - np.uint64(1) if factor is None else np.full(4, factor, np.uint64)
    x = rng.integers(0, MODULI[:, None], (3, 4, 64)).astype(np.uint32)
    x[0] = MODULI[:, None] - np.uint64(1)
    expected = x.copy()
    for p in range(*primes):
        expected[:, p] = (x[:, p].astype(object) + int(factors[p]) * y.astype(object)) % PRIMES[p]
    rns.accumulate(x, y.astype(np.float64), factors, *primes, MODULI)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("drop", [0, 1, 17, 40])
def test_shorten(drop):
    t = rns.switch_tables(PRIMES, 33)
    values = integers(64, KEPT, drop)
    got = rns.shorten(residues(values, PRIMES[:2]), t, drop)
    assert got.tolist() == [[(v + ((1 << drop) >> 1)) >> drop for v in row] for row in values]
    x = residues(integers(64, KEPT, 99), PRIMES[:2])
    expected = x.astype(object) + residues((got.astype(object) << drop).tolist(), PRIMES[:2])
    rns.add_shortened(x, got, drop, t)
    np.testing.assert_array_equal(x, expected % MODULI[:2, None].astype(object))


def test_refusals():
    with pytest.raises(ValueError, match="no base"):
        rns.base(PRIMES, 49)
    with pytest.raises(ValueError, match="no base"):
        rns.base((268582913,), 33)
    with pytest.raises(ValueError, match="primes must fall"):
        rns.switch_tables((PRIMES[2], PRIMES[3], PRIMES[0], PRIMES[1]), 33)
    for drop in (0, 33):
        with pytest.raises(ValueError, match="cannot lose"):
            rns.remainder_tables(PRIMES, 33, drop)
