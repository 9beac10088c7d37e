import numpy as np
import pytest

from mpcd.kernels import im2col

CASES = [
    # shape, outputs, kernel, stride, padding, groups
    ((1, 1, 1), 1, (1, 1), (1, 1), (0, 0), 1),
    ((3, 7, 5), 2, (1, 1), (1, 1), (0, 0), 1),
    ((3, 7, 5), 2, (1, 1), (2, 2), (0, 0), 1),
    ((3, 7, 5), 2, (1, 1), (1, 1), (1, 2), 1),
    ((4, 8, 9), 6, (3, 3), (1, 1), (1, 1), 2),
    ((4, 8, 9), 4, (3, 3), (2, 2), (1, 1), 4),
    ((2, 13, 11), 3, (7, 7), (2, 2), (3, 3), 1),
    ((2, 6, 10), 3, (2, 5), (3, 1), (0, 3), 1),
    ((2, 4, 4), 3, (3, 3), (1, 1), (3, 3), 1),
]


def columns(x, kernel, stride, padding):
    """Whole image, pixel by pixel; (c kh kw, out_h, out_w)."""
    c, h, w = x.shape
    out_h, out_w = ((s + 2 * p - k) // t + 1 for s, p, k, t in zip((h, w), padding, kernel, stride, strict=True))
    out = np.zeros((c, *kernel, out_h, out_w), x.dtype)
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            for i in range(out_h):
                for j in range(out_w):
                    y, z = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
                    if 0 <= y < h and 0 <= z < w:
                        out[:, u, v, i, j] = x[:, y, z]
    return out.reshape(-1, out_h, out_w)


@pytest.mark.parametrize("dtype", [np.uint64, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_im2col(case, dtype):
    shape, _, kernel, stride, padding, _ = case
    x = np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)
    want = columns(x, kernel, stride, padding)
    out_h = want.shape[1]
    for rows in {(0, out_h), (0, 1), (out_h - 1, out_h), (out_h // 2, out_h)}:
        got = im2col.im2col(x, kernel, stride, padding, rows)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want[:, rows[0] : rows[1]].reshape(len(want), -1))


@pytest.mark.parametrize("band", [1, 1 << 22])
@pytest.mark.parametrize("bits", [17, 44])
@pytest.mark.parametrize("case", CASES)
def test_convolve(case, bits, band, monkeypatch):
    monkeypatch.setattr(im2col, "_BLOCK", band)
    shape, outputs, kernel, stride, padding, groups = case
    rng = np.random.default_rng()
    x = rng.integers(0, 2**64 - 1, shape, np.uint64, endpoint=True)
    x.reshape(-1)[:1] = 2 ** (bits - 1)
    weight = rng.integers(-(1 << 14), 1 << 14, (outputs, shape[0] // groups, *kernel), endpoint=True)
    l1 = int(abs(weight).reshape(outputs, -1).sum(axis=1).max())
    got = im2col.convolve(weight, x, stride, padding, groups, bits, l1)
    for group in range(groups):
        inputs = slice(group * shape[0] // groups, (group + 1) * shape[0] // groups)
        part = slice(group * outputs // groups, (group + 1) * outputs // groups)
        window = columns(x[inputs], kernel, stride, padding)
        flat = weight[part].reshape(outputs // groups, -1).astype(object) @ window.reshape(len(window), -1)
        want = (flat % 2**bits).astype(np.uint64).reshape(-1, *window.shape[1:])
        np.testing.assert_array_equal(got[part], want)
