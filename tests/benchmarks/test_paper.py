"""The paper's cases: every one declared with its recipe, what cannot be run says why, and the path that runs is real."""

from __future__ import annotations

import csv
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.paper import BUDGETS, GLUE, GROWN, SHAPES, SUPERGLUE, Tuned, stored_bytes, tuned
from benchmarks.profiles import FULL, PROFILES
from benchmarks.rows import PROFILES as KNOWN
from benchmarks.rows import Row
from benchmarks.test_paper import NO_DEVICE, lacking, train
from s3t.backbone import Backbone
from s3t.data.tasks import TASKS
from s3t.graph import nodes
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.system import System

CASES = list(tuned())


def test_every_profile_can_write_rows() -> None:
    assert set(PROFILES) == set(KNOWN)
    for name in PROFILES:
        about = {"method": "s3t", "budget": 1, "shards": 1, "slices": 1, "metric": "m", "unit": "u", "kind": "derived"}
        assert Row(question="capacity", profile=name, value=1.0, n=1, **about).profile == name  # type: ignore[arg-type]


def test_all_tasks_of_the_paper_are_cases() -> None:
    named = {case.data for case in CASES}
    assert {f"glue/{task}" for task in GLUE} | {f"superglue/{task}" for task in SUPERGLUE} <= named
    assert {"images/cifar10", "images/cifar100", "images/tiny-imagenet", "tatsu-lab/alpaca"} <= named
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.recipe_of("s3t") == case.recipe_of("retrain-lora") == case.recipe
        assert case.recipe_of("retrain-full").lr == FULL.lr
        assert case.data in TASKS or case.data == "tatsu-lab/alpaca", case.name
    assert {layout.budget for layout in GROWN[0].layouts} == set(BUDGETS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_what_cannot_be_run_says_why() -> None:
    for case in CASES:
        assert lacking(case).startswith(NO_DEVICE)


def test_a_case_is_trained_deleted_from_and_measured(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["text", "label"])
        lines.writerows((f"{'cat' if i % 2 else 'dog'} number {i}", i % 2) for i in range(80))
    recipe = Recipe(epochs=1.0, batch_size=16)
    case = Tuned("deletion", str(tmp_path / "rows.csv"), "tiny", 1, Layout(2, 2, 2), recipe, deletes=(0, 3))
    found = train(case, tmp_path / "runs")
    assert [(method, deletions, metric) for method, deletions, metric, _, _ in found] == [
        (method, deletions, "accuracy") for method in case.methods for deletions in (0, 3)
    ]
    assert all(0 <= value <= 1 and count > 0 for *_, value, count in found)


def test_storage_is_what_is_stored(tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula against the tensors of a real run, head and adapter of every node."""
    monkeypatch.setitem(SHAPES, "tiny", (tiny.layers, tiny.hidden, 2))
    layout, recipe = Layout(1, 2, 2), Recipe(rank=4, epochs=0.2, batch_size=4)
    plan = s3t_plan(layout, recipe, tiny.layers)
    system = System.create(tmp_path / "run", plan, recipe, model=tiny, classes=["a", "b"], allow_empty=True)
    with closing(system):
        system.fit([Record(f"r{i}", {"text": f"word {i}"}, i % 2) for i in range(12)])
    held = [tensor for file in (tmp_path / "run").rglob("*.safetensors") for tensor in load_file(file).values()]
    assert sum(4 * tensor.numel() for tensor in held) == stored_bytes("tiny", layout, recipe, len(nodes(plan)))
