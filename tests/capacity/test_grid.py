"""Simulation within 3 standard errors of theory, as often as chance has it; the rule stands in benchmarks/grid.py."""

from __future__ import annotations

import dataclasses

import pytest
from scipy.stats import binom

from benchmarks import grid
from s3t.capacity.demand import Demand

SEED = 0


def agree(checked: list[grid.Checked]) -> None:
    allowed, found = grid.misses_allowed(len(checked)), grid.misses(checked)
    told = f"{len(checked)} cells, {grid.CHANCE * len(checked):.1f} misses expected, at most {allowed} allowed: {found}"
    assert max(found.values()) <= allowed, told


def test_simulation_meets_theory_on_a_small_grid() -> None:
    agree([grid.check(cell, 3000, SEED) for cell in grid.cells((1, 3), (1, 4))])


@pytest.mark.slow
def test_simulation_meets_theory_on_the_whole_grid() -> None:
    checked = [grid.check(cell, 10_000, SEED) for cell in grid.cells()]
    assert len(checked) >= 500
    assert len({(one.cell.requests, one.cell.demand.weights.shape, one.cell.budget) for one in checked}) == len(checked)
    agree(checked)


@pytest.mark.parametrize("fault", ["demand", "budget"])
def test_a_wrong_simulation_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule rejects planted faults: requests that are 2 % off, and one order too many or too few."""
    honest = grid.simulate

    def wrong(demand: Demand, orders: list[tuple[int, ...]], **rest: object) -> object:
        if fault == "demand":
            demand = dataclasses.replace(demand, weights=demand.weights * 0.98)
        else:
            orders = orders[:-1] if len(orders) > 1 else [tuple(reversed(orders[0])), *orders]
        return honest(demand, orders, **rest)

    monkeypatch.setattr(grid, "simulate", wrong)
    chosen = [cell for cell in grid.cells((3, 8), (4,)) if cell.demand.replacement]
    checked = [grid.check(cell, 10_000, SEED) for cell in chosen]
    assert max(grid.misses(checked).values()) > grid.misses_allowed(len(checked))


def test_the_allowed_misses_are_a_binomial_quantile() -> None:
    for count in (1, 10, 84, 500, 931):
        allowed = grid.misses_allowed(count)
        assert binom.sf(allowed, count, grid.CHANCE) <= grid.LEVEL < binom.sf(allowed - 1, count, grid.CHANCE)
    assert abs(grid.CHANCE - 0.0026998) < 1e-6
