"""Statistics of the levels that cannot compare bits: exact intervals, bounds on epsilon, two-sample and equivalence tests.

Pure functions over numpy arrays; whatever draws at random takes a seed. Each names its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist

from s3t.errors import S3TError

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Statistic = Callable[[Array, Indices, Indices], Array]


class StatisticsError(S3TError):
    """A number that a statistical procedure cannot work with: a level outside (0, 1), too few samples, counts that clash."""


@cache
def clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a rate; (0, 1) without trials. Clopper and Pearson 1934, as scipy has it."""
    _level("confidence", confidence)
    if not 0 <= hits <= trials:
        raise StatisticsError(f"{hits} hits in {trials} trials are not possible; give 0 <= hits <= trials")
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Epsilon:
    """A lower bound on epsilon and what it rests on: the least credible TPR and the greatest credible FPR."""

    low: float
    tpr: float
    fpr: float
    tpr_low: float
    fpr_high: float


def epsilon_lower_bound(
    true_positives: int, positives: int, false_positives: int, negatives: int, delta: float, confidence: float
) -> Epsilon:
    """Return the greatest epsilon that the guesses refute at ``confidence``, at least 0 (rates are nan without trials).

    (epsilon, delta)-indistinguishable worlds allow an attack TPR <= e^eps FPR + delta and TNR <= e^eps FNR + delta. Both
    directions use the same two one-sided Clopper-Pearson bounds, TPR from below and FPR from above, each at half of
    1 - confidence, so that the whole statement holds at ``confidence``. Jagielski et al. 2020 (Auditing Differentially
    Private Machine Learning), section 3; Nasr et al. 2021 (Adversary Instantiation), 2023 (Tight Auditing).
    """
    if not 0 <= delta < 1:
        raise StatisticsError(f"delta={delta} is out of range; give 0 <= delta < 1")
    tpr_low = clopper_pearson(true_positives, positives, confidence)[0]
    fpr_high = clopper_pearson(false_positives, negatives, confidence)[1]
    low = max(0.0, _log_ratio(tpr_low - delta, fpr_high), _log_ratio(1 - fpr_high - delta, 1 - tpr_low))
    tpr = true_positives / positives if positives else math.nan
    fpr = false_positives / negatives if negatives else math.nan
    return Epsilon(low, tpr, fpr, tpr_low, fpr_high)


def _log_ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0 and below > 0 else -math.inf


def distances(pooled: Array) -> Array:
    """Return the Euclidean distances between the rows of ``pooled`` (N, features), shape (N, N)."""
    return np.asarray(cdist(pooled, pooled), dtype=np.float64)


def energy_distance(between: Array, first: Indices, second: Indices) -> Array:
    """Return 2 E|X-Y| - E|X-X'| - E|Y-Y'| for index sets of shape (..., n) and (..., m) into ``between``.

    All pairs count, equal ones included (a V-statistic, never negative). Szekely and Rizzo 2013, section 2.
    """
    return 2 * _mean(between, first, second) - _mean(between, first, first) - _mean(between, second, second)


def mmd(kernel: Array, first: Indices, second: Indices) -> Array:
    """Return the unbiased squared maximum mean discrepancy for index sets as above. Gretton et al. 2012, Lemma 6.

    The diagonal of ``kernel`` must be 1 and the index sets without repetition, of at least 2 each.
    """

    n, m = first.shape[-1], second.shape[-1]
    own: Array = (_mean(kernel, first, first) * n - 1) / (n - 1)
    other: Array = (_mean(kernel, second, second) * m - 1) / (m - 1)
    return own + other - 2 * _mean(kernel, first, second)


def _mean(between: Array, rows: Indices, columns: Indices) -> Array:
    taken = between[rows[..., :, None], columns[..., None, :]]
    return np.asarray(taken.mean(axis=(-2, -1)), dtype=np.float64)


def rbf_kernel(between: Array) -> Array:
    """Return exp(-d^2 / (2 h^2)), h the median of the positive pooled distances; all 1 if there are none.

    The median heuristic on the pooled sample keeps the permutation test exact. Gretton et al. 2012, section 8.
    """
    positive = between[np.triu_indices(len(between), 1)]
    positive = positive[positive > 0]
    if not positive.size:
        return np.ones_like(between)
    return np.asarray(np.exp(-(between**2) / (2 * np.median(positive) ** 2)), dtype=np.float64)


@dataclass(frozen=True)
class TwoSample:
    """The outcome of a permutation test: the statistic and its p-value."""

    statistic: float
    p: float


def two_sample(first: Array, second: Array, permutations: int = 999, seed: int = 0) -> dict[str, TwoSample]:
    """Return the permutation tests "energy distance" and "MMD" of equal distribution of the rows, shape (n, features).

    p = (1 + permutations at least as extreme) / (1 + permutations), or exact where that many splits do not exist (Phipson
    and Smyth 2010); scipy's permutation_test. StatisticsError for fewer than 2 rows or rows that are not finite.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        raise StatisticsError(f"{n} and {m} samples are too few to compare distributions; give at least 2 of each")
    pooled = np.concatenate([first, second])
    if not np.isfinite(pooled).all():
        raise StatisticsError("a sample is not finite; leave it out and account for it")
    between = distances(pooled)
    if not between.any():
        return {"energy distance": TwoSample(0.0, 1.0), "MMD": TwoSample(0.0, 1.0)}
    kernel = rbf_kernel(between)
    return {
        "energy distance": _permuted(between, energy_distance, n, m, permutations, seed),
        "MMD": _permuted(kernel, mmd, n, m, permutations, seed),
    }


def _permuted(between: Array, statistic: Statistic, n: int, m: int, permutations: int, seed: int) -> TwoSample:
    def measured(x: Indices, y: Indices, axis: int = -1) -> Array:
        return statistic(between, np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1))

    outcome = stats.permutation_test(
        (np.arange(n), np.arange(n, n + m)),
        measured,
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, 4_000_000 // (n + m) ** 2),
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return TwoSample(float(outcome.statistic), float(outcome.pvalue))


def holm(p_values: Sequence[float], alpha: float) -> tuple[bool, ...]:
    """Return which hypotheses are rejected with a family-wise error of ``alpha``. Holm 1979."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - rank):
            break
        rejected[i] = True
    return tuple(rejected)


def per_look(alpha: float, looks: int) -> float:
    """Return the level of each of ``looks`` looks at growing data that together err with at most ``alpha`` (Bonferroni)."""
    _level("alpha", alpha)
    if looks < 1:
        raise StatisticsError(f"looks={looks} is not possible; give at least 1")
    return alpha / looks


def tost(first: Array, second: Array, margin: float) -> float:
    """Return the p-value of "the means differ by at least ``margin``": small means equivalence.

    Two one-sided Welch tests; p is the larger. Schuirmann 1987; Welch 1947, as scipy has it. Without any
    spread on either side the means are compared as they are.
    """
    if not margin > 0:
        raise StatisticsError(f"margin={margin} is not a margin; give a positive number")
    if min(len(first), len(second)) < 2:
        raise StatisticsError(
            f"{len(first)} and {len(second)} samples are too few for a t-test; give at least 2 of each"
        )
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return 0.0 if abs(float(first[0] - second[0])) < margin else 1.0

    def beyond(shift: float, alternative: Literal["greater", "less"]) -> float:
        return float(
            stats.ttest_ind_from_stats(
                first.mean() + shift,
                first.std(ddof=1),
                len(first),
                second.mean(),
                second.std(ddof=1),
                len(second),
                equal_var=False,
                alternative=alternative,
            ).pvalue
        )

    return max(beyond(margin, "greater"), beyond(-margin, "less"))


@cache
def tost_power(n: int, margin: float, deviation: float, alpha: float) -> float:
    """Return the power of :func:`tost` with ``n`` per side, both of standard deviation ``deviation``, at equal means.

    Equivalence is found if |difference of means| < margin - t s sqrt(2/n); given s (scaled chi with 2(n-1) degrees of
    freedom) that is a normal probability, averaged here over 2,000 quantiles of s. Phillips 1990, equation 2.
    """
    _level("alpha", alpha)
    if n < 2:
        return 0.0
    if deviation <= 0:
        return 1.0
    freedom = 2 * (n - 1)
    quantiles = (np.arange(2000) + 0.5) / 2000
    spread = deviation * np.sqrt(stats.chi2.ppf(quantiles, freedom) / freedom)
    error = math.sqrt(2 / n)
    room = margin - stats.t.ppf(1 - alpha, freedom) * spread * error
    inside = 2 * stats.norm.cdf(np.maximum(room, 0) / (deviation * error)) - 1
    return float(np.mean(inside))


@cache
def tost_size(margin: float, deviation: float, alpha: float, power: float, most: int = 100_000) -> int:
    """Return the least n per side with :func:`tost_power` of at least ``power``. StatisticsError if ``most`` is too few."""
    _level("power", power)
    low, high = 1, 2
    while tost_power(high, margin, deviation, alpha) < power:
        if high >= most:
            raise StatisticsError(
                f"no {most} samples per side reach power {power} for margin {margin} at deviation {deviation}; widen the margin"
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tost_power(middle, margin, deviation, alpha) >= power else (middle, high)
    return high


def _level(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise StatisticsError(f"{name}={value} is out of range; give a number between 0 and 1")
