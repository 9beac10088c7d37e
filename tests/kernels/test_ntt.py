import numpy as np
import pytest

from mpcd.kernels import ntt

PRIMES = (134176769, 134111233, 67084289, 67043329)
LENGTHS = [1, 2, 8, 64, 4096]


def forward(x, t):
    """Values at psi^(2 brv(i) + 1), from the definition, transposed as the file's head says."""
    m, primes, n = x.shape
    log_n = n.bit_length() - 1
    out = np.empty_like(x)
    for p in range(primes):
        q = int(t.q[p])
        psi = next(
            c for c in (pow(b, (q - 1) // (2 * n), q) for b in range(2, 1000)) if pow(c, n, q) == q - 1
        )  # whichever root the tables have taken
        powers = [pow(psi, e, q) for e in range(2 * n)]
        for i in range(m):
            for k in range(n):
                point = 2 * int(format(k, f"0{log_n}b")[::-1], 2) + 1 if log_n else 1
                out[i, p, k] = sum(int(x[i, p, j]) * powers[point * j % (2 * n)] for j in range(n)) % q
    columns = 1 << (log_n // 2)
    return out.reshape(m, primes, n // columns, columns).swapaxes(2, 3).reshape(x.shape)


def extremes(n, seed=0):
    """Polynomials of zeros, of q - 1, alternating, and random ones."""
    rng = np.random.default_rng(seed)
    q = np.array(PRIMES, np.int64)[:, None]
    x = np.stack([np.zeros((4, n), np.int64), np.broadcast_to(q - 1, (4, n)), *rng.integers(0, q, (3, 4, n))])
    x[2, :, ::2] = 0
    return x.astype(np.uint32)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_forward_is_the_definition(n):
    t = ntt.tables(PRIMES, n)
    x = extremes(n)
    y = x.copy()
    ntt.forward(y, t)
    np.testing.assert_array_equal(y, forward(x, t))


@pytest.mark.parametrize("n", LENGTHS)
def test_inverse_undoes_forward(n):
    t = ntt.tables(PRIMES, n)
    x = extremes(n)
    y = x.copy()
    ntt.forward(y, t)
    assert (y < np.array(PRIMES)[:, None]).all()
    ntt.inverse(y, t)
    np.testing.assert_array_equal(y, x)


def test_fewer_primes_use_the_first_ones():
    t = ntt.tables(PRIMES, 64)
    x = extremes(64)
    whole, part = x.copy(), x[:, :2].copy()
    ntt.forward(whole, t)
    ntt.forward(part, t)
    np.testing.assert_array_equal(part, whole[:, :2])


@pytest.mark.parametrize("n", [8, 4096])
def test_product_is_negacyclic(n):
    t = ntt.tables(PRIMES, n)
    x, y = extremes(n, 1), extremes(n, 2)[3]
    values, factor = x.copy(), y[None].copy()
    ntt.forward(values, t)
    ntt.forward(factor, t)
    product = ntt.multiply(values, factor[0], ntt.companions(factor[0], t.q), t.q)
    ntt.inverse(product, t)
    for p, q in enumerate(PRIMES):
        # Limbs of 13 and 14 bits keep every convolution sum below 2^53.
        for i in range(len(x)):
            total = [0] * (2 * n)
            for a_shift in (0, 14):
                a = (x[i, p].astype(np.int64) >> a_shift) & 0x3FFF
                for b_shift in (0, 14):
                    b = (y[p].astype(np.int64) >> b_shift) & 0x3FFF
                    part = _convolve(a, b)
                    total = [s + (int(v) << (a_shift + b_shift)) for s, v in zip(total, part, strict=True)]
            expected = [(total[j] - total[j + n]) % q for j in range(n)]
            assert product[i, p].tolist() == expected


def _convolve(a, b):
    """Exact convolution, 2n long, by one big-integer product."""
    n = len(a)
    width = 6
    left = int.from_bytes(b"".join(int(v).to_bytes(width, "little") for v in a), "little")
    right = int.from_bytes(b"".join(int(v).to_bytes(width, "little") for v in b), "little")
    data = (left * right).to_bytes(2 * n * width, "little")
    return [int.from_bytes(data[i * width : (i + 1) * width], "little") for i in range(2 * n)]


def test_companions():
    x = extremes(64)[3]
    x[:, :4] = [[0, 1, q - 2, q - 1] for q in PRIMES]
    got = ntt.companions(x, np.array(PRIMES, np.uint64))
    for p, q in enumerate(PRIMES):
        assert got[p].tolist() == [(v << 32) // q for v in x[p].tolist()]


@pytest.mark.parametrize(("primes", "n"), [((134176769,), 3), ((97,), 4096), ((268582913,), 64), ((134176769,), 8192)])
def test_refuses_what_has_no_transform(primes, n):
    with pytest.raises(ValueError, match="no transform"):
        ntt.tables(primes, n)
