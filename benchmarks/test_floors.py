"""Accuracy with and without an analytic head beside the chains, as half of all records are deleted."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.floored import Played, described, judged, keep, kept, play
from benchmarks.floors import HEAD, Kind, Mixture, kinds, rows_of
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench
from s3t.analytic.choosing import choose, read
from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead

SEEDS = {"smoke": (0,), "pairs": (0, 1, 2, 3, 4), "larger": (0,), "vision": (0, 1, 2, 3, 4), "full": (0, 1, 2, 3, 4)}
"""Profiles that measure it, and their seeds."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One life per data set, system and seed."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    seeds = SEEDS.get(profile.name, ())[: metafunc.config.getoption("--most-seeds")]
    cases = [(data, kind, seed) for data in profile.data for seed in seeds for kind in kinds(profile.slices)]
    names = [f"{data}-{kind.name}-b{kind.budget}-{seed}" for data, kind, seed in cases]
    metafunc.parametrize(("data", "kind", "seed"), cases, ids=names)


@pytest.fixture(scope="session")
def chosen() -> dict[str, AnalyticHead]:
    """The head of each data set, once it was chosen."""
    return {}


def test_floors(
    benchmark: Any,
    bench: Workbench,
    chosen: dict[str, AnalyticHead],
    data: str,
    kind: Kind,
    seed: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The head's ridge and temperature are chosen on the validation split alone, never deletable, once per data set."""
    benchmark.group = f"floors: {data}"
    dataset, profile = bench.dataset(data), bench.profile
    if data not in chosen:
        reader, length = Reader(bench.backbone, AnalyticHead(), seed), profile.recipe("s3t").max_length
        validation = read(reader, bench.backbone, dataset.validation, dataset.classes, length)
        chosen[data] = choose(AnalyticHead(), validation, len(dataset.classes)).carried(len(dataset.train)).head
    head, lives = chosen[data], request.config.getoption("--lives")
    plan, recipe = described(bench, kind, head)
    layout = plan.layout
    about: dict[str, Any] = {"question": "floors", "data": dataset.name, "model": profile.model, "seed": seed}
    about |= {"shards": layout.shards, "slices": layout.slices}
    same: dict[str, Any] = {
        "plan": plan.to_json(),
        "recipe": asdict(recipe),
        "data": dataset.digest,
        "model": bench.backbone.digest,
    }
    same |= {"seed": seed, "kernel": bench.mode.kernel, "tested": len(dataset.test)}
    file = Path(lives) / f"{dataset.name}-{profile.model}-{kind.name}-b{kind.budget}-{seed}.npz" if lives else None

    def life() -> Played:
        if file and file.exists():
            return kept(file, plan, recipe, same)
        played = play(bench, kind, dataset, head, seed, tmp_path / "run")
        shutil.rmtree(tmp_path / "run")
        if file:
            keep(played, file, same)
        return played

    with bench.answering(metric="test accuracy", method=kind.name, budget=kind.budget, **about):
        played = benchmark.pedantic(life, rounds=1, iterations=1)
    found = judged(played, kind, [record.label for record in dataset.test])
    for fields in rows_of(found, kind, head=(kind.name, kind.budget) == ("s3t", 1)):
        fields["extra"] |= {"kernel": bench.mode.kernel} | (
            {"head": head.to_json()} if fields["method"] == HEAD else {}
        )
        bench.add(**fields, **about)
    assert found.points[-1].deletions == len(dataset.train) // 2
    assert all(point.accuracy[HEAD, Mixture(1.0)] > 0 for point in found.points)
