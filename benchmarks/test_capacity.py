"""Deletion capacity: closed form, simulation and the real system side by side (arXiv 2406.16257, section 4)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.life import stream
from benchmarks.rows import interval
from benchmarks.synthetic import synthetic
from benchmarks.workbench import Workbench, describe
from s3t.capacity import deletion_rate, simulate
from s3t.capacity.demand import Demand
from s3t.orders import cyclic
from s3t.records import Layout, Recipe
from s3t.system import System

METRIC = {"question": "capacity", "metric": "deletions to dead system", "unit": "requests"}
BUDGETS = (1, 2, 3, 4, 6)
REAL_BUDGETS = (1, 2, 3)
"""Beyond the number of slices there are no new first slices, so the same requests end a system in the same deletion."""


@pytest.mark.parametrize("budget", BUDGETS)
def test_closed_form_and_simulation(benchmark: Any, bench: Workbench, budget: int) -> None:
    benchmark.group = "capacity: simulation"
    profile = bench.profile
    about: dict[str, Any] = {"method": "s3t", "budget": budget, "shards": profile.shards, "slices": profile.slices}
    demand, orders = Demand.uniform(profile.shards, profile.slices), cyclic(profile.slices, budget)
    with bench.answering(**METRIC, **about):
        found = benchmark.pedantic(
            simulate, (demand, orders), {"trials": profile.trials, "seed": 0}, rounds=1, iterations=1
        )
        low, high = found.last.interval()
    exact = deletion_rate(profile.shards, profile.slices, budget)
    bench.add(**METRIC, **about, value=exact, n=1, kind="derived")
    bench.add(
        **METRIC,
        **about,
        value=found.last.mean,
        low=low,
        high=high,
        confidence=0.95,
        n=found.trials,
        kind="simulated",
        seed=0,
    )
    assert abs(found.last.deviation(exact)) < 5


@pytest.mark.parametrize("budget", REAL_BUDGETS)
def test_real_system(benchmark: Any, bench: Workbench, tmp_path: Path, budget: int) -> None:
    """Delete real records, uniformly and each at most once, until no shard is live. The model plays no part."""
    benchmark.group = "capacity: real system"
    profile = bench.profile
    about: dict[str, Any] = {
        "method": "s3t",
        "budget": budget,
        "shards": profile.shards,
        "slices": profile.slices,
        "model": "tiny",
        "data": "synthetic",
    }
    with bench.answering(**METRIC, **about):
        layout = Layout(profile.shards, profile.slices, budget)
        data = synthetic(120 * layout.shards * layout.slices, 1, 1)
        system = describe(tmp_path / "run", "s3t", layout, Recipe(epochs=0.05, batch_size=64), bench.tiny, data, 0)
        system.fit(data.train)
        system.close()
        lives = benchmark.pedantic(
            lambda: [_requests_to_death(bench, tmp_path, seed) for seed in range(profile.streams)],
            rounds=1,
            iterations=1,
        )
    mean, low, high = interval(lives)
    extra = {"requests": "uniform over records, without replacement"}
    bench.add(
        **METRIC,
        **about,
        value=mean,
        low=low,
        high=high,
        confidence=0.95,
        n=len(lives),
        kind="measured",
        extra=extra,
    )
    assert min(lives) >= profile.shards * min(profile.slices, budget)


def _requests_to_death(bench: Workbench, folder: Path, seed: int) -> int:
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(folder / "run", folder / "copy")
    system = System.open(folder / "copy", bench.tiny)
    try:
        ids = system.ids()
        for count, record_id in enumerate(stream(ids, len(ids), seed), start=1):
            if len(system.delete([record_id]).offline) == bench.profile.shards:
                return count
    finally:
        system.close()
    raise AssertionError("every record was deleted and a shard is still live")
