import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcd.kernels import transpose

WORDS = [0, 1, 2, 7, 8, 9, 16, 31, 63, 64, 65, 128]


def bit_matrix(words):
    """uint64 (..., w) to bits (..., 64 w)."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")


def transpose_128(columns):
    packed = np.packbits(bit_matrix(columns).T, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.uint64)


@pytest.mark.parametrize("words", WORDS)
def test_twin(words):
    rng = np.random.default_rng()
    columns = rng.integers(0, 2**64 - 1, (128, words), np.uint64, endpoint=True)
    rows = transpose.transpose_128(columns)
    assert rows.shape == (64 * words, 2)
    assert rows.dtype == np.uint64
    if words:
        np.testing.assert_array_equal(rows, transpose_128(columns))


@settings(deadline=None)
@given(words=st.integers(1, 20), data=st.data())
def test_a_single_bit_lands_in_its_place(words, data):
    column = data.draw(st.integers(0, 127))
    row = data.draw(st.integers(0, 64 * words - 1))
    columns = np.zeros((128, words), np.uint64)
    columns[column, row // 64] = np.uint64(1) << np.uint64(row % 64)
    rows = transpose.transpose_128(columns)
    assert rows[row, column // 64] == np.uint64(1) << np.uint64(column % 64)
    assert np.count_nonzero(rows) == 1


def test_all_ones():
    assert (transpose.transpose_128(np.full((128, 11), 2**64 - 1, np.uint64)) == 2**64 - 1).all()


def test_read_only_columns():
    columns = np.frombuffer(np.random.default_rng().bytes(128 * 24), np.uint64).reshape(128, 3)
    np.testing.assert_array_equal(transpose.transpose_128(columns), transpose_128(columns))


@pytest.mark.parametrize("words", WORDS)
def test_writes_only_its_rows(words):
    columns = np.random.default_rng().integers(0, 2**64 - 1, (128, words), np.uint64, endpoint=True)
    rows = np.zeros((64 * words + 20, 2), np.uint64)
    transpose.transpose_128_into(columns, rows[7 : 64 * words + 7])
    np.testing.assert_array_equal(rows[7 : 64 * words + 7], transpose.transpose_128(columns))
    assert not rows[:7].any()
    assert not rows[64 * words + 7 :].any()


def test_64_in_every_lane():
    a = np.random.default_rng().integers(0, 2**64 - 1, (64, transpose.LANES), np.uint64, endpoint=True)
    expected = bit_matrix(a[:, :, None]).transpose(2, 1, 0)
    transpose.transpose_64(a)
    np.testing.assert_array_equal(bit_matrix(a[:, :, None]), expected)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="not 128 columns"):
        transpose.transpose_128(np.zeros((127, 8), np.uint64))
    for shape in ((511, 2), (513, 2), (512, 3)):
        with pytest.raises(ValueError, match="not a row for every bit"):
            transpose.transpose_128_into(np.zeros((128, 8), np.uint64), np.zeros(shape, np.uint64))
    with pytest.raises(ValueError, match="LANES"):
        transpose.transpose_64(np.zeros((64, 4), np.uint64))
