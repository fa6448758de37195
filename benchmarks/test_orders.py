"""How far each rule for orders is from the best orders, and how often matching is worse than a draw of conditional sampling.

Every number is the exact expected length of the best chain that one shard keeps (docs/DERIVATION.md, "Orders"); nothing is
trained or simulated. Rules get the same prior, budget and horizon; those that draw get one draw per prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.rows import interval
from benchmarks.selection import CONCENTRATIONS, DRAWN, FAMILIES, priors, shares_of_the_optimum, value_of
from benchmarks.workbench import Workbench
from s3t.orders import conditional, matching
from s3t.orders.value import SCORES, Unhit

SAME = 1e-9
"""Values whose ratio is closer to 1 than this are the same."""
MOST = 12
"""Slices up to which matching is compared with conditional sampling, with as many orders as slices."""


@dataclass(frozen=True)
class Size:
    """``slices``, ``horizons``, ``draws`` (per family of priors): first study. ``priors``: per slices, by horizon: second."""

    slices: tuple[int, ...]
    horizons: tuple[int, ...]
    draws: int
    priors: Mapping[int, int]


WHOLE = Size((2, 3, 4, 5), (5, 20, 100), 20, {100: 1000, 5: 100, 20: 100, 1000: 100})
SIZES = {"smoke": Size((2, 3, 4), (20,), 3, {100: 5}), "quick": Size((2, 3, 4, 5), (20,), 6, {100: 100})}
"""By profile; health and full have the whole studies, about three minutes."""


def _size(bench: Workbench) -> Size:
    return SIZES.get(bench.profile.name, WHOLE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The second study's horizons at the profile, each with its number of priors."""
    if "horizon" in metafunc.fixturenames:
        size = SIZES.get(metafunc.config.getoption("--profile"), WHOLE)
        metafunc.parametrize(("horizon", "count"), size.priors.items(), ids=map(str, size.priors))


@pytest.mark.parametrize("family", [*FAMILIES, DRAWN])
def test_how_far_each_rule_is_from_the_optimum(benchmark: Any, bench: Workbench, family: str) -> None:
    """All budgets up to the width of the lattice of subsets, from which on the optimum keeps every unhit slice."""
    benchmark.group = "orders: share of the optimum"
    size = _size(bench)
    about: dict[str, Any] = {"question": "orders", "metric": "share of the optimum", "unit": "share"}
    cells = [
        (slices, budget, horizon)
        for slices in size.slices
        for budget in range(1, math.comb(slices, slices // 2) + 1)
        for horizon in size.horizons
    ]

    def run() -> list[tuple[dict[str, list[float]], int]]:
        return [shares_of_the_optimum(family, *cell, size.draws) for cell in cells]

    with bench.answering(**about, method="s3t", budget=1, shards=1, slices=max(size.slices)):
        found = benchmark.pedantic(run, rounds=1, iterations=1)
    for (slices, budget, horizon), (shares, proven) in zip(cells, found, strict=True):
        assert proven == size.draws
        for name, values in shares.items():
            mean, low, high = interval(values)
            bench.add(
                **about,
                method="s3t",
                budget=budget,
                shards=1,
                slices=slices,
                value=mean,
                low=low,
                high=high,
                confidence=None if low is None else 0.95,
                n=len(values),
                kind="derived",
                extra={"rule": name, "prior": family, "horizon": horizon, "least": min(values), "proven": proven},
            )


def test_matching_against_conditional_sampling(benchmark: Any, bench: Workbench, horizon: int, count: int) -> None:
    """As many orders as slices; the draw of prior i has seed i. Every matching must be a Latin square."""
    benchmark.group = "orders: matching against conditional sampling"
    about: dict[str, Any] = {"question": "orders", "metric": "priors where worse than conditional", "unit": "share"}

    def run() -> dict[tuple[str, int], list[float]]:
        return dict(_ratios(horizon, count))

    with bench.answering(**about, method="s3t", budget=MOST, shards=1, slices=MOST):
        ratios = benchmark.pedantic(run, rounds=1, iterations=1)
    for (score, slices), values in ratios.items():
        worse = [value > 1.0 + SAME for value in values]
        extra = {
            "rule": f"matching ({score})",
            "against": "conditional, one draw per prior, seed = number of the prior",
            "prior": f"Dirichlet, concentrations {CONCENTRATIONS} in turn",
            "horizon": horizon,
            "mean of conditional / matching": math.fsum(values) / len(values),
            "most of conditional / matching": max(values),
            "Latin squares": len(values),
        }
        bench.add(
            **about,
            method="s3t",
            budget=slices,
            shards=1,
            slices=slices,
            value=sum(worse) / len(worse),
            n=len(worse),
            kind="derived",
            extra=extra,
        )
    if horizon == 100 and count >= 1000:
        ours = [value for (score, _), values in ratios.items() if score == "expected_length" for value in values]
        assert sum(value > 1.0 + SAME for value in ours) <= 0.01 * len(ours)


def _ratios(horizon: int, count: int) -> Iterator[tuple[tuple[str, int], list[float]]]:
    """Yield, per score and slices, the value of a conditional draw over that of matching, one per prior."""
    for slices in range(1, MOST + 1):
        found: dict[str, list[float]] = {score: [] for score in SCORES}
        for seed, prior in enumerate(priors(DRAWN, slices, count)):
            law = Unhit.after(prior, horizon)
            drawn = value_of(law, conditional(prior, slices, seed))
            for score in SCORES:
                rows = matching(prior, horizon, score)
                assert all(sorted(line) == list(range(slices)) for line in [*rows, *zip(*rows, strict=True)])
                found[score].append(drawn / value if (value := value_of(law, rows)) else 1.0)
        yield from (((score, slices), values) for score, values in found.items())
