"""Instruction tuning: S3T, SISA and full LoRA on the same instructions, judged on held-out ones before and after deletions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.language import CHOICES, judge, made_instructions
from benchmarks.life import stream
from benchmarks.workbench import Workbench, describe
from s3t.contract import UnlearningSystem
from s3t.records import Dataset, Layout, Recipe

METHODS = (("s3t", 1), ("s3t", 2), ("sequential", 1), ("sisa-lora-lazy", 1), ("retrain-lora", 1))
LIMITS = (64, 48)
"""Instructions that are trained on and held out, outside the smoke profile: what two cores do in some minutes."""
DELETIONS = 2
RECIPE = Recipe(rank=8, epochs=1, batch_size=8, lr=1e-3, max_length=96)
"""Not tuned: what fits a small run."""
PROFILES = ("smoke", "pairs", "full")
"""Where instructions are trained."""


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest) -> Dataset:
    """The instructions of the profile."""
    from s3t import data

    if request.config.getoption("--profile") == "smoke":
        return made_instructions(48)
    whole = data.load("alpaca")
    return whole.subset(LIMITS[0], 0, LIMITS[1])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark per method, in the profiles that train instructions."""
    asked = metafunc.config.getoption("--profile") in PROFILES
    metafunc.parametrize(("method", "budget"), METHODS if asked else ())


def test_instructions(
    request: pytest.FixtureRequest, bench: Workbench, tmp_path: Path, method: str, budget: int
) -> None:
    """Held-out log-likelihood and ranked choices of a method, and of the base model beside S3T's first."""
    from s3t.backbone import load

    data: Dataset = request.getfixturevalue("data")
    model = "tiny-llama" if bench.profile.name == "smoke" else "smollm2"
    backbone = load(f"lm:{model}")
    layout = Layout(1, 1, 1) if method == "retrain-lora" else Layout(2, 2, budget)
    about: dict[str, Any] = {"question": "language", "method": method, "budget": budget, "kind": "measured", "seed": 0}
    about |= {"shards": layout.shards, "slices": layout.slices, "data": data.name, "model": model}
    benchmark = request.getfixturevalue("benchmark")
    benchmark.group = f"language: {data.name}"
    with bench.answering(metric="held-out log-likelihood", **about):
        system = describe(tmp_path / "run", method, layout, RECIPE, backbone, data, 0)
        benchmark.pedantic(system.fit, args=(data.train,), rounds=1)
        _add(bench, system, data, about, 0)
        gone = stream([record.id for record in data.train], DELETIONS, 0)
        system.delete(gone)
        _add(bench, system, data, about, DELETIONS)
        system.close()
    if (method, budget) == METHODS[0]:
        untrained = describe(tmp_path / "base", "retrain-lora", Layout(1, 1, 1), _still(), backbone, data, 0)
        untrained.fit(data.train[:8])
        _add(bench, untrained, data, {**about, "method": "base model", "budget": 0, "shards": 0, "slices": 0}, 0)
        untrained.close()


def _still() -> Recipe:
    """Return a recipe by which nothing is learned: the adapter adds nothing to the base model."""
    from dataclasses import replace

    return replace(RECIPE, lr=0.0, head_lr=0.0)


def _add(bench: Workbench, system: UnlearningSystem, data: Dataset, about: dict[str, Any], deletions: int) -> None:
    found, count = judge(system, data.test), len(data.test)
    status = {} if found.log_likelihood is not None else {"status": "not-run", "reason": "every shard is offline"}
    common: dict[str, Any] = {**about, "deletions": deletions}
    extra = {"trained on": len(data.train), "recipe": RECIPE.to_json()}
    bench.add(
        metric="held-out log-likelihood",
        unit="nats per token",
        value=found.log_likelihood,
        n=count,
        extra=extra,
        **status,
        **common,
    )
    extra = {**extra, "choices": CHOICES}
    bench.add(metric="ranked choices", unit="share", value=found.ranked, n=count, extra=extra, **common)
