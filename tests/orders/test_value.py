"""The value of a set of orders: enumeration in fractions, simulation, both ways of computing it, extreme horizons."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from s3t.capacity.survival import expected_best_length
from s3t.errors import LayoutError
from s3t.orders import cyclic, expected_best, random
from s3t.orders.checks import prior_of
from s3t.orders.value import Unhit, _by_unions, kept_lengths, unions, worths

THIRDS = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]
PRIORS = [THIRDS, [Fraction(1, 5), Fraction(0), Fraction(2, 5)], [Fraction(1), Fraction(0), Fraction(0)]]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("requests", [0, 1, 2, 4])
def test_equals_enumeration_in_fractions(enumerated, prior, requests) -> None:
    everything = list(itertools.permutations(range(3)))
    for budget in (1, 2, 3, 6):
        for orders in itertools.islice(itertools.combinations(everything, budget), 12):
            exact = enumerated(orders, prior, requests)
            assert expected_best(orders, [float(x) for x in prior], requests) == pytest.approx(float(exact), abs=1e-14)


@pytest.mark.parametrize("slices", [1, 2, 4, 7])
@pytest.mark.parametrize("horizon", [0, 1, 7, 100, 2000])
def test_both_ways_agree(slices: int, horizon: int) -> None:
    rng = np.random.default_rng([slices, horizon])
    for budget in {1, min(3, math.factorial(slices)), min(9, math.factorial(slices))}:
        p, orders = rng.dirichlet(np.ones(slices)), random(slices, budget, horizon)
        worth = worths("paper", slices)
        assert expected_best(orders, p, horizon, "paper") == pytest.approx(
            _by_unions(orders, p, horizon, worth), rel=1e-9
        )


@pytest.mark.parametrize("slices", [1, 3, 5, 8])
@pytest.mark.parametrize("horizon", [0, 4, 60])
def test_the_theory_of_capacity_says_the_same(slices: int, horizon: int) -> None:
    p = np.random.default_rng([slices, horizon]).dirichlet(np.ones(slices)) * 0.9
    orders = random(slices, min(5, math.factorial(slices)), horizon)
    assert expected_best(orders, p, horizon) == pytest.approx(expected_best_length(orders, p, horizon), rel=1e-9)


def test_one_order_gives_the_sums_of_the_scores() -> None:
    p, order, horizon = [0.4, 0.1, 0.3], (1, 2, 0), 9
    kept = [(1 - c) ** horizon for c in (0.1, 0.4, 0.8)]
    assert expected_best([order], p, horizon) == pytest.approx(sum(kept), rel=1e-13)
    assert expected_best([order], p, horizon, "paper") == pytest.approx(kept[0] + 2 * kept[1] + 3 * kept[2], rel=1e-13)


def test_agrees_with_simulation() -> None:
    trials, misses = 20_000, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        slices, horizon = int(rng.integers(2, 7)), int(rng.integers(1, 12))
        p, orders = rng.dirichlet(np.ones(slices)), random(slices, 2, seed)
        hits = np.bitwise_or.reduce(1 << rng.choice(slices, size=(trials, horizon), p=p), axis=1)
        best = kept_lengths(orders).max(axis=0)[(1 << slices) - 1 - hits]
        error = best.std() / math.sqrt(trials)
        misses += abs(best.mean() - expected_best(orders, p, horizon)) > 3 * error
    assert misses <= 1  # chance predicts 0.05


def test_the_law_of_the_unhit_set_is_a_law() -> None:
    law = Unhit.after(prior_of([0.2, 0.1, 0.3, 0.0]), 5)
    total = law.chances.sum() * math.exp(law.log_scale)
    assert total == pytest.approx(1.0, rel=1e-12)  # the slice of probability 0 is never hit, so no set is empty
    assert not law.chances[:8].any()


def test_a_large_horizon_keeps_its_relative_precision() -> None:
    value = expected_best([(0, 1), (1, 0)], [0.5, 0.5], 1000)
    assert value == pytest.approx(2 * 0.5**1000, rel=1e-12)
    assert Unhit.after(prior_of([0.9, 0.1]), 10**7).chances.max() == 1.0


def test_more_slices_than_are_tabled() -> None:
    p = np.full(20, 0.05)
    one, two = cyclic(20, 1), [tuple(range(20)), tuple(range(19, -1, -1))]
    assert expected_best(one, p, 7) == pytest.approx(sum((1 - j / 20) ** 7 for j in range(1, 21)), rel=1e-12)
    halves = sum(2 * (1 - j / 20) ** 7 - (1 - 2 * j / 20) ** 7 for j in range(1, 11))
    rest = sum(2 * (1 - j / 20) ** 7 for j in range(11, 20))
    assert expected_best(two, p, 7) == pytest.approx(halves + rest, rel=1e-12)
    with pytest.raises(LayoutError, match="more than 262144 unions"):
        expected_best(cyclic(20, 20), p, 7)


def test_unions_are_merged() -> None:
    assert unions([0b01, 0b10]) == {0b01: 1, 0b10: 1, 0b11: -1}
    assert unions([0b011, 0b110, 0b101]) == {0b011: 1, 0b110: 1, 0b101: 1, 0b111: -2}


@pytest.mark.parametrize(
    ("orders", "probabilities", "horizon", "score", "message"),
    [
        ([], [0.5, 0.5], 1, "paper", "no orders given"),
        ([(0, 0)], [0.5, 0.5], 1, "paper", r"order \(0, 0\) is not a permutation of the slices 0\.\.1"),
        ([(0, 1)], [0.5, 0.6], 1, "paper", "sum to 1.1"),
        ([(0, 1)], [0.5, 0.5], -1, "paper", "horizon=-1 is not possible"),
        ([(0, 1)], [0.5, 0.5], 1.5, "paper", "horizon=1.5 is not possible"),
        ([(0, 1)], [0.5, 0.5], 1, "papr", r"score 'papr' is unknown \(did you mean 'paper'\?\)"),
    ],
)
def test_refuses(orders, probabilities, horizon, score, message) -> None:
    with pytest.raises(LayoutError, match=message):
        expected_best(orders, probabilities, horizon, score)
