import numpy as np
import pytest

from mpcd.kernels import sampling

FULL = 2**64 - 1
MODULI = np.array([134176769, 67043329], np.uint64)


def words(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, FULL, shape, np.uint64, endpoint=True)
    flat = x.reshape(-1)
    edges = [0, FULL, FULL // 3, FULL // 3 + 1, 2 * (FULL // 3), 2 * (FULL // 3) + 1, 2**21 - 1, (2**21 - 1) << 21]
    flat[: min(len(flat), len(edges))] = edges[: len(flat)]
    return x


def ternary(w):
    return np.array([3 * int(v) // 2**64 - 1 for v in w.reshape(-1)], np.int32).reshape(w.shape)


def centred_binomial(w):
    field = 2**21 - 1
    counts = [(int(v) & field).bit_count() - (int(v) >> 21 & field).bit_count() for v in w.reshape(-1)]
    return np.array(counts, np.int32).reshape(w.shape)


def uniform_residues(w, q, n):
    halves = w.view("<u4").astype(np.uint64)
    out = np.empty((w.shape[0], len(q), n), np.uint32)
    for i in range(w.shape[0]):
        for p, modulus in enumerate(q.tolist()):
            cut = halves[i, p] & np.uint64((1 << modulus.bit_length()) - 1)
            out[i, p] = cut[cut < modulus][:n]
    return out


def flood(w, width):
    wide = w.reshape(*w.shape[:-1], 4, 2).astype(object)
    low = wide[..., 1] % 2**32
    total = ((wide[..., 0] % 2 ** (width - 32)) * 2**32 + low).sum(axis=-1)
    return total >> 32, total % 2**32


@pytest.mark.parametrize("kernel", ["ternary", "centred_binomial"])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 65), (1, 4096)])
def test_small_distributions(kernel, shape):
    w = words(shape)
    got = getattr(sampling, kernel)(w)
    assert got.dtype == np.int32
    assert got.shape == shape
    np.testing.assert_array_equal(got, globals()[kernel](w))


def test_moments():
    x = sampling.centred_binomial(words((1 << 18,), 1))
    assert abs(x).max() <= sampling.BINOMIAL_BOUND
    assert abs(x.mean()) < 0.05
    assert abs(x.var() - 10.5) < 0.3
    t = sampling.ternary(words((1 << 18,), 2))
    assert all(abs((t == v).mean() - 1 / 3) < 0.006 for v in (-1, 0, 1))


@pytest.mark.parametrize("n", [0, 1, 64, 4096])
def test_uniform_residues(n):
    w = words((2, 2, n // 2 + 64), 3)
    w[0, 0, :8] = FULL  # rejected
    got = sampling.uniform_residues(w, MODULI, n)
    np.testing.assert_array_equal(got, uniform_residues(w, MODULI, n))


def test_uniform_residues_needs_enough():
    with pytest.raises(ValueError, match="too few words"):
        sampling.uniform_residues(np.full((1, 2, 64), FULL, np.uint64), MODULI, 64)


@pytest.mark.parametrize("width", [33, 34, 63, 64, 65, 86])
def test_flood(width):
    w = words((3, 50, 8), 4)
    w[0, 0], w[0, 1] = 0, FULL
    high, low = sampling.flood(w, width)
    want_high, want_low = flood(w, width)
    assert high.tolist() == want_high.tolist()
    assert low.tolist() == want_low.tolist()
    total = high.astype(object) * 2**32 + low
    assert total[0, 0] == 0
    assert total[0, 1] == total.max() == 2 ** (width + 2) - 4


def test_flood_is_a_bell():
    high, low = sampling.flood(words((1 << 16, 8), 5), 60)
    x = (high.astype(float) * 2.0**32 + low - 2.0**61) / (2.0**60 * np.sqrt(4 / 12))
    assert abs(x.mean()) < 0.03
    assert abs(x.std() - 1) < 0.02
    assert abs((abs(x) < 1).mean() - 0.668) < 0.01


@pytest.mark.parametrize(("width", "size"), [(32, 8), (87, 8), (60, 6)])
def test_flood_refuses(width, size):
    with pytest.raises(ValueError, match="out of range"):
        sampling.flood(np.zeros((2, size), np.uint64), width)
