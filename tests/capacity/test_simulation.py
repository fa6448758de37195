"""The simulated request process against closed forms and the exact Markov chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from s3t.capacity import deletion_rate, simulate
from s3t.errors import LayoutError
from s3t.orders import cyclic

# Fixed before the first run, with the rule that a miss by chance is answered by more trials, never by another seed.
SEED = 0
TRIALS = 4000
CELLS = [(m, slices, b) for m in (1, 2, 5, 10) for slices in range(1, 7) for b in range(1, slices + 1)]
Chain = Callable[[int, list[tuple[int, ...]], list[Fraction]], Fraction]


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
def test_simulation_of_any_orders_and_requests_meets_the_exact_chain(
    orders: list[tuple[int, ...]], exact_capacity: Chain
) -> None:
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
