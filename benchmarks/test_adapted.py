"""Analytic heads on features of the shards' own chains, by length of chain, beside the trained and the frozen ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.adapted import ACCURACY, FROZEN, RIDGES, TRAINED, WHOLE, measure
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench
from s3t.analytic.head import AnalyticHead

SEEDS = {"smoke": (0,), "pairs": (0, 1, 2, 3, 4)}
"""Profiles that measure it, and their seeds."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One trained run per data set and seed."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    seeds = SEEDS.get(profile.name, ())[: metafunc.config.getoption("--most-seeds")]
    cases = [(data, seed) for data in profile.data for seed in seeds]
    metafunc.parametrize(("data", "seed"), cases, ids=[f"{data}-{seed}" for data, seed in cases])


def test_adapted(benchmark: Any, bench: Workbench, data: str, seed: int, tmp_path: Path) -> None:
    """Nothing is chosen: every ridge and both choices of layers are told."""
    benchmark.group = f"adapted: {data}"
    layout, dataset = bench.layout("s3t", 1), bench.dataset(data)
    about: dict[str, Any] = {"question": "adapted", "data": dataset.name, "model": bench.profile.model, "seed": seed}
    about |= {"shards": layout.shards, "slices": layout.slices, "budget": 1, "kind": "measured", "metric": ACCURACY}

    with bench.answering(method="s3t", **about):
        found = benchmark.pedantic(measure, args=(bench, tmp_path / "run", layout, data, seed), rounds=1, iterations=1)
    shutil.rmtree(tmp_path / "run")
    told = {name: value for name, value in AnalyticHead().to_json().items() if name not in ("layers", "ridge")}
    for one in found:
        extra: dict[str, Any] = {"system": one.system, "length": one.length, "kernel": bench.mode.kernel}
        if one.system != TRAINED:
            extra |= {"layers": one.layers, "ridge": one.ridge, "head": told, "records": list(one.records)}
            extra["by_mean_of_probabilities"] = one.probabilities
        method = "analytic" if one.system == FROZEN else "s3t"
        bench.add(method=method, unit="share", value=one.value, n=len(dataset.test), extra=extra, deletions=0, **about)
    lengths = {one.length for one in found if one.system == WHOLE}
    assert lengths == set(range(layout.slices + 1)) and AnalyticHead().ridge in RIDGES
