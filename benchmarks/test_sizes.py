"""How far S3T and SISA are below one LoRA on all records, by the number of training records."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.floors import Kind
from benchmarks.life import accuracy
from benchmarks.profiles import PROFILES
from benchmarks.sizes import ACCURACY, TESTED, kinds
from benchmarks.workbench import Workbench, describe
from s3t.contract import Cost

SIZES = {"smoke": (48, 96), "pairs": (600, 1200, 2400, 4000), "full": (600, 1200, 2400, 4000)}
SEEDS = {"smoke": (0,), "pairs": (0, 1, 2), "full": (0, 1, 2, 3, 4)}
"""Profiles that measure it, how many training records they take, and their seeds."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One trained run per data set, seed, size and kind."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    seeds = SEEDS.get(profile.name, ())[: metafunc.config.getoption("--most-seeds")]
    cases = [
        (data, records, kind, seed)
        for data in profile.data
        for seed in seeds
        for records in SIZES.get(profile.name, ())
        for kind in kinds(profile.slices)
    ]
    names = [f"{data}-{records}-{kind.name}-{seed}" for data, records, kind, seed in cases]
    metafunc.parametrize(("data", "records", "kind", "seed"), cases, ids=names)


def test_sizes(
    benchmark: Any, bench: Workbench, data: str, records: int, kind: Kind, seed: int, tmp_path: Path
) -> None:
    """Every method with its recipe, which was chosen on 600 TREC-6 questions; the smaller sets lie within the larger ones."""
    benchmark.group = f"sizes: {data}"
    dataset = bench.sized(data, records, TESTED)
    recipe, layout = kind.recipe(bench.profile.recipe(kind.method)), bench.layout(kind.method, 1)
    about: dict[str, Any] = {"question": "sizes", "data": dataset.name, "model": bench.profile.model, "seed": seed}
    about |= {"shards": layout.shards, "slices": layout.slices, "method": kind.name, "budget": 1, "metric": ACCURACY}

    def measured() -> tuple[float, Cost]:
        how: dict[str, Any] = {"engine": bench.mode.engine, "precision": bench.mode.precision, "design": kind.design}
        folder = tmp_path / "run"
        with closing(describe(folder, kind.method, layout, recipe, bench.backbone, dataset, seed, **how)) as system:
            cost = system.fit(dataset.train)
            return accuracy(system, dataset.test)[0], cost

    with bench.answering(**about):
        value, cost = benchmark.pedantic(measured, rounds=1, iterations=1)
    extra = {"kernel": bench.mode.kernel, "record_passes": cost.record_passes, "recipe": asdict(recipe)}
    bench.add(value=value, unit="share", n=len(dataset.test), kind="measured", deletions=0, extra=extra, **about)
    assert len(dataset.train) == records and cost.record_passes > 0
