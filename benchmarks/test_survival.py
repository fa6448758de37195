"""How long shards live by layout, and what is left in service on the way: exact, simulated, and the paper's formula."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.workbench import Workbench
from s3t.capacity import Demand, expected_share, gap, gap_of_the_paper, requests_to_dead, simulate, survival
from s3t.orders import cyclic

EVENTS = ("first", "half", "last")
CURVES = (5, 6)
"""Shards and slices of the curves (SPEC's example)."""
BUDGETS = (1, 2, 3, 6, 720)
AFTER = (0, 2, 5, 10, 15, 20, 30, 40, 60, 80, 100, 130)
KEPT = (1, 2, 3)
PAPER_REQUESTS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30)
PAPER = (6, 3)
"""Slices and budget where the paper's gap is drawn beside the exact one."""


@dataclass(frozen=True)
class Size:
    """Layouts of the grid: shards and slices, with every budget up to the slices, and all orders up to four slices."""

    shards: tuple[int, ...]
    slices: tuple[int, ...]

    def layouts(self) -> Iterator[tuple[int, int, int]]:
        """Yield shards, slices, budget."""
        for m in self.shards:
            for pieces in self.slices:
                budgets = {*range(1, pieces + 1), *([math.factorial(pieces)] if pieces <= 4 else [])}
                yield from ((m, pieces, budget) for budget in sorted(budgets))


SMALL, WHOLE = Size((2,), (1, 3)), Size((1, 2, 5, 10, 20), (1, 2, 3, 4, 6, 8))


def _size(bench: Workbench) -> Size:
    return SMALL if bench.profile.name == "smoke" else WHOLE


def test_requests_until_shards_are_dead(benchmark: Any, bench: Workbench) -> None:
    """Every layout of the grid: uniform requests until the first shard, half of them, and the last one is dead."""
    benchmark.group = "survival: layouts"
    layouts = list(_size(bench).layouts())

    def exact() -> list[list[float]]:
        return [
            [requests_to_dead(Demand.uniform(m, pieces), cyclic(pieces, budget), k) for k in (1, (m + 1) // 2, m)]
            for m, pieces, budget in layouts
        ]

    about: dict[str, Any] = {"question": "survival", "metric": "requests until dead", "unit": "requests"}
    with bench.answering(**about, method="s3t", budget=1, shards=1, slices=1):
        derived = benchmark.pedantic(exact, rounds=1, iterations=1)
    misses = 0
    for (m, pieces, budget), values in zip(layouts, derived, strict=True):
        found = simulate(Demand.uniform(m, pieces), cyclic(pieces, budget), trials=bench.profile.stream_trials, seed=0)
        here = {**about, "method": "s3t", "shards": m, "slices": pieces, "budget": budget}
        for event, value, told in zip(EVENTS, values, (found.first, found.half, found.last), strict=True):
            low, high = told.interval()
            bench.add(**here, value=value, n=1, kind="derived", extra={"event": event})
            bench.add(
                **here,
                value=told.mean,
                low=low,
                high=high,
                confidence=0.95,
                n=told.trials,
                kind="simulated",
                seed=0,
                extra={"event": event},
            )
            misses += abs(told.deviation(value)) > 3
    assert misses <= 5 + 0.01 * 3 * len(layouts)


@pytest.mark.parametrize("budget", BUDGETS)
def test_share_in_service(benchmark: Any, bench: Workbench, budget: int) -> None:
    benchmark.group = "survival: share in service"
    m, pieces = CURVES
    demand, orders = Demand.uniform(m, pieces), cyclic(pieces, budget)

    def exact() -> list[float]:
        return [expected_share(demand, orders, requests) for requests in AFTER]

    about: dict[str, Any] = {"question": "survival", "metric": "share in service", "unit": "share", "method": "s3t"}
    about |= {"shards": m, "slices": pieces, "budget": budget}
    with bench.answering(**about):
        derived = benchmark.pedantic(exact, rounds=1, iterations=1)
    trials = bench.profile.stream_trials
    found = simulate(demand, orders, trials=trials, seed=0, after=AFTER[1:])
    for requests, value in zip(AFTER, derived, strict=True):
        bench.add(**about, value=value, n=1, kind="derived", deletions=requests)
    for requests, told in zip(AFTER[1:], found.in_service, strict=True):
        low, high = told.interval()
        at = {"deletions": requests, "low": low, "high": high, "confidence": 0.95, "n": told.trials, "seed": 0}
        bench.add(**about, value=told.mean, kind="simulated", **at)
        assert abs(told.deviation(derived[AFTER.index(requests)])) < 5


@pytest.mark.parametrize("j", KEPT)
def test_the_papers_gap(benchmark: Any, bench: Workbench, j: int) -> None:
    """P(some order keeps its first j slices) of one shard: exact, and the paper's as if orders were independent."""
    benchmark.group = "survival: the paper's gap"
    pieces, budget = PAPER
    about: dict[str, Any] = {
        "question": "survival",
        "metric": "some order keeps its first slices",
        "unit": "probability",
    }
    about |= {"method": "s3t", "shards": 1, "slices": pieces, "budget": budget, "n": 1, "extra": {"j": j}}
    orders = cyclic(pieces, budget)

    def both() -> list[tuple[float, float]]:
        return [(gap(orders, j, r), gap_of_the_paper(pieces, j, budget, r)) for r in PAPER_REQUESTS]

    for requests, (exact, paper) in zip(PAPER_REQUESTS, benchmark.pedantic(both, rounds=1, iterations=1), strict=True):
        one = survival(pieces, j, requests)
        bench.add(**about, value=one + exact, kind="derived", deletions=requests)
        bench.add(**about, value=one + paper, kind="claimed", deletions=requests)
