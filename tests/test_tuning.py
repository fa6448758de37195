"""Tuning: the same budget for every method, on validation alone, and written down so that training can take it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import call, refused, said

from baselines.methods import METHODS
from s3t import tuning
from s3t.backbone import Backbone
from s3t.errors import DataError, DivergedError, RecipeError, S3TError
from s3t.records import Dataset, Layout, Recipe, Record

BASE = Recipe(rank=2, epochs=1.0, batch_size=8)
LAYOUT = Layout(2, 2, 1)


def records(prefix: str, count: int) -> tuple[Record, ...]:
    words = ("the cat saw a dog", "how many are there")
    return tuple(Record(f"{prefix}-{i:03d}", {"text": f"{words[i % 2]} {i}"}, i % 2) for i in range(count))


def data(validation: int = 20) -> Dataset:
    """Test records hold nothing that the model could read: whoever asks for them fails."""
    unreadable = (Record("test-0", {}, 0),)
    return Dataset("pets", ("a", "b"), records("train", 60), records("val", validation), unreadable, "pets.csv")


def plans(*methods: str) -> Any:
    return {name: (Layout(1, 1, 1) if name.startswith("retrain") else LAYOUT, METHODS[name]) for name in methods}


def test_a_grid_is_every_combination() -> None:
    found = tuning.grid(BASE, {"lr": (1e-3, 1e-2), "rank": (1, 2)})
    assert [(recipe.lr, recipe.rank) for recipe in found] == [(1e-3, 1), (1e-3, 2), (1e-2, 1), (1e-2, 2)]
    assert {recipe.epochs for recipe in found} == {1.0}
    assert len(tuning.grid(BASE, {"lr": (1e-3, 1e-3)})) == 1
    with pytest.raises(RecipeError, match=r"unknown Recipe key 'head_rl' \(did you mean 'head_lr'\?\)"):
        tuning.grid(BASE, {"head_rl": (1,)})
    with pytest.raises(RecipeError, match="lr=99 is out of range"):
        tuning.grid(BASE, {"lr": (1e-3, 99)})
    with pytest.raises(RecipeError, match="the grid has no value for 'lr'"):
        tuning.grid(BASE, {"lr": ()})


def test_every_method_has_the_same_number_of_trials() -> None:
    large, small = tuning.grid(BASE, tuning.LORA_GRID), tuning.grid(BASE, {"lr": (1e-4, 1e-3)})
    drawn = tuning.same_budget({"s3t": large, "retrain-full": small})
    assert [len(recipes) for recipes in drawn.values()] == [2, 2]
    assert set(drawn["s3t"]) < set(large) and drawn == tuning.same_budget({"s3t": large, "retrain-full": small})
    assert [len(r) for r in tuning.same_budget({"s3t": large, "sisa-lora": large}, 4).values()] == [4, 4]
    many = tuning.same_budget({f"method {i}": large for i in range(12)}, 2)
    assert {recipe for recipes in many.values() for recipe in recipes} == set(large), "drawn from the whole grid"
    assert tuning.same_budget({"s3t": large}) == {"s3t": large}
    with pytest.raises(RecipeError, match="0 trials per method are not possible"):
        tuning.same_budget({"s3t": large}, 0)


def test_the_best_on_validation_is_taken_and_all_is_written(tiny: Backbone, tmp_path: Path) -> None:
    case, seen = tuning.Case(data(), tiny, (0, 1)), []
    recipes = tuning.grid(BASE, {"lr": (0.0, 5e-3), "head_lr": (1e-2,)})
    methods = ("s3t", "retrain-lora")
    trials = tuning.tune(case, plans(*methods), dict.fromkeys(methods, recipes), seen.append)
    assert seen == trials and [(t.method, t.recipe) for t in trials] == [(m, r) for m in methods for r in recipes]
    assert all(len(t.scores) == 2 and all(s is not None and 0 <= s <= 1 for s in t.scores) for t in trials)
    chosen = tuning.best(trials)
    for method in methods:
        assert chosen[method].score == max(t.score for t in trials if t.method == method)
    path = tmp_path / "deep" / "tuned.json"
    told = tuning.write(path, case, trials, {name: layout for name, (layout, _) in plans(*methods).items()})
    assert json.loads(path.read_text()) == json.loads(json.dumps(told))
    assert [entry.name for entry in path.parent.iterdir()] == ["tuned.json"]
    assert (told["metric"], told["seeds"], told["data"]["digest"]) == ("accuracy", [0, 1], data().digest)
    assert tuning.read_best(path, "s3t") == chosen["s3t"].recipe
    with pytest.raises(RecipeError, match=r"has no recipe for 'sisa-lora'.*; it has s3t, retrain-lora"):
        tuning.read_best(path, "sisa-lora")


def test_a_trial_is_a_function_of_its_case(tiny: Backbone) -> None:
    case = tuning.Case(data(), tiny)
    twice = [tuning.tune(case, plans("s3t"), {"s3t": [BASE]})[0].scores for _ in range(2)]
    assert twice[0] == twice[1]


def test_what_diverges_loses(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tuning.Trial("s3t", BASE, (0.5, 0.7), 1.0)
    bad = tuning.Trial("s3t", BASE, (0.9, None), 1.0)
    assert tuning.best([bad, good]) == {"s3t": good}
    with pytest.raises(RecipeError, match="every recipe tried for s3t diverged; give smaller learning rates"):
        tuning.best([bad])
    from s3t.system import System

    def fails(error: S3TError) -> Callable[..., None]:
        def fit(self: System, *_: Any) -> None:
            raise error

        return fit

    monkeypatch.setattr(System, "fit", fails(DivergedError("training diverged at step 3")))
    (trial,) = tuning.tune(tuning.Case(data(), tiny), plans("s3t"), {"s3t": [BASE]})
    assert trial.scores == (None,)
    monkeypatch.setattr(System, "fit", fails(S3TError("the disk is full")))
    with pytest.raises(S3TError, match="the disk is full"):
        tuning.tune(tuning.Case(data(), tiny), plans("s3t"), {"s3t": [BASE]})


def test_bad_cases_and_files(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data 'pets' has no validation records"):
        tuning.Case(data(0), tiny)
    for seeds in ((), (1, 1)):
        with pytest.raises(RecipeError, match="are not usable; give distinct ones"):
            tuning.Case(data(), tiny, seeds)
    for content in ("", "{}", '{"format": 2, "best": {}}', "[1]"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(RecipeError, match=r"bad.json cannot be read as a file of `s3t tune`"):
            tuning.read_best(tmp_path / "bad.json", "s3t")


def test_the_command_and_training_with_what_it_chose(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(["text,label", *(f"{r.inputs['text']},{'ab'[r.label]}" for r in records("x", 120))]))
    shared = ("--data", str(rows), "--model", "tiny", "--shards", "2", "--slices", "2")
    out = tmp_path / "tuned.json"
    how = (
        "--method",
        "s3t",
        "--method",
        "sisa-full",
        "--grid",
        "lr=0.0,0.001",
        "--recipe",
        "epochs=1",
        "--precision",
        "float32",
    )
    code, shown, progress = said("tune", out, *shared, *how, "--json")
    assert code == 0, progress
    told = json.loads(shown)
    assert {trial["method"] for trial in told["trials"]} == {"s3t", "sisa-full"} and len(told["trials"]) == 4
    assert progress.count("accuracy") == 4, "a line for each trial as it ends"
    assert "exists already; nothing was tried" in refused("tune", out, *shared, *how)
    assert "--grid 'lr' is not NAME=V1,V2,..." in refused("tune", tmp_path / "b.json", *shared, "--grid", "lr")
    call("train", tmp_path / "run", *shared, "--tuned", out, "--rank", "3")
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert kept == {**told["best"]["s3t"], "rank": 3}
