"""Policies of ``s3t serve --refresh`` over whole lives, simulated with what nodes of a run of this session cost."""

from __future__ import annotations

from typing import Any

from baselines.methods import make_plan
from benchmarks.refreshes import SERVED, as_rows
from benchmarks.workbench import Workbench
from s3t.capacity import Estimate
from s3t.planner.lives import Setting, simulate_lives, untouched
from s3t.refreshing import NEVER, Policy

RECORDS, RATES, YEARS, LIVES = 100_000, (1.0, 10.0), 2.0, 20
SIZES = {"smoke": ((1.0,), 0.1, 3)}
"""Rates, years and lives of the small profiles."""


def test_lives(benchmark: Any, bench: Workbench) -> None:
    """Every policy at every rate of requests; without refreshes the exact expectation beside the simulation."""
    benchmark.group = "refresh: lives by policy"
    profile = bench.profile
    rates, years, lives = SIZES.get(profile.name, (RATES, YEARS, LIVES))
    budget = max(b for method, b in profile.cases if method == "s3t")
    layout = bench.layout("s3t", budget)
    about: dict[str, Any] = {"question": "refresh", "model": profile.model, "data": profile.data[0]}
    shape = {"method": "s3t", "budget": budget, "shards": layout.shards, "slices": layout.slices}
    with bench.answering(metric=SERVED, **about, **shape):
        stages = bench.stage_seconds(budget)
        plan = make_plan("s3t", layout, profile.recipe("s3t"), bench.backbone.layers)
        names = ["never", "when-dead", *(f"below:{k}" for k in range(2, layout.slices + 1)), "every:1d", "every:30d"]
        cases = [(Setting(plan, RECORDS, rate, years, stages), name) for rate in rates for name in names]
        found: list[dict[str, Estimate]] = []

        def play() -> None:
            found.extend(simulate_lives(setting, Policy.of(name), lives=lives, seed=0) for setting, name in cases)

        benchmark.pedantic(play, rounds=1, iterations=1)
    for (setting, name), estimates in zip(cases, found, strict=True):
        for row in as_rows(setting, name, estimates):
            bench.add(**about, **row)
        if name == NEVER.name:
            for row in as_rows(setting, name, untouched(setting)):
                bench.add(**about, **row)
