"""Accuracy, cost and storage of every method over the same stream of deletions, for every seed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.life import Life, Point, live, stream
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench

COSTS = {
    "record passes": ("record_passes", "records x epochs"),
    "layer passes": ("layer_passes", "records x epochs x layers"),
    "optimizer steps": ("optimizer_steps", "steps"),
    "seconds": ("seconds", "s"),
    "down seconds": ("down_seconds", "s"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark per data set, method, budget and seed of the profile, or of the first of its seeds that were asked for."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    seeds = profile.seeds[: metafunc.config.getoption("--most-seeds")]
    cases = [(*case, True) for case in profile.cases] + [(*case, False) for case in profile.healthy]
    metafunc.parametrize(
        ("data", "method", "budget", "deletes", "seed"),
        [(data, *case, seed) for data in profile.data for case in cases for seed in seeds],
        ids=lambda value: str(value),
    )


def test_life(benchmark: Any, bench: Workbench, data: str, method: str, budget: int, deletes: bool, seed: int) -> None:
    benchmark.group = f"life: {data}"
    layout = bench.layout(method, budget)
    about: dict[str, Any] = {
        "method": method,
        "budget": budget,
        "shards": layout.shards,
        "slices": layout.slices,
        "data": bench.dataset(data).name,
        "model": bench.profile.model,
        "seed": seed,
    }
    with bench.answering(question="accuracy", metric="test accuracy", **about):
        life = benchmark.pedantic(_measure, args=(bench, data, method, budget, deletes, seed), rounds=1, iterations=1)
    test = len(bench.dataset(data).test)
    for point in life.points:
        _add_point(bench, point, test, about)
    _add_per_deletion(bench, life, about)
    upfront = life.points[0].cost
    bench.add(
        question="storage", metric="bytes stored", unit="bytes", value=upfront.bytes, n=1, kind="measured", **about
    )
    benchmark.extra_info.update(record_passes=upfront.record_passes, accuracy=life.points[0].accuracy)
    assert all(0.0 <= point.accuracy <= 1.0 for point in life.points)
    assert upfront.record_passes > 0


def _measure(bench: Workbench, data: str, method: str, budget: int, deletes: bool, seed: int) -> Life:
    dataset, profile = bench.dataset(data), bench.profile
    system = bench.trained(method, budget, data, seed)
    try:
        eager = system.config.plan.eager
        checkpoints = (profile.eager_checkpoints if eager else profile.checkpoints) if deletes else (0,)
        requests = stream([record.id for record in dataset.train], profile.checkpoints[-1], seed)[: checkpoints[-1]]
        return live(system, dataset.test, requests, checkpoints, individually=profile.individually if eager else None)
    finally:
        system.close()


def _add_point(bench: Workbench, point: Point, test: int, about: dict[str, Any]) -> None:
    bench.add(
        question="accuracy",
        metric="test accuracy",
        unit="share",
        value=point.accuracy,
        n=test,
        kind="measured",
        deletions=point.deletions,
        extra={"offline": point.offline, "kernel": bench.mode.kernel},
        **about,
    )
    for metric, (field, unit) in COSTS.items():
        bench.add(
            question="cost",
            metric=metric,
            unit=unit,
            value=getattr(point.cost, field),
            n=1,
            kind="derived" if point.derived else "measured",
            deletions=point.deletions,
            extra={"kernel": bench.mode.kernel},
            **about,
        )


def _add_per_deletion(bench: Workbench, life: Life, about: dict[str, Any]) -> None:
    for metric, (field, unit) in COSTS.items():
        values = [getattr(cost, field) for cost in life.per_deletion]
        if values:
            bench.add(
                question="cost",
                metric=f"{metric} per deletion",
                unit=f"{unit} per deletion",
                value=sum(values) / len(values),
                n=len(values),
                kind="measured",
                extra={"kernel": bench.mode.kernel},
                **about,
            )
