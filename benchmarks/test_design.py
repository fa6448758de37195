"""What S3T's own choices are worth: one change at a time from the profile's setting, on the same seeds, slots and records.

Recipes are those chosen for the default setting; a variant might do better with one of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparing import summary
from benchmarks.design import DEFAULT, ENSEMBLES, Outcome, Variant, measure, variants
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench

Outcomes = dict[tuple[str, int], dict[str, Outcome]]
"""By data set and seed, the outcomes of a variant, and of what needs no training of its own."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark per data set and variant; none where the profile leaves the study out."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    metafunc.parametrize("data", profile.data if profile.designs else ())
    if "number" in metafunc.fixturenames:
        from s3t.backbone import load

        cases = variants(load(profile.model).layers, profile.slices, profile.recipe("s3t")) if profile.designs else []
        metafunc.parametrize("number", range(len(cases)), ids=[case.name for case in cases])


@pytest.fixture(scope="module")
def default() -> Outcomes:
    """What the default gave: it is trained once, and every variant is compared with it."""
    return {}


def test_variant(benchmark: Any, bench: Workbench, default: Outcomes, tmp_path: Path, data: str, number: int) -> None:
    """Accuracy at full health and over lengths of chains, per seed, and the paired differences to the default."""
    profile, layout = bench.profile, bench.layout("s3t", 1)
    cases = variants(bench.backbone.layers, layout.slices, profile.recipe("s3t"))
    benchmark.group = f"design: {data}"
    about: dict[str, Any] = {"question": "design", "method": "s3t", "budget": 1, "kind": "measured"}
    about |= {"shards": layout.shards, "slices": layout.slices, "data": bench.dataset(data).name}
    about |= {"model": profile.model}

    def outcomes(case: Variant, seed: int) -> dict[str, Outcome]:
        if case.name != DEFAULT:
            return measure(bench, tmp_path / f"{seed}", case, layout, data, seed)
        if (data, seed) not in default:
            default[data, seed] = measure(bench, tmp_path / f"default-{seed}", case, layout, data, seed)
        return default[data, seed]

    case = cases[number]
    with bench.answering(metric="test accuracy", extra={"variant": case.name}, **about):
        run = benchmark.pedantic(lambda: {seed: outcomes(case, seed) for seed in profile.seeds}, rounds=1, iterations=1)
        base = {seed: outcomes(cases[0], seed)[DEFAULT] for seed in profile.seeds}
    for name in next(iter(run.values())):
        mine = {seed: found[name] for seed, found in run.items()}
        _add(bench, name, mine, about, len(bench.dataset(data).test))
        if name != DEFAULT:
            _compare(bench, name, mine, base, about)
    assert (case.name == DEFAULT) == (set(next(iter(run.values()))) == {DEFAULT, *ENSEMBLES})
    assert all(len(found[case.name].by_length) == layout.slices for found in run.values())


def _add(bench: Workbench, name: str, mine: dict[int, Outcome], about: dict[str, Any], test: int) -> None:
    for seed, outcome in mine.items():
        extra: dict[str, Any] = {"variant": name, "kernel": bench.mode.kernel, "by_length": list(outcome.by_length)}
        extra |= {"record_passes": outcome.record_passes, "layer_passes": outcome.layer_passes}
        told: dict[str, Any] = {"unit": "share", "n": test, "seed": seed, "extra": extra, **about}
        bench.add(metric="test accuracy", value=outcome.full, deletions=0, **told)
        bench.add(metric="test accuracy, mean over chain lengths", value=outcome.mean, **told)


def _compare(
    bench: Workbench, name: str, mine: dict[int, Outcome], base: dict[int, Outcome], about: dict[str, Any]
) -> None:
    told: dict[str, Any] = {"unit": "points", "extra": {"variant": name, "against": DEFAULT}, **about}
    full = [100 * (outcome.full - base[seed].full) for seed, outcome in mine.items()]
    over = [100 * (outcome.mean - base[seed].mean) for seed, outcome in mine.items()]
    bench.add(metric="accuracy, variant minus default", **summary(full), **told)
    bench.add(metric="accuracy over chain lengths, variant minus default", **summary(over), **told)
