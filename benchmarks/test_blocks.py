"""Layouts of the blocks as a strategy: accuracy by length of chain, work, storage, capacity and the cost of a deletion, each at
the same rank, at equal storage and at equal work, with one order and with as many as slices; same seeds, slots and records.

Every layout has its method's recipe as it was chosen for that (docs/TUNING.md), S3T's for top-down blocks at the whole rank.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.blocks import ACCURACY, CAPACITY, CUT, DELETION, STORED, WORK
from benchmarks.laying import Laid, cases, lay
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench
from s3t.capacity import deletion_rate

MEASURED = ("smoke", "pairs", "full")
"""Profiles that measure it, on the first of their data sets."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark per case; none where the profile leaves the study out."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    names: list[str] = []
    if profile.name in MEASURED:
        from s3t.backbone import load

        bench = Workbench(profile, Path())
        names = [case.name for case in cases(profile.recipe, bench.layout("s3t", 1), load(profile.model).layers)]
    metafunc.parametrize("number", range(len(names)), ids=names)


def test_blocks(benchmark: Any, bench: Workbench, tmp_path: Path, number: int) -> None:
    """A life of its own for every seed: trained with one order, grown to as many as slices."""
    profile, layout, data = bench.profile, bench.layout("s3t", 1), bench.profile.data[0]
    dataset, budgets = bench.dataset(data), sorted({1, layout.slices})
    case = cases(profile.recipe, layout, bench.backbone.layers)[number]
    benchmark.group = f"blocks: {data}"
    about: dict[str, Any] = {"question": "blocks", "method": case.method, "shards": layout.shards}
    about |= {"slices": layout.slices, "data": dataset.name, "model": profile.model}
    told: dict[str, Any] = {"variant": case.name, "kernel": bench.mode.kernel, "recipe": asdict(case.recipe)}

    def live() -> dict[int, dict[int, Laid]]:
        found = {}
        for seed in profile.seeds:
            found[seed] = lay(bench, tmp_path / f"{seed}", case, budgets, data, seed)
            shutil.rmtree(tmp_path / f"{seed}")
        return found

    with bench.answering(metric=ACCURACY, budget=1, extra={"variant": case.name}, **about):
        lives = benchmark.pedantic(live, rounds=1, iterations=1)
    for seed, life in lives.items():
        for budget, laid in life.items():
            _add(bench, laid, len(dataset.test), len(dataset.train), told, {**about, "seed": seed, "budget": budget})
    for budget in budgets:
        value = deletion_rate(layout.shards, layout.slices, budget)
        extra = {"variant": case.name}
        bench.add(
            metric=CAPACITY, unit="requests", value=value, n=1, kind="derived", budget=budget, extra=extra, **about
        )
    assert all(len(laid.by_length) == layout.slices for life in lives.values() for laid in life.values())
    assert all(laid.spent > 0 for life in lives.values() for laid in life.values())


def _add(bench: Workbench, laid: Laid, test: int, train: int, told: dict[str, Any], about: dict[str, Any]) -> None:
    whole, counted = laid.by_length[-1], laid.counted
    curve = {**told, "by_length": list(laid.by_length)}
    common: dict[str, Any] = {"kind": "measured", **about}
    bench.add(metric=ACCURACY, unit="share", value=whole, n=test, deletions=0, extra=curve, **common)
    bench.add(metric=CUT, unit="share", value=sum(laid.by_length) / len(laid.by_length), n=test, extra=told, **common)
    bench.add(
        metric="record passes up front", unit="records x epochs", value=counted.record_passes, n=1, extra=told, **common
    )
    spent = {**told, "spent": laid.spent}
    bench.add(metric=WORK, unit="records x layers", value=counted.layer_passes, n=1, extra=spent, **common)
    bench.add(metric=DELETION, unit="records x layers", value=counted.per_deletion, n=train, extra=told, **common)
    bench.add(metric=STORED, unit="bytes", value=counted.adapters, n=1, extra=told, **common)
