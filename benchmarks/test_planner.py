"""The planner on a plain need: every layout weighed, with prices measured in the same session."""

from __future__ import annotations

from typing import Any

from baselines.methods import find
from benchmarks.planning import METRIC, as_rows
from benchmarks.workbench import Workbench
from s3t.planner.options import Needs, Option, options, pareto, pick
from s3t.planner.price import measure
from s3t.records import Recipe

RIVALS = ("sisa-lora", "retrain-lora")


def test_planner(benchmark: Any, bench: Workbench) -> None:
    """100,000 records, 3 requests a day, a gigabyte, two rebuilds a month; and what each limit leaves."""
    benchmark.group = "planner: every layout weighed"
    needs = Needs(100_000, 3.0, Recipe(), disk=1e9, rebuilds=24.0)
    with bench.answering(question="planning", metric=METRIC, method="s3t", budget=1, shards=1, slices=1):
        price = measure(bench.profile.model, bench.dataset(bench.profile.data[0]), needs.recipe)
        rivals = {name: find(name) for name in RIVALS}

        def weigh() -> list[Option]:
            return list(options(needs, price, rivals))

        found = benchmark.pedantic(weigh, rounds=1, iterations=1)
        front = pareto(found)
        best, why = pick(found, needs)
    benchmark.extra_info.update(options=len(found), pareto=len(front), pick=best.name, why=why)
    for row in as_rows(found, front, best, needs):
        bench.add(question="planning", model=price.model, **row)
    assert best in front
