"""Demand: what it refuses, and the probability of missing slots against exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.capacity import Demand
from s3t.capacity.hypergeometric import log_binomial, log_poisson
from s3t.errors import LayoutError


def exact_miss(records: int, weight: int, draws: int) -> Fraction:
    """C(N - w, r) / C(N, r) as a product over the smaller of w and r."""
    if weight + draws > records:
        return Fraction(0)
    few, many = sorted((weight, draws))
    top = math.prod(records - many - i for i in range(few))
    return Fraction(top, math.prod(records - i for i in range(few)))


@given(st.integers(0, 12), st.integers(0, 400), st.integers(0, 10**12), st.integers(0, 10**12), st.booleans())
@settings(deadline=None, max_examples=400)
def test_unhit_without_replacement_equals_fractions(digits: int, few: int, records: int, many: int, swap: bool) -> None:
    records = records % 10**digits + 1
    few, many = min(few, records), many % (records + 1)
    weight, draws = (few, many) if swap else (many, few)
    exact = exact_miss(records, weight, draws)
    demand = Demand.once([[weight, records - weight]])
    got = float(demand.unhit(weight, draws))
    if exact and float(exact) > 1e-290:
        assert got == pytest.approx(float(exact), rel=1e-12)
    else:
        assert 0.0 <= got < 1e-280


def test_unhit_at_the_ends() -> None:
    once = Demand.once([[3, 2]])
    assert once.unhit([0, 3, 5], 0).tolist() == [1, 1, 1]
    assert once.unhit(0, [0, 1, 5]).tolist() == pytest.approx([1, 1, 1], rel=1e-14)
    assert once.unhit(3, 2) == pytest.approx(0.1, rel=1e-14)
    assert once.unhit(3, [3, 4, 5]).tolist() == [0, 0, 0]
    forever = Demand.of([[0.25, 0.75]])
    assert forever.unhit([0.0, 0.25, 1.0, 1.0000000001], 2).tolist() == pytest.approx([1, 0.5625, 0, 0])
    assert forever.unhit([0.0, 1.0], 0).tolist() == [1, 1]
    assert forever.unhit(1e-12, 10**12) == pytest.approx(math.exp(-1.0), rel=1e-11), (
        "1 - 1e-12 has lost its last digits"
    )


@pytest.mark.parametrize(
    ("count", "mean"), [(1, 1.0), (3, 0.5), (40, 60.0), (1000, 990.0), (1000, 1009.9), (1000, 1010.1)]
)
def test_poisson_equals_its_definition(count: int, mean: float) -> None:
    expected = count * math.log(mean) - mean - math.log(math.factorial(count))
    assert log_poisson(count, mean) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "trials", "chance"), [(1, 2, 0.5), (3, 40, 0.1), (700, 1000, 0.69)])
def test_binomial_equals_its_definition(count: int, trials: int, chance: float) -> None:
    expected = math.log(math.comb(trials, count)) + count * math.log(chance) + (trials - count) * math.log1p(-chance)
    assert log_binomial(count, trials, chance / (1 - chance)) == pytest.approx(expected, rel=1e-11)


def test_a_demand_is_checked_copied_and_frozen() -> None:
    given_weights = np.array([[0.5, 0.25]])
    demand = Demand(given_weights)
    given_weights[0, 0] = 0.9
    assert demand.weights.tolist() == [[0.5, 0.25]]
    with pytest.raises(ValueError, match="read-only"):
        demand.weights[0, 0] = 1.0
    assert (demand.shards, demand.slices, demand.total) == (1, 2, 0.75)
    assert Demand.uniform(2, 3).total == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Demand.uniform(0, 2), r"shards=0 is not possible"),
        (lambda: Demand.of([0.5, 0.5]), r"probabilities of shape \(2,\) do not fit: give one per slot"),
        (lambda: Demand.of([[]]), r"no probabilities given"),
        (lambda: Demand.of([[0.6, 0.6]]), r"sum to 1\.2: they may sum to 1 at most"),
        (lambda: Demand.of([[math.nan, 0.6]]), r"probability nan is out of range"),
        (lambda: Demand(np.array([[1.5]])), r"probability 1\.5 is out of range"),
        (lambda: Demand.once([3, 4]), r"records of shape \(2,\) do not fit"),
        (lambda: Demand.once([[1.5, 2]]), r"whole numbers of at least 0, not \[1\.5, 2\.0\]"),
        (lambda: Demand.once([[-1, 2]]), r"whole numbers of at least 0, not \[-1, 2\]"),
        (lambda: Demand.once([[math.inf, 2]]), r"whole numbers of at least 0"),
        (lambda: Demand.once([["many"]]), r"whole numbers of at least 0, not \['many'\]"),
        (lambda: Demand.once([]), r"no records given"),
        (lambda: Demand.once([[1, 2]]).unhit(1, 4), r"requests=4 exceeds the 3 records: each is requested once"),
    ],
)
def test_impossible_demands_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
