"""Area under the ROC curve with DeLong's variance, confidence interval and paired test.

AUROC is the chance that a random positive scores above a random negative, a tie counting one half (Mann-Whitney).
Variance, covariance and test: DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated
receiver operating characteristic curves", Biometrics 44 (1988), from structural components. These are computed from
midranks in O(n log n): Sun, Xu, "Fast implementation of DeLong's algorithm", IEEE Signal Processing Letters 21 (2014).

With m positives and n negatives, midranks T of all scores, and X, Y of the positives and negatives among themselves:

    AUROC = (sum of T over positives - m (m + 1) / 2) / (m n)
    V10_i = (T_i - X_i) / n           for positive i: the share of negatives it beats
    V01_j = 1 - (T_j - Y_j) / m       for negative j: the share of positives that beat it
    var   = var(V10) / m + var(V01) / n        sample variances, so two of each class are needed
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

_NORMAL = NormalDist()


@dataclasses.dataclass(frozen=True)
class Auroc:
    """``auroc`` in [0, 1], or None with ``reason`` why not; ``variance`` and ``interval`` None where undefined.

    The interval is normal, cut to [0, 1]. ``reason`` also says why an AUROC has no interval.
    """

    n: int
    positives: int
    auroc: float | None
    variance: float | None
    interval: tuple[float, float] | None
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """``difference`` of two AUROCs on the same images, first minus second; ``z`` and two-sided ``p`` where defined."""

    difference: float | None
    variance: float | None
    interval: tuple[float, float] | None
    z: float | None
    p: float | None
    reason: str | None


def auroc(scores: npt.ArrayLike, labels: Sequence[bool] | npt.ArrayLike, confidence: float = 0.95) -> Auroc:
    """AUROC of ``scores`` (n, finite, any real or integer type; higher means positive) for boolean ``labels`` (n)."""
    s, y = _checked(scores, labels)
    positives, negatives = int(y.sum()), int((~y).sum())
    if positives == 0 or negatives == 0:
        return Auroc(y.size, positives, None, None, None, _undefined(positives, negatives))
    area, v10, v01 = _components(s, y)
    if positives < 2 or negatives < 2:
        reason = f"an interval needs two images of each class, not {positives} and {negatives}"
        return Auroc(y.size, positives, area, None, None, reason)
    variance = _covariance(v10, v10, v01, v01)
    low, high = _interval(area, variance, confidence)
    return Auroc(y.size, positives, area, variance, (max(low, 0.0), min(high, 1.0)), None)


def compare(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    labels: Sequence[bool] | npt.ArrayLike,
    confidence: float = 0.95,
) -> Difference:
    """DeLong's paired test that two scores of the same images (each n) have the same AUROC.

    Where the scores order every pair alike the difference is 0 and p is 1. Where the variance vanishes although the
    difference does not, z and p are undefined.
    """
    a, y = _checked(first, labels)
    b, _ = _checked(second, labels)
    positives, negatives = int(y.sum()), int((~y).sum())
    if positives == 0 or negatives == 0:
        return Difference(None, None, None, None, None, _undefined(positives, negatives))
    area_a, v10_a, v01_a = _components(a, y)
    area_b, v10_b, v01_b = _components(b, y)
    difference = area_a - area_b
    if positives < 2 or negatives < 2:
        reason = f"a test needs two images of each class, not {positives} and {negatives}"
        return Difference(difference, None, None, None, None, reason)
    if np.array_equal(v10_a, v10_b) and np.array_equal(v01_a, v01_b):
        return Difference(0.0, 0.0, (0.0, 0.0), 0.0, 1.0, None)
    # The variance of the components' differences: no cancellation, unlike var(a) + var(b) - 2 cov(a, b).
    variance = _covariance(v10_a - v10_b, v10_a - v10_b, v01_a - v01_b, v01_a - v01_b)
    if variance <= 1e-24:
        return Difference(difference, 0.0, None, None, None, "the difference has no variance on these images")
    z = difference / math.sqrt(variance)
    return Difference(
        difference, variance, _interval(difference, variance, confidence), z, math.erfc(abs(z) / math.sqrt(2)), None
    )


def covariance(first: npt.ArrayLike, second: npt.ArrayLike, labels: Sequence[bool] | npt.ArrayLike) -> float:
    """DeLong's covariance of two AUROCs on the same images, two or more of each class."""
    a, y = _checked(first, labels)
    b, _ = _checked(second, labels)
    if min(int(y.sum()), int((~y).sum())) < 2:
        raise ValueError("a covariance needs two images of each class")
    _, v10_a, v01_a = _components(a, y)
    _, v10_b, v01_b = _components(b, y)
    return _covariance(v10_a, v10_b, v01_a, v01_b)


def midranks(values: Float) -> Float:
    """Ranks 1 to n of ``values`` (n); equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse.reshape(-1)], dtype=np.float64)


def _components(s: Float, y: npt.NDArray[np.bool_]) -> tuple[float, Float, Float]:
    m, n = int(y.sum()), int((~y).sum())
    t, x, z = midranks(s), midranks(s[y]), midranks(s[~y])
    # Ranks are halves of whole numbers, so this sum is exact.
    area = float((t[y].sum() - m * (m + 1) / 2) / (m * n))
    return area, (t[y] - x) / n, 1.0 - (t[~y] - z) / m


def _covariance(v10_a: Float, v10_b: Float, v01_a: Float, v01_b: Float) -> float:
    return _sample(v10_a, v10_b) / v10_a.size + _sample(v01_a, v01_b) / v01_a.size


def _sample(a: Float, b: Float) -> float:
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a.size - 1))


def _interval(centre: float, variance: float, confidence: float) -> tuple[float, float]:
    reach = _NORMAL.inv_cdf(0.5 + confidence / 2) * math.sqrt(variance)
    return centre - reach, centre + reach


def _undefined(positives: int, negatives: int) -> str:
    if positives == negatives == 0:
        return "no image has a known label"
    return f"all {negatives} images are negative" if positives == 0 else f"all {positives} images are positive"


def _checked(scores: npt.ArrayLike, labels: Sequence[bool] | npt.ArrayLike) -> tuple[Float, npt.NDArray[np.bool_]]:
    # Integer scores stay exact below 2^53, far above any ring's width.
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(labels, dtype=bool)
    if s.ndim != 1 or s.shape != y.shape or not np.isfinite(s).all():
        raise ValueError("scores and labels must be two rows of one length, scores finite")
    return s, y
