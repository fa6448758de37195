"""Capacity: closed form, integral, simulation and an exact Markov chain must tell the same story."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from s3t.capacity import (
    deletion_rate,
    deletion_rate_from,
    expected_surviving_length,
    harmonic,
    simulate,
    survival,
)
from s3t.errors import LayoutError
from s3t.orders import cyclic

# Fixed before the first run, with the rule that a miss by chance is answered by more trials, never by another seed.
SEED = 0
TRIALS = 4000
CELLS = [(m, slices, b) for m in (1, 2, 5, 10) for slices in range(1, 7) for b in range(1, slices + 1)]


def exact_capacity(shards: int, orders: list[tuple[int, ...]], probabilities: list[Fraction]) -> Fraction:
    """Slow oracle: solve the Markov chain over all sets of hit slots, exactly, from the definition of "live"."""
    slices = len(orders[0])

    def is_live(hit: frozenset[int]) -> bool:
        return any(shard * slices + order[0] not in hit for shard in range(shards) for order in orders)

    @cache
    def remaining(hit: frozenset[int]) -> Fraction:
        if not is_live(hit):
            return Fraction(0)
        fresh = [slot for slot in range(shards * slices) if slot not in hit and probabilities[slot]]
        onward = sum((probabilities[slot] * remaining(hit | {slot}) for slot in fresh), Fraction(0))
        return (1 + onward) / sum((probabilities[slot] for slot in fresh), Fraction(0))

    return remaining(frozenset())


def test_harmonic_numbers() -> None:
    assert [harmonic(n) for n in range(5)] == pytest.approx([0, 1, 1.5, 11 / 6, 25 / 12])
    assert harmonic(100_000) == pytest.approx(math.log(100_000) + 0.5772156649015329 + 1 / 200_000, abs=1e-9)


def test_published_setting() -> None:
    values = [round(deletion_rate(5, 6, budget), 2) for budget in range(1, 7)]
    assert values == [68.50, 87.87, 99.55, 107.93, 114.48, 119.85]
    assert deletion_rate(5, 6, 7) == deletion_rate(5, 6, 720) == deletion_rate(5, 6, 6)


@pytest.mark.parametrize(("shards", "slices"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 2), (8, 1)])
def test_closed_form_equals_the_exact_markov_chain(shards: int, slices: int) -> None:
    uniform = [Fraction(1, shards * slices)] * (shards * slices)
    for budget in range(1, math.factorial(slices) + 1):
        exact = exact_capacity(shards, cyclic(slices, budget), uniform)
        assert deletion_rate(shards, slices, budget) == pytest.approx(float(exact), rel=1e-13)


@pytest.mark.parametrize(("shards", "slices", "budget"), CELLS)
def test_integral_agrees_with_closed_form(shards: int, slices: int, budget: int) -> None:
    first_slices = [1 / (shards * slices)] * (shards * budget)
    assert deletion_rate_from(first_slices) == pytest.approx(deletion_rate(shards, slices, budget), rel=1e-9)


@pytest.mark.parametrize("weights", [(1, 2, 3, 4, 5, 6), (1, 1, 1, 1, 1, 95), (1, 10, 100, 1000, 10_000, 100_000)])
def test_integral_equals_the_exact_markov_chain_for_skewed_requests(weights: tuple[int, ...]) -> None:
    probabilities = [Fraction(weight, sum(weights)) for weight in weights]
    for budget in (1, 2, 3):
        orders = cyclic(3, budget)
        first = [float(probabilities[3 * shard + order[0]]) for shard in range(2) for order in orders]
        assert deletion_rate_from(first) == pytest.approx(float(exact_capacity(2, orders, probabilities)), rel=1e-9)


def test_integral_is_infinite_where_a_first_slice_is_never_hit() -> None:
    assert deletion_rate_from([0.5, 0.0]) == math.inf
    assert deletion_rate_from(0.25) == pytest.approx(4.0)


def test_simulation_meets_the_closed_form_in_every_cell() -> None:
    """84 cells, each its own stream of seed 0. A right simulation has a cell beyond 3 SE with probability 0.2 or so."""
    deviations = {}
    for shards, slices, budget in CELLS:
        simulation = simulate(shards, cyclic(slices, budget), trials=TRIALS, seed=SEED)
        expected = deletion_rate(shards, slices, budget)
        gap = abs(simulation.mean - expected)
        certain = simulation.standard_error == 0.0
        deviations[shards, slices, budget] = (
            (0.0 if gap == 0 else math.inf) if certain else gap / simulation.standard_error
        )
    missed = {cell: round(z, 2) for cell, z in deviations.items() if z > 3.0}
    assert not missed, f"{len(missed)} of {len(CELLS)} cells are beyond 3 standard errors: {missed}"
    beyond_two = sum(z > 2.0 for z in deviations.values())
    assert beyond_two <= 12, f"{beyond_two} of {len(CELLS)} cells are beyond 2 standard errors; 4 are to be expected"


@pytest.mark.parametrize("orders", [[(0, 1, 2)], [(0, 1, 2), (0, 2, 1)], [(2, 0, 1), (1, 0, 2)], cyclic(3, 6)])
def test_simulation_of_any_orders_and_requests_meets_the_exact_chain(orders: list[tuple[int, ...]]) -> None:
    weights = [5, 1, 2, 3, 1, 8]
    for probabilities in (None, [Fraction(weight, sum(weights)) for weight in weights]):
        exact = float(exact_capacity(2, orders, probabilities or [Fraction(1, 6)] * 6))
        given = None if probabilities is None else np.array(probabilities, dtype=float).reshape(2, 3)
        simulation = simulate(2, orders, trials=TRIALS, seed=SEED, probabilities=given)
        assert abs(simulation.mean - exact) < 3 * simulation.standard_error


def test_simulation_is_reproducible_and_reports_its_samples() -> None:
    first = simulate(5, cyclic(4, 2), trials=200, seed=7)
    second = simulate(5, cyclic(4, 2), trials=200, seed=7)
    assert (first.samples == second.samples).all() and first.samples.shape == (200,)
    assert first.samples.min() >= 10, "5 shards with 2 first slices each cannot die in fewer than 10 requests"
    assert first.mean == first.samples.mean() and first.trials == 200
    assert first.standard_error == pytest.approx(first.samples.std(ddof=1) / math.sqrt(200))
    assert (simulate(5, cyclic(4, 2), trials=200, seed=8).samples != first.samples).any()
    assert math.isnan(simulate(1, [(0,)], trials=1, seed=0).standard_error)


def test_survival_equals_exhaustive_enumeration() -> None:
    for slices in range(1, 5):
        for requests in range(5):
            histories = list(itertools.product(range(slices), repeat=requests))
            for j in range(slices + 1):
                kept = sum(all(hit >= j for hit in history) for history in histories)
                assert survival(slices, j, requests) == pytest.approx(kept / len(histories))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_expected_surviving_length_equals_exhaustive_enumeration(order: tuple[int, ...]) -> None:
    probabilities = [0.5, 0.2, 0.1]  # the remaining 0.2 falls in other shards: slice 3, which is no slice here
    everywhere = [*probabilities, 0.2]
    for requests in range(5):
        expected = 0.0
        for history in itertools.product(range(4), repeat=requests):
            weight = math.prod(everywhere[hit] for hit in history)
            expected += weight * len(list(itertools.takewhile(set(range(3)).difference(history).__contains__, order)))
        assert expected_surviving_length(order, probabilities, requests) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: harmonic(-1), r"harmonic number of -1"),
        (lambda: deletion_rate(0, 4, 1), r"shards=0 is not possible"),
        (lambda: deletion_rate(5, 3, 7), r"budget=7 exceeds the 6 orders"),
        (lambda: deletion_rate_from([]), r"no probabilities given"),
        (lambda: deletion_rate_from([0.2, -0.1]), r"probability -0\.1 is out of range: give 0 to 1"),
        (lambda: deletion_rate_from([0.2, math.nan]), r"probability nan is out of range"),
        (lambda: deletion_rate_from([0.7, 0.7]), r"probabilities sum to 1\.4: they may sum to 1 at most"),
        (lambda: survival(4, 5, 1), r"j=5 first slices do not fit an order of 4: give 0\.\.4"),
        (lambda: survival(4, 2, -1), r"requests=-1 is not possible"),
        (lambda: expected_surviving_length((0, 0), [0.5, 0.5], 1), r"order \(0, 0\) is not a permutation"),
        (lambda: simulate(2, [], trials=9, seed=0), r"slices=0 is not possible"),
        (lambda: simulate(2, [(0, 1), (1,)], trials=9, seed=0), r"order \(1,\) is not a permutation"),
        (lambda: simulate(2, [(0, 1)], trials=0, seed=0), r"trials=0 is not possible"),
        (lambda: simulate(2, [(0, 1)], trials=9, seed=0, probabilities=[0.5, 0.5]), r"shape \(2,\) do not fit"),
        (
            lambda: simulate(1, [(0, 1)], trials=9, seed=0, probabilities=[[0.5, 0.4]]),
            r"sum to 0\.9: they must sum to 1",
        ),
        (lambda: simulate(1, [(0, 1)], trials=9, seed=0, probabilities=[[0.0, 1.0]]), r"may never die"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
