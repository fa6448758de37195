"""Intervals, bounds and tests against closed forms, against scipy's own, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from verify.statistics import (
    StatisticsError,
    clopper_pearson,
    distances,
    energy_distance,
    epsilon_lower_bound,
    holm,
    mmd,
    per_look,
    rbf_kernel,
    tost,
    tost_power,
    tost_size,
    two_sample,
)


def test_the_exact_interval_has_its_closed_form_at_the_ends() -> None:
    low, high = clopper_pearson(0, 10, 0.95)
    assert low == 0
    assert high == pytest.approx(1 - 0.025**0.1)
    assert clopper_pearson(10, 10, 0.95) == pytest.approx((0.025**0.1, 1))
    assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)


def test_the_exact_interval_is_the_one_of_beta_quantiles() -> None:
    for hits in range(1, 7):
        low, high = clopper_pearson(hits, 7, 0.9)
        assert low == pytest.approx(stats.beta.ppf(0.05, hits, 7 - hits + 1))
        assert high == pytest.approx(stats.beta.ppf(0.95, hits + 1, 7 - hits) if hits < 7 else 1)


def test_the_exact_interval_covers_at_least_what_it_says() -> None:
    for rate in (0.02, 0.3, 0.5, 0.9):
        covered = 0.0
        for hits in range(21):
            low, high = clopper_pearson(hits, 20, 0.9)
            if low <= rate <= high:
                covered += float(stats.binom.pmf(hits, 20, rate))
        assert covered >= 0.9


@pytest.mark.parametrize(("hits", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(hits: int, trials: int) -> None:
    with pytest.raises(StatisticsError, match=f"{hits} hits in {trials} trials"):
        clopper_pearson(hits, trials, 0.95)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
def test_levels_lie_between_0_and_1(level: float) -> None:
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        clopper_pearson(1, 2, level)
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        per_look(level, 1)
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        tost_size(1, 1, 0.05, level)


def test_a_perfect_attack_gives_the_bound_of_the_exact_intervals() -> None:
    bound = epsilon_lower_bound(50, 50, 0, 50, 0.0, 0.95)
    edge = 0.025 ** (1 / 50)
    assert bound.low == pytest.approx(math.log(edge / (1 - edge)))
    assert (bound.tpr, bound.fpr) == (1, 0)
    assert (bound.tpr_low, bound.fpr_high) == pytest.approx((edge, 1 - edge))


def test_either_direction_bounds_epsilon() -> None:
    """A sure guess of "met" comes from few false positives, a sure guess of "not met" from few false negatives."""
    sure = epsilon_lower_bound(300, 1000, 0, 1000, 0.0, 0.95)
    assert sure.low == pytest.approx(math.log(sure.tpr_low / sure.fpr_high))
    mirrored = epsilon_lower_bound(1000, 1000, 700, 1000, 0.0, 0.95)
    assert mirrored.low == pytest.approx(sure.low)


def test_delta_lowers_the_bound_and_guessing_gives_none() -> None:
    assert epsilon_lower_bound(90, 100, 5, 100, 0.1, 0.95).low < epsilon_lower_bound(90, 100, 5, 100, 0.0, 0.95).low
    assert epsilon_lower_bound(50, 100, 50, 100, 0.0, 0.95).low == 0
    assert epsilon_lower_bound(5, 100, 95, 100, 0.0, 0.95).low == 0
    assert epsilon_lower_bound(1, 100, 0, 100, 0.99, 0.95).low == 0
    with pytest.raises(StatisticsError, match=r"delta=1\.0"):
        epsilon_lower_bound(1, 1, 0, 1, 1.0, 0.95)


def test_without_trials_there_is_no_bound() -> None:
    bound = epsilon_lower_bound(0, 0, 0, 10, 0.0, 0.95)
    assert bound.low == 0 and math.isnan(bound.tpr)
    assert math.isnan(epsilon_lower_bound(1, 1, 0, 0, 0.0, 0.95).fpr)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_the_bound_exceeds_the_true_epsilon_as_rarely_as_stated(epsilon: float) -> None:
    """Randomised response with 40 trials per world, over all outcomes: the error is at most 1 - confidence."""
    rate, error, counts = math.exp(epsilon) / (1 + math.exp(epsilon)), 0.0, range(41)
    for hits in counts:
        for false in counts:
            if epsilon_lower_bound(hits, 40, false, 40, 0.0, 0.9).low > epsilon:
                error += float(stats.binom.pmf(hits, 40, rate) * stats.binom.pmf(false, 40, 1 - rate))
    assert error <= 0.1


def test_energy_distance_is_that_of_scipy_in_one_dimension() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 1)), rng.normal(1, 2, size=(7, 1))
    between = distances(np.concatenate([x, y]))
    ours = energy_distance(between, np.arange(9), np.arange(9, 16))
    assert float(ours) == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]) ** 2)


def test_mmd_is_the_slow_sum_over_pairs() -> None:
    rng = np.random.default_rng(2)
    pooled = rng.normal(size=(11, 3))
    kernel = rbf_kernel(distances(pooled))
    x, y = range(6), range(6, 11)
    slow = np.mean([kernel[i, j] for i in x for j in x if i != j]) + np.mean(
        [kernel[i, j] for i in y for j in y if i != j]
    )
    slow -= 2 * np.mean([kernel[i, j] for i in x for j in y])
    assert float(mmd(kernel, np.array(x), np.array(y))) == pytest.approx(slow)


def test_the_kernels_width_is_the_median_of_distances() -> None:
    between = distances(np.array([[0.0], [1.0], [3.0]]))
    assert rbf_kernel(between)[0, 1] == pytest.approx(math.exp(-1 / (2 * 2**2)))
    assert (rbf_kernel(np.zeros((3, 3))) == 1).all()
    lone = distances(np.array([[0.0], [0.0], [0.0], [5.0]]))
    assert rbf_kernel(lone)[0, 3] == pytest.approx(math.exp(-0.5))


def test_small_samples_are_permuted_exhaustively() -> None:
    x, y = np.array([[0.0], [0.1]]), np.array([[5.0], [5.2]])
    found = two_sample(x, y, 999)
    assert found["energy distance"].p == pytest.approx(2 / 6)
    assert found["energy distance"].statistic == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]) ** 2)


def test_a_clear_difference_gets_the_least_p_value() -> None:
    rng = np.random.default_rng(3)
    found = two_sample(rng.normal(size=(20, 2)), rng.normal(3, 1, size=(20, 2)), 199)
    assert {name: outcome.p for name, outcome in found.items()} == {"energy distance": 1 / 200, "MMD": 1 / 200}


def test_the_same_seed_gives_the_same_p_value() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(12, 2))
    assert two_sample(x, y, 99, seed=5) == two_sample(x, y, 99, seed=5)


def test_permutation_tests_keep_their_level() -> None:
    rng, alarms = np.random.default_rng(5), {"energy distance": 0, "MMD": 0}
    for number in range(200):
        found = two_sample(rng.normal(size=(8, 3)), rng.normal(size=(8, 3)), 99, seed=number)
        for name, outcome in found.items():
            alarms[name] += outcome.p <= 0.1
    assert max(alarms.values()) <= stats.binom.ppf(0.999, 200, 0.1)
    assert min(alarms.values()) >= stats.binom.ppf(0.001, 200, 0.1)


def test_a_difference_of_spread_alone_is_seen() -> None:
    rng = np.random.default_rng(6)
    found = two_sample(rng.normal(size=(60, 2)), rng.normal(0, 3, size=(60, 2)), 199)
    assert max(outcome.p for outcome in found.values()) < 0.05


def test_samples_that_are_all_alike_do_not_differ() -> None:
    found = two_sample(np.ones((3, 2)), np.ones((3, 2)))
    assert [outcome.p for outcome in found.values()] == [1, 1]


def test_samples_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(StatisticsError, match="1 and 3 samples"):
        two_sample(np.ones((1, 2)), np.ones((3, 2)))
    with pytest.raises(StatisticsError, match="not finite"):
        two_sample(np.array([[1.0], [math.nan]]), np.ones((2, 1)))


def test_holm_steps_down() -> None:
    assert holm([0.04, 0.01], 0.05) == (True, True)
    assert holm([0.04, 0.03], 0.05) == (False, False)
    assert holm([0.2, 0.001, 0.02], 0.05) == (False, True, True)
    assert holm([0.03, 0.02], 0.05) == (True, True)
    assert holm([], 0.05) == ()


def test_looks_share_the_level() -> None:
    assert per_look(0.05, 5) == pytest.approx(0.01)
    with pytest.raises(StatisticsError, match="looks=0"):
        per_look(0.05, 0)


def test_equivalence_is_two_one_sided_tests() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=15), rng.normal(0.2, 2, size=11)
    sides = [
        stats.ttest_ind(x, y - 1.5, equal_var=False, alternative="greater").pvalue,
        stats.ttest_ind(x, y + 1.5, equal_var=False, alternative="less").pvalue,
    ]
    assert tost(x, y, 1.5) == pytest.approx(max(sides))
    assert tost(x, y, 1.5) == pytest.approx(tost(y, x, 1.5))


def test_equivalence_without_spread_compares_the_means() -> None:
    x = np.array([1.0, 1.0])
    assert tost(x, x + 0.5, 0.6) == 0
    assert tost(x, x + 0.5, 0.4) == tost(x, x + 0.5, 0.5) == 1


def test_equivalence_needs_a_margin_and_samples() -> None:
    with pytest.raises(StatisticsError, match="margin=0"):
        tost(np.ones(3), np.ones(3), 0)
    with pytest.raises(StatisticsError, match="1 and 3 samples"):
        tost(np.ones(1), np.ones(3), 1)


def test_a_difference_of_the_margin_is_called_equivalent_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(8)
    wrong = sum(tost(rng.normal(size=12), rng.normal(1, 1, size=12), 1.0) <= 0.05 for _ in range(400))
    assert wrong <= stats.binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize(("n", "margin"), [(6, 1.5), (12, 1.0), (40, 0.5)])
def test_the_power_of_equivalence_is_that_of_simulation(n: int, margin: float) -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(4000, n)), rng.normal(size=(4000, n))
    half = stats.t.ppf(0.95, 2 * (n - 1)) * np.sqrt((x.var(1, ddof=1) + y.var(1, ddof=1)) / n)
    share = float((np.abs(x.mean(1) - y.mean(1)) < margin - half).mean())
    assert tost_power(n, margin, 1.0, 0.05) == pytest.approx(share, abs=0.025)


def test_power_depends_on_margin_over_deviation_alone() -> None:
    assert tost_power(10, 0.5, 0.5, 0.05) == pytest.approx(tost_power(10, 3, 3, 0.05))
    assert tost_power(1, 1, 1, 0.05) == 0
    assert tost_power(5, 1, 0, 0.05) == 1
    with pytest.raises(StatisticsError, match="alpha"):
        tost_power(5, 1, 1, 0)


@pytest.mark.parametrize(("margin", "power"), [(0.5, 0.9), (1.0, 0.8), (1.0, 0.975), (9.0, 0.5)])
def test_the_sample_size_is_the_least_that_has_the_power(margin: float, power: float) -> None:
    n = tost_size(margin, 1.0, 0.05, power)
    assert tost_power(n, margin, 1.0, 0.05) >= power
    assert n == 2 or tost_power(n - 1, margin, 1.0, 0.05) < power


def test_a_margin_that_no_sample_size_reaches_is_refused() -> None:
    with pytest.raises(StatisticsError, match=r"no 100 samples per side reach power 0\.9"):
        tost_size(0.01, 1.0, 0.05, 0.9, most=100)
