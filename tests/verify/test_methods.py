"""Every method on the tiny model, audited at every level after deletions; each ensemble; three shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.records import Layout, Recipe
from verify.audit import audit
from verify.plans import METHODS
from verify.report import Verdict

ENSEMBLES = ("mean-logits", "mean-probabilities", "vote")


@pytest.fixture
def fit(tmp_path: Path, live: Any) -> Callable[[str, Recipe], Any]:
    """Fit a method on the tiny model in a folder of its own."""
    from baselines.methods import make_plan
    from s3t.system import System

    def made(method: str, recipe: Recipe) -> Any:
        plan = make_plan(method, Layout(3, 2, 2), recipe, 6)
        system = System.create(
            tmp_path / "other",
            plan,
            recipe,
            model="tiny",
            classes=("a", "b", "c"),
            seed=1,
            key=bytes(32),
            evaluation=live.evaluation,
        )
        system.fit(live.records)
        return system

    return made


@pytest.mark.parametrize("method", METHODS)
def test_method(method: str, fit: Callable[[str, Recipe], Any], live: Any, tmp_path: Path) -> None:
    number = METHODS.index(method)
    recipe = Recipe(epochs=1.0, batch_size=8, window=2, rank=2, dropout=0.1, ensemble=ENSEMBLES[number % 3])
    system = fit(method, recipe)
    live.folder = tmp_path / "other"
    given = {"isolate": False, "lab": live.lab, "records": live.records, "scope": "surviving"}
    for deleted in (["row-001"], ["row-007", "row-030"]):
        system.delete(deleted)
        report = audit(system, tmp_path / "other", **given)
        assert report.verdict is Verdict.HOLDS, report.dumps()
        assert report.claim == (
            "retrained" if method in ("sisa-lora", "sisa-full") or "retrain" in method else report.claim
        )
    system.close()


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_ensemble(ensemble: Any, fit: Callable[[str, Recipe], Any], live: Any, tmp_path: Path) -> None:
    system = fit("s3t", Recipe(epochs=0.6, batch_size=8, rank=2, ensemble=ensemble))
    report = audit(system, tmp_path / "other", levels=("E0", "E1a"), isolate=False)
    assert report.verdict is Verdict.HOLDS, report.dumps()
    system.close()
