"""Training by workers: throughput of processes and of Ray against this process with as many threads, and many simulated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from baselines.methods import make_plan
from benchmarks.comparing import name_of, ratio, rotated, seconds_of, summary
from benchmarks.engines import Job, Outcome
from benchmarks.executors import PLACES, THROUGHPUT, Handing, seconds_to_begin, sides
from benchmarks.profiles import PROFILES
from benchmarks.spreads import as_row
from benchmarks.workbench import Workbench
from s3t.planner.spreading import node_times, spread
from s3t.records import Layout

JOBS = {"smoke": (1, None), "health": (3, 2000), "full": (5, None)}
"""Profiles that compare executors, with the number of builds by each and their records (None: the engine data set's)."""
WORKERS = (1, 2, 8, 16, 32, 64, 128, 256, 512)
"""Simulated."""
RECORDS, SHAPES = 100_000, ((4, 3), (32, 3), (128, 6))
"""Of the simulated builds: records, and shards with orders."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One comparison if the profile has it."""
    job = JOBS.get(metafunc.config.getoption("--profile"))
    assert set(JOBS) <= set(PROFILES)
    metafunc.parametrize(("rounds", "records"), [job] if job else [])


def test_executors(benchmark: Any, bench: Workbench, rounds: int, records: int | None, tmp_path: Path) -> None:
    """Every order of the first engine data set, each executor in turn; then larger builds, simulated with what was measured."""
    benchmark.group = "executors"
    profile = bench.profile
    case = profile.engine_data[0]
    whole = bench.dataset(case.data)
    limits = (records, 0, 0) if records else case.limits
    dataset = dataclasses.replace(whole.subset(*limits) if limits else whole, test=())
    layout, clock = bench.layout("s3t", profile.slices), Handing()
    places = sides(profile.engine, profile.precision, clock)
    about: dict[str, Any] = {"question": "executors", "data": dataset.name, "model": profile.model}
    shape = {"shards": layout.shards, "slices": layout.slices, "budget": layout.budget}
    measured: dict[str, Any] = {**about, **shape, "method": "s3t", "kind": "measured"}
    jobs = [
        Job(dataset, layout, profile.recipe("s3t"), seed, bench.backbone, tmp_path / "run") for seed in range(rounds)
    ]
    runs: dict[str, list[Outcome]] = {name_of(side): [] for side in places}
    begins: dict[str, list[float]] = {name: [] for name in PLACES if name != "in process"}

    def build() -> None:
        for number, job in enumerate(jobs):
            for side in rotated(places, number):
                runs[name_of(side)].append(side.run(job))
            for name in begins:
                begins[name].append(seconds_to_begin(PLACES[name], bench.backbone, bench.mode.kernel, tmp_path / name))

    with bench.answering(metric=THROUGHPUT, **measured):
        benchmark.pedantic(build, rounds=1, iterations=1)
    passes = {name: [outcome.record_passes for outcome in outcomes] for name, outcomes in runs.items()}
    assert len(set(map(tuple, passes.values()))) == 1, f"the executors did not do the same work: {passes}"
    alone = seconds_of(runs[name_of(places[0])])
    for side in places:
        taken = seconds_of(runs[name_of(side)])
        told = {"mode": side.mode, "records": len(dataset.train)}
        bench.add(metric="seconds", unit="s", extra=told, **summary(taken), **measured)
        bench.add(
            metric=THROUGHPUT, unit="ratio", extra=told | {"against": places[0].mode}, **ratio(alone, taken), **measured
        )
    for name, seconds in begins.items():
        bench.add(metric="seconds to begin", unit="s", extra={"mode": name}, **summary(seconds), **measured)
    handing, start = clock.seconds / clock.nodes, summary(begins["Ray, 2 workers"])["value"]
    bench.add(metric="seconds to hand over a node", unit="s", value=handing, n=clock.nodes, **measured)
    stages = bench.stage_seconds(profile.cases[0][1])
    for shards, budget in SHAPES:
        plan = make_plan("s3t", Layout(shards, profile.slices, budget), profile.recipe("s3t"), bench.backbone.layers)
        times = node_times(plan, RECORDS, stages)
        for workers in WORKERS:
            found = spread(times, workers, handing=handing, start=start)
            more = {"records": RECORDS, "handing": handing, "start": start, "seconds_per_pass": stages}
            fields = as_row(found, {"shards": shards, "slices": profile.slices, "budget": budget}, more)
            bench.add(**about, **fields)
            assert found.speedup <= found.limit + 1e-9
