"""Simulation against exact theory over a grid of layouts, budgets and requests, with the misses that chance predicts.

The rule was fixed before the first run: a quantity of a cell misses if it lies more than 3 standard errors from theory;
a right simulation misses in 0.27 % of them, and the grid fails if a quantity has more misses over all cells than a
binomial law with that chance gives with probability 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc, ndtr

from s3t.capacity import expected_best_lengths, expected_live_shards, expected_share, requests_to_dead, simulate
from s3t.capacity.demand import Demand
from s3t.orders import cyclic
from s3t.streams import Exponential, Pareto, Population, Zipf

SHARDS = (1, 2, 3, 5, 8, 13, 20)
SLICES = (1, 2, 3, 4, 6, 8)
BOUND = 3.0
CHANCE = float(2 * ndtr(-BOUND))
LEVEL = 1e-3
QUANTITIES = (
    "first dead",
    "half dead",
    "last dead",
    "best length",
    "share of slices",
    "share of records",
    "live shards",
)


@dataclass(frozen=True, eq=False)
class Cell:
    """One simulated system: what its requests are, its layout, and its orders."""

    requests: str
    demand: Demand
    records: np.ndarray
    budget: int


@dataclass(frozen=True)
class Checked:
    """How far simulation lies from theory, in standard errors, for each of QUANTITIES."""

    cell: Cell
    deviations: tuple[float, ...]


def cells(shards: Sequence[int] = SHARDS, slices: Sequence[int] = SLICES) -> Iterator[Cell]:
    """Yield every cell: uniform, skewed with three laws of users, partly elsewhere, and two without replacement."""
    for m in shards:
        for length in slices:
            rng = np.random.default_rng([m, length])
            counts = rng.integers(1, 40, size=(m, length))
            users = Population.synthetic(counts)
            uneven = rng.integers(1, 12, size=(m, length))
            laws = {
                "uniform": (Demand.uniform(m, length), np.ones((m, length), int)),
                "exponential users": (Exponential().demand(users), counts),
                "Pareto users": (Pareto(shape=1.16).demand(users), counts),
                "Zipf users": (Zipf(exponent=1.0).demand(users), counts),
                "uniform, half elsewhere": (Demand.of(np.full((m, length), 0.5 / (m * length))), counts),
                "each record once": (Demand.once(np.full((m, length), 5)), np.full((m, length), 5)),
                "each record once, uneven slots": (Demand.once(uneven), uneven),
            }
            for name, (demand, records) in laws.items():
                assert demand is not None
                for budget in budgets(length):
                    yield Cell(name, demand, records, budget)


def budgets(slices: int) -> list[int]:
    """Return the budgets of a grid: one order, two, all rotations, and more orders than slices."""
    return sorted({min(b, math.factorial(slices)) for b in (1, 2, slices, slices + 3)})


def check(cell: Cell, trials: int, seed: int) -> Checked:
    """Simulate a cell and compare every quantity with theory; chains after half the requests that kill half the shards.

    Deaths are simulated alone, from first slices, and the chains from the first hits of all slots: both ways are checked.
    """
    demand, orders = cell.demand, cyclic(cell.demand.slices, cell.budget)
    moments = [requests_to_dead(demand, orders, k) for k in (1, (demand.shards + 1) // 2, demand.shards)]
    after = max(1, math.floor(moments[1] / 2))
    counts = None if not demand.replacement else cell.records
    dead = simulate(demand, orders, trials=trials, seed=seed)
    found = simulate(demand, orders, trials=trials, seed=seed, after=(after,), records=counts)
    exact = [
        *moments,
        float(expected_best_lengths(demand, orders, after).mean()),
        expected_share(demand, orders, after),
        expected_share(demand, orders, after, "records", records=counts),
        expected_live_shards(demand, orders, after),
    ]
    estimates = [
        dead.first,
        dead.half,
        dead.last,
        found.best_length[0],
        found.in_service[0],
        found.records_in_service[0],
        found.live[0],
    ]
    return Checked(cell, tuple(one.deviation(value) for one, value in zip(estimates, exact, strict=True)))


def misses(checked: Sequence[Checked]) -> dict[str, int]:
    """Return for each quantity how many cells miss."""
    found = np.abs([one.deviations for one in checked]) > BOUND
    return dict(zip(QUANTITIES, found.sum(axis=0).tolist(), strict=True))


def misses_allowed(count: int) -> int:
    """Return the largest number of misses among ``count`` comparisons that chance gives with probability above LEVEL."""
    return next(k for k in range(count + 1) if bdtrc(k, count, CHANCE) <= LEVEL)
