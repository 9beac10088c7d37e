import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcd.kernels import gemm


def split(x, bits, width):
    """Signed limbs of x's representative in [-2^(bits - 1), 2^(bits - 1))."""
    rows = []
    for value in x.tolist():
        rest = (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        limbs = []
        for _ in range(-(-bits // width) - 1):
            limb = (rest + 2 ** (width - 1)) % 2**width - 2 ** (width - 1)
            limbs.append(limb)
            rest = (rest - limb) >> width
        rows.append([*limbs, rest])
    return np.array(rows, np.float64).reshape(len(x), -1).T


def matmul(weight, x, bits):
    return (weight.astype(object) @ x.astype(object)) % 2**bits


def operand(shape, bits, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2**64 - 1, shape, np.uint64, endpoint=True)
    edges = [0, 1, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2**64 - 1]
    x.reshape(-1)[: min(x.size, len(edges))] = edges[: x.size]
    return x


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(1, 63), width=st.integers(2, 54), n=st.sampled_from([1, 7, 64]), seed=st.integers(0, 2**32))
def test_split(bits, width, n, seed):
    x = operand((n,), bits, seed)
    got = gemm.split(x, bits, width)
    np.testing.assert_array_equal(got, split(x, bits, width))
    assert abs(got).max() <= 2.0 ** (width - 1)
    back = [sum(int(v) << (i * width) for i, v in enumerate(column)) % 2**bits for column in got.T]
    assert back == [v % 2**bits for v in x.tolist()]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (32, 65, 33), (4, 128, 0)])
@pytest.mark.parametrize("bits", [2, 33, 44, 63])
def test_matmul(shape, bits):
    m, k, n = shape
    rng = np.random.default_rng()
    weight = rng.integers(-(1 << 12), 1 << 12, (m, k), endpoint=True)
    l1 = int(abs(weight).sum(axis=1).max())
    x = operand((k, n), bits, 1)
    np.testing.assert_array_equal(gemm.matmul(weight, x, bits, l1), matmul(weight, x, bits).astype(np.uint64))


@pytest.mark.parametrize("bits", [33, 44])
@pytest.mark.parametrize("log_l1", [0, 10, 20, 21, 30, 51, 52])
def test_matmul_at_the_bound(bits, log_l1):
    """Every product at its extreme, row sums exactly at the bound and one past a power of two."""
    for l1 in {1 << log_l1, min((1 << log_l1) + 1, 1 << 52)}:
        k = min(l1, 37)
        weight = np.full((4, k), l1 // k, np.int64)
        weight[:, 0] += l1 - l1 // k * k
        weight[1] *= -1
        weight[2, ::2] *= -1
        weight[3] = 0
        weight[3, -1] = -l1
        x = np.empty((k, 4), np.uint64)
        x[:, 0] = 2 ** (bits - 1)
        x[:, 1] = 2 ** (bits - 1) - 1
        x[:, 2] = 2**bits - 1
        x[:, 3] = np.where(weight[2] < 0, np.uint64(2 ** (bits - 1)), np.uint64(2 ** (bits - 1) - 1))
        np.testing.assert_array_equal(gemm.matmul(weight, x, bits, l1), matmul(weight, x, bits).astype(np.uint64))


def test_few_limbs():
    assert gemm.limb_count(33, 1 << 20) == 1
    assert gemm.limb_count(34, 1 << 20) == 1
    assert gemm.limb_count(35, 1 << 20) == 2
    assert gemm.limb_count(40, 1 << 20) == 2


def test_refuses_weights_beyond_exactness():
    assert gemm.limb_width(1 << 52) == 2
    with pytest.raises(ValueError, match="beyond exact"):
        gemm.limb_width((1 << 52) + 1)
