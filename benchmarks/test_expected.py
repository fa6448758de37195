"""Expected accuracy as records go, over many streams of uniform deletions of one trained run."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.expected import METRIC, STREAMS, rows_of
from benchmarks.life import stream
from benchmarks.profiles import PROFILES
from benchmarks.spoken import speak
from benchmarks.workbench import Workbench

FIVE = (0, 1, 2, 3, 4)
SEEDS = {"smoke": (0,), "quick": (0, 1, 2), "pairs": FIVE, "larger": FIVE, "vision": FIVE, "full": FIVE}
"""Profiles that measure it, and their seeds."""
CHAINS = ("s3t", "sequential", "sisa-lora-lazy")
"""Methods whose deletions only switch off, at every budget that a profile has of them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One trained run per data set, seed, method and budget."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    seeds = SEEDS.get(profile.name, ())[: metafunc.config.getoption("--most-seeds")]
    kinds = [(method, budget) for method, budget in profile.cases if method in CHAINS]
    cases = [(data, method, budget, seed) for data in profile.data for seed in seeds for method, budget in kinds]
    names = [f"{data}-{method}-b{budget}-{seed}" for data, method, budget, seed in cases]
    metafunc.parametrize(("data", "method", "budget", "seed"), cases, ids=names)


def test_expected(benchmark: Any, bench: Workbench, data: str, method: str, budget: int, seed: int) -> None:
    """The streams of one seed are the same for every method, and so are its slots."""
    benchmark.group = f"expected: {data}"
    dataset, layout = bench.dataset(data), bench.layout(method, budget)
    about: dict[str, Any] = {"question": "expected", "data": dataset.name, "model": bench.profile.model, "seed": seed}
    about |= {"shards": layout.shards, "slices": layout.slices, "method": method, "budget": budget, "kind": "measured"}
    ids, most = [record.id for record in dataset.train], max(bench.profile.checkpoints[-1], len(dataset.train) // 10)

    def measured() -> list[tuple[list[float], int]]:
        system = bench.trained(method, budget, data, seed)
        system.close()
        spoken = speak(system.path, bench.backbone, dataset.train, dataset.test)
        return [spoken.curve(stream(ids, most, STREAMS * (seed + 1) + number)) for number in range(STREAMS)]

    with bench.answering(metric=METRIC, **about):
        found = benchmark.pedantic(measured, rounds=1, iterations=1)
    curves, dead = [values for values, _ in found], [end for _, end in found]
    for fields in rows_of(curves, dead, sorted({bench.profile.checkpoints[-1], most})):
        fields["extra"] |= {"kernel": bench.mode.kernel}
        bench.add(**fields, **about)
    assert all(len(values) == most + 1 for values in curves) and curves[0][0] > 0
