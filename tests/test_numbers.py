"""Tasks whose answers are numbers: ranges, labels, metrics, and the life of a run by the command line, audited."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call, refused

from s3t.answers import Range, answers, check_label, in_words, target
from s3t.backbone import Backbone
from s3t.data import load
from s3t.engine.fast import train_node_fast
from s3t.errors import DataError, RecipeError
from s3t.metrics import OF_NUMBERS, measure
from s3t.plan import s3t_plan
from s3t.records import Dataset, Layout, Recipe, Record
from s3t.system import System
from s3t.training import Row, Seeds, Task, train_node
from verify import derive
from verify.cli import main as verify

HOW = ("--model", "tiny", "--shards", "2", "--slices", "2", "--budget", "1", "--epochs", "2", "--batch-size", "16")
RANGE = ("0.0:5.0",)


@pytest.fixture
def stars(tmp_path: Path) -> Path:
    """A hundred and twenty reviews with as many stars, of five, as they say "good"; halves too."""
    draw = np.random.default_rng(0)
    with (tmp_path / "stars.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "stars"])
        for number in range(120):
            count = int(draw.integers(0, 6))
            words = ["good"] * count + ["plain"] * (6 - count)
            lines.writerow([f"review-{number:03d}", " ".join(draw.permutation(words)), count + 0.5 * (count < 5)])
    return tmp_path / "stars.csv"


def test_a_range_scales_to_one_and_back() -> None:
    numbers = Range.parse("0:5")
    assert numbers == Range(0, 5) == Range.of(RANGE) and numbers.name == "0.0:5.0"
    assert [numbers.scaled(n) for n in (0, 2.5, 5)] == [-1.0, 0.0, 1.0]
    assert [numbers.value(numbers.scaled(n)) for n in (0.0, 1.0, 3.75)] == [0.0, 1.0, 3.75]
    assert Range.of(("a", "b")) is None
    for label in (0.0, 0.3, 4.9):
        assert target(label, RANGE) == derive.target(label, RANGE) == numbers.scaled(label)
    assert target(1, ("a", "b")) == derive.target(1, ("a", "b")) == 1
    assert answers(np.array([[-1.0], [0.5]]), RANGE) == [0.0, 3.75]
    assert answers(np.array([[0.1, 0.2], [0.4, 0.3]]), ("a", "b")) == [1, 0]
    assert in_words(RANGE)[0] == "numbers, 0.0:5.0" and in_words(("a", "b"))[0] == "2 classes"


@pytest.mark.parametrize("text", ["5", "5:0", "a:b", "0:inf", "1:1", ""])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(DataError, match=r"no range"):
        Range.parse(text)
    with pytest.raises(DataError, match="declare at least 2 classes"):
        Range.of((text,))


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        (5.5, RANGE, r"'x' has the number 5.5, outside 0.0:5.0; declare a wider range"),
        (1, RANGE, r"'x' has label 1, but the task asks for a number from 0.0:5.0"),
        (0.5, ("a", "b"), r"'x' has label 0.5, but the task asks for one of the classes \['a', 'b'\]"),
        (2, ("a", "b"), r"'x' has label 2, but the declared classes are \['a', 'b'\]"),
    ],
)
def test_labels_that_do_not_fit(label: float, classes: Sequence[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_label("x", label, classes)
    with pytest.raises(DataError, match=message):
        Dataset("d", tuple(classes), (Record("x", {"text": "t"}, label),), (), ())


def test_a_record_keeps_its_number() -> None:
    record = Record("x", {"text": "t"}, 2.0)
    back = Record.from_content(record.content())
    assert back == record and isinstance(back.label, float)
    assert record.content() != Record("x", {"text": "t"}, 2).content()
    with pytest.raises(DataError, match="the number nan as its label"):
        Record("x", {"text": "t"}, float("nan"))


def test_metrics_of_numbers_worked_by_hand() -> None:
    found = measure(OF_NUMBERS, [1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx({"pearson": 0.98198051, "spearman": 1.0, "rmse": 3**-0.5})
    assert measure(("pearson", "spearman"), [1.0, 1.0], [0.0, 1.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_the_loss_is_the_squared_error_in_every_kernel(tiny: Backbone) -> None:
    """One step of plain gradient direction: both engines from the same head, with the first step's gradient by hand."""
    recipe = Recipe(rank=2, batch_size=4, epochs=1.0)
    plan = s3t_plan(Layout(1, 1, 1), recipe, tiny.layers)
    encoded = tiny.encode([{"text": f"word {i}"} for i in range(4)], 16)
    rows = [Row(row, label) for row, label in zip(encoded, (-1.0, 0.25, 1.0, 0.0), strict=True)]
    task = Task(
        plan.stages, None, rows, [[0, 1, 2, 3]] * 40, dataclasses.replace(recipe, head_lr=0.05), Seeds(1, 2, 3), 1
    )
    for trained in (train_node(tiny, task), train_node_fast(tiny, task, precision="float32")):
        assert trained.head["weight"].shape == (1, tiny.hidden)
        from s3t.blocks import ChainModel, ModelState, score

        model = ChainModel(tiny, task.stages, recipe, 1)
        model.mount(ModelState({task.stage.adapter: trained.adapter}, trained.head))
        found = score(model, encoded)[:, 0]
        error = float((found - torch.tensor([row.label for row in rows])).square().mean())
        assert error < 0.2 * float(np.var([-1.0, 0.25, 1.0, 0.0])), "the numbers were learned"


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_the_life_of_a_run(stars: Path, tmp_path: Path, engine: str) -> None:
    run = tmp_path / "run"
    data = ("--data", stars, "--label", "stars", "--id", "id", "--number", "0:6")
    call("train", run, *data, "--engine", engine, "--precision", "float32", *HOW)
    told = json.loads(call("predict", run, "--json"))
    assert told["classes"] == ["0.0:6.0"] and set(told["rows"][0]) == {"id", "number", "scores"}
    assert -1 <= told["pearson"] <= 1 and -1 <= told["spearman"] <= 1 and told["rmse"] > 0
    assert "pearson" in call("predict", run)
    (tmp_path / "more.csv").write_text("text\ngood good good good good good\nplain plain plain\n")
    high, low = (
        row["number"] for row in json.loads(call("predict", run, "--input", tmp_path / "more.csv", "--json"))["rows"]
    )
    assert high != low and all(-10 < number < 16 for number in (high, low))
    call("delete", run, "--any", "2")
    levels = ["E0", "E1a", "E1b", "E1c"]
    assert verify([str(run), *(word for level in levels for word in ("--level", level))]) == 0
    if engine == "reference":
        assert verify([str(run), "--oracle", "--level", "E1a"]) == 0
    call("refresh", run)
    assert verify([str(run)]) == 0
    for level in ("E2", "E3"):
        assert verify([str(run), "--level", level]) == 3, "it judges probabilities: undecided"


def test_wrong_input_is_one_line(stars: Path, tmp_path: Path) -> None:
    data = ("--data", stars, "--label", "stars", "--id", "id")
    run = tmp_path / "run"
    assert "outside 0.0:3.0; declare a wider range or drop it" in refused("train", run, *data, "--number", "0:3", *HOW)
    assert "numbers from 5.0 to 0.0 are no range; give for example 0:5" in refused(
        "train", run, *data, "--number", "5:0", *HOW
    )
    assert "either numbers, '0:6', or the classes" in refused(
        "train", run, *data, "--number", "0:6", "--classes", "a,b", *HOW
    )
    voting = ("--number", "0:6", *HOW, "--recipe", "ensemble=vote")
    assert "ensemble='vote' needs classes, and the task's answers are numbers" in refused("train", run, *data, *voting)
    text = stars.read_text().replace("review-001,", "review-001x,", 1)
    (tmp_path / "bad.csv").write_text("\n".join([*text.splitlines()[:2], "last,words,many", *text.splitlines()[3:]]))
    bad = ("--data", tmp_path / "bad.csv", "--label", "stars", "--id", "id", "--number", "0:6")
    assert "has the label 'many', which is no number; mend or drop it" in refused("train", run, *bad, *HOW)
    assert not run.exists()


def test_a_source_of_numbers_is_loaded_again(stars: Path) -> None:
    data = load(str(stars), label="stars", id="id", number="0:6")
    again = load(data.source)
    assert again == data and data.classes == ("0.0:6.0",)


def test_a_run_by_hand_declares_its_range(tmp_path: Path, tiny: Backbone) -> None:
    records = [Record(f"r{i}", {"text": f"word {i}"}, i / 8) for i in range(9)]
    recipe = Recipe(epochs=1.0, batch_size=4)
    plan = s3t_plan(Layout(1, 2, 1), recipe, tiny.layers)
    with closing(System.create(tmp_path / "run", plan, recipe, model=tiny, classes=["0:1"])) as system:
        system.fit(records)
        assert system.predict([records[0].inputs]).shape == (1, 1)
    with pytest.raises(DataError, match="the only class 'word' names no range"):
        System.create(tmp_path / "other", plan, recipe, model=tiny, classes=["word"]).fit(records)
    other = dataclasses.replace(recipe, ensemble="mean-probabilities")
    with pytest.raises(RecipeError, match="'mean-probabilities' needs classes"):
        System.create(tmp_path / "third", plan, other, model=tiny, classes=["0:1"])
