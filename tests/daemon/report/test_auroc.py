"""AUROC and DeLong against brute force over pairs and against pROC's published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcd.daemon.report.auroc import auroc, compare, covariance, midranks

# Outcome (1 poor), WFNS grade, S100B and NDKA of 113 patients with subarachnoid haemorrhage: Turck et al., Intensive
# Care Medicine 36 (2010), the example data of pROC (Robin et al., BMC Bioinformatics 12 (2011)).
POOR = (
    "00001101001011001011101000000000100110110000000001100010001010011101101111000110100000010000000000001111110001000"
)
WFNS = (
    "11113254125255125225211112121134214541425511241125521251222151125214524414121421232421451154221113125225552445111"
)
S100B = (
    "0.13 0.14 0.1 0.04 0.13 0.1 0.47 0.16 0.18 0.1 0.12 0.1 0.44 0.71 0.04 0.08 0.49 0.04 0.07 0.33 0.09 0.09 0.07 "
    "0.11 0.07 0.17 0.07 0.11 0.13 0.19 0.05 0.16 0.41 0.14 0.34 0.35 0.48 0.09 0.96 0.25 0.5 0.46 0.16 0.07 0.43 "
    "0.45 0.11 0.08 0.09 0.86 0.52 0.08 0.06 0.13 2.07 0.1 0.14 0.15 0.07 0.06 0.77 0.05 0.09 0.3 0.03 0.09 0.04 0.23 "
    "0.7 0.09 0.27 0.71 0.08 0.26 0.08 0.16 0.09 0.13 0.1 0.08 0.11 0.33 0.11 0.28 0.07 0.1 0.32 0.22 0.07 0.05 0.24 "
    "0.38 0.1 0.15 0.08 0.14 0.1 0.07 0.04 0.19 0.56 0.14 0.58 0.32 0.82 0.74 0.15 0.47 0.17 0.44 0.15 0.5 0.48"
)
NDKA = (
    "3.01 8.54 8.09 10.42 17.4 12.75 6.0 13.2 15.54 6.01 15.96 17.86 5.18 8.9 13.41 20.75 11.6 16.11 32.37 54.82 "
    "32.41 49.94 40.34 9.47 6.29 12.53 6.54 6.3 80.3 12.8 9.8 9.81 9.85 18.21 5.03 14.04 21.93 8.02 7.42 8.38 6.59 "
    "9.63 13.12 7.96 14.34 41.43 7.63 7.06 12.59 13.56 3.87 9.44 7.66 12.98 419.19 27.19 22.27 9.95 21.22 11.73 10.4 "
    "58.83 6.39 11.09 12.22 13.67 17.21 22.63 12.9 9.7 21.57 8.23 72.57 15.54 10.51 10.6 14.57 5.19 9.63 4.61 21.48 "
    "17.3 12.71 9.44 11.07 19.46 10.83 5.37 11.97 7.75 9.83 10.55 28.49 8.53 12.57 12.9 46.83 11.68 12.67 9.01 9.57 "
    "34.06 11.72 14.26 47.61 11.67 24.58 10.33 13.87 15.89 22.43 6.79 13.45"
)
OUTCOME = [c == "1" for c in POOR]
SCORES = {
    "wfns": [float(c) for c in WFNS],
    "s100b": [float(v) for v in S100B.split()],
    "ndka": [float(v) for v in NDKA.split()],
}


def test_published_areas_and_intervals() -> None:
    ndka = auroc(SCORES["ndka"], OUTCOME)
    assert (ndka.n, ndka.positives, ndka.reason) == (113, 41, None)
    assert ndka.auroc == pytest.approx(0.611957994579946, rel=1e-12)
    assert ndka.interval == pytest.approx((0.501244999271703, 0.722670989888189), rel=1e-12)
    s100b = auroc(SCORES["s100b"], OUTCOME)
    assert s100b.auroc == pytest.approx(0.7314, abs=5e-5)
    assert s100b.interval == pytest.approx((0.6301, 0.8326), abs=5e-5)
    assert auroc(SCORES["wfns"], OUTCOME).auroc == pytest.approx(0.8237, abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second", "z", "p"),
    [
        ("wfns", "s100b", 2.20898359144091, 0.0271757822291882),
        ("wfns", "ndka", 2.79777591868904, 0.00514557970691098),
        ("ndka", "s100b", -1.39077002573558, 0.164295175223054),
    ],
)
def test_published_paired_tests(first: str, second: str, z: float, p: float) -> None:
    result = compare(SCORES[first], SCORES[second], OUTCOME)
    assert result.z == pytest.approx(z, rel=1e-10)
    assert result.p == pytest.approx(p, rel=1e-10)


def test_published_interval_of_a_difference() -> None:
    result = compare(SCORES["wfns"], SCORES["s100b"], OUTCOME)
    assert result.interval == pytest.approx((0.0104061769564846, 0.174214419249478), rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("wfns", "ndka", -0.000532967856762438),
        ("ndka", "s100b", -0.000756164938056579),
        ("s100b", "wfns", 0.00119615567376754),
    ],
)
def test_published_covariances(first: str, second: str, value: float) -> None:
    assert covariance(SCORES[first], SCORES[second], OUTCOME) == pytest.approx(value, rel=1e-10)


scores_and_labels = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-6, 6), min_size=n, max_size=n),
        st.lists(st.integers(-6, 6), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


def pairwise(s: list[int], y: list[bool]) -> np.ndarray:
    """Kernel of every (positive, negative) pair: 1, 1/2 or 0."""
    p = np.array([v for v, label in zip(s, y, strict=True) if label], dtype=float)
    q = np.array([v for v, label in zip(s, y, strict=True) if not label], dtype=float)
    return (p[:, None] > q) + 0.5 * (p[:, None] == q)


@given(scores_and_labels)
def test_against_all_pairs(case: tuple[list[int], list[int], list[bool]]) -> None:
    a, b, y = case
    result = auroc(a, y)
    if sum(y) in (0, len(y)):
        assert result.auroc is None
        assert result.reason
        assert compare(a, b, y).difference is None
        return
    k = pairwise(a, y)
    assert result.auroc == pytest.approx(k.mean(), abs=1e-12)
    m, n = k.shape
    if min(m, n) < 2:
        assert result.interval is None
        assert "two images of each class" in str(result.reason)
        return
    variance = k.mean(1).var(ddof=1) / m + k.mean(0).var(ddof=1) / n
    assert result.variance == pytest.approx(variance, abs=1e-12)
    difference = compare(a, b, y)
    d = k - pairwise(b, y)
    assert difference.difference == pytest.approx(d.mean(), abs=1e-12)
    both = d.mean(1).var(ddof=1) / m + d.mean(0).var(ddof=1) / n
    if difference.variance:
        assert difference.variance == pytest.approx(both, rel=1e-6, abs=1e-14)
    mirrored = compare(b, a, y)
    assert mirrored.p == difference.p


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_midranks_against_counting(values: list[int]) -> None:
    expected = [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
    assert midranks(np.array(values, dtype=float)).tolist() == expected


def test_one_class_is_named_not_raised() -> None:
    assert auroc([1, 2], [False, False]).reason == "all 2 images are negative"
    assert auroc([1], [True]).reason == "all 1 images are positive"
    assert auroc([], []).reason == "no image has a known label"


def test_one_positive_has_an_area_without_interval() -> None:
    result = auroc([3, 1, 2], [True, False, False])
    assert (result.auroc, result.variance, result.interval) == (1.0, None, None)
    assert compare([3, 1, 2], [1, 2, 3], [True, False, False]).p is None


def test_perfect_separation_and_its_mirror() -> None:
    y = [True, True, False, False]
    assert auroc([4, 3, 2, 1], y).interval == (1.0, 1.0)
    result = compare([4, 3, 2, 1], [1, 2, 3, 4], y)
    assert (result.difference, result.p) == (1.0, None)
    assert "no variance" in str(result.reason)


def test_equal_order_is_no_difference() -> None:
    result = compare([0.1, 0.4, 0.35, 0.8], [1, 4, 3, 800], [False, True, False, True])
    assert (result.difference, result.z, result.p) == (0.0, 0.0, 1.0)


def test_large_integers_stay_exact() -> None:
    top = 1 << 52
    assert auroc([top, top + 1], [False, True]).auroc == 1.0
    assert auroc([-top, -top], [False, True]).auroc == 0.5


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0], [1.0], [[1.0, 2.0]]])
def test_bad_scores_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        auroc(bad, [True, False])
