"""Questions with candidate answers from the metrics by hand to a run's life by the command line."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from command_line import said
from datasets import ClassLabel, Features, Value

from s3t.answers import CANDIDATE
from s3t.data import hub, load
from s3t.data.splits import three_way
from s3t.errors import DataError
from s3t.metrics import best, by_question, evaluate, measure, normalised, token_f1
from s3t.records import Record, candidate, question_of
from s3t.system import System

SIZE = ("--model", "tiny", "--rank", 2, "--shards", 2, "--slices", 2, "--budget", 2, "--no-duplicates")
AUDIT = ("--level", "E0", "--level", "E1a", "--no-isolate")


def judged(*questions: tuple[str, list[tuple[str, float, int]]]) -> tuple[np.ndarray, list[Record]]:
    """Return scores and records of questions' candidates (name, margin, label); half of the margin in each column."""
    rows = [(candidate(question, name), margin, label) for question, each in questions for name, margin, label in each]
    scores = np.array([(1 - margin / 2, 1 + margin / 2) for _, margin, _ in rows], dtype=np.float32)
    return scores, [Record(name, {"text": "x"}, label) for name, _, label in rows]


def test_metrics_worked_by_hand() -> None:
    """q1: the best is right, though another is said to be right too. q2: all judged rightly. q3: the best is wrong."""
    scores, records = judged(
        ("q1", [("the Beatles", 3.0, 1), ("Paul", 1.0, 0), ("Yoko", -1.0, 0)]),
        ("q2", [("a", -2.0, 0), ("b", 0.5, 1)]),
        ("q3", [("Mr. John Lennon", 2.0, 0), ("John Lennon", -1.0, 1), ("Lennon", -2.0, 1), ("Ringo", 0.0, 0)]),
    )
    names = ("choice_accuracy", "f1a", "question_em", "answer_f1", "answer_em")
    found = evaluate(names, scores, records, CANDIDATE)
    assert list(found) == list(names)
    # said to be right: 4, of which 2 are; right ones: 4. Words of q3's answer: 2 of its 3, and 2 of 2
    f1 = 2 * (2 / 3) * 1 / (2 / 3 + 1)
    assert found == pytest.approx(
        {
            "choice_accuracy": 2 / 3,
            "f1a": 2 * 2 / (4 + 4),
            "question_em": 1 / 3,
            "answer_f1": (1 + 1 + f1) / 3,
            "answer_em": 2 / 3,
        }
    )
    predicted = [int(margin > 0) for margin in (scores[:, 1] - scores[:, 0])]
    assert found["f1a"] == pytest.approx(measure(("f1",), predicted, [record.label for record in records])["f1"])
    assert evaluate(("accuracy", "f1a"), scores, records, CANDIDATE)["accuracy"] == pytest.approx(5 / 9)


def test_a_question_without_a_right_candidate_is_missed_and_of_equals_the_first_is_taken() -> None:
    scores, records = judged(("q", [("a", 1.0, 0), ("b", 1.0, 0)]), ("p", [("c", 0.0, 1), ("d", 0.0, 0)]))
    names = ("choice_accuracy", "answer_f1", "answer_em", "f1a")
    assert evaluate(names, scores, records, CANDIDATE) == {**dict.fromkeys(names, 0.5), "f1a": 0.0}
    assert [best(each).name for each in by_question(scores, records).values()] == ["a", "c"]


def test_candidates_of_a_question_need_not_stand_together() -> None:
    scores, records = judged(
        ("p", [("a", 1.0, 0)]), ("q", [("a", 2.0, 1)]), ("p", [("b", 2.0, 1)]), ("q", [("b", 1.0, 0)])
    )
    assert evaluate(("choice_accuracy",), scores, records, CANDIDATE) == {"choice_accuracy": 1.0}
    assert list(by_question(scores, records)) == ["p", "q"]


def test_answers_are_compared_as_squad_does() -> None:
    assert normalised("  The U.S.  an  'A' team\tof a theatre") == "us team of theatre"
    assert token_f1("the cat sat", "A cat!") == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert token_f1("no no", "no") == pytest.approx(2 * 0.5 * 1 / 1.5), "a bag, not a set"
    assert token_f1("cat", "dog") == token_f1("the", "a") == 0.0


def test_what_cannot_be_ranked() -> None:
    scores, records = judged(("q", [("a", 1.0, 1), ("b", 0.0, 0)]))
    for wrong, rows in ((scores[:1], records), (scores[:0], []), (np.ones((2, 3)), records)):
        with pytest.raises(DataError, match=r"scores of shape .* for \d candidates; give two for each"):
            evaluate(("choice_accuracy",), wrong, rows, CANDIDATE)
    with pytest.raises(DataError, match=r"metric 'choice_acuracy' is unknown \(did you mean 'choice_accuracy'"):
        evaluate(("choice_acuracy",), scores, records, CANDIDATE)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """150 questions whose right choice has a word of its own, wherever it stands."""
    path = tmp_path / "q.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("question", "first", "second", "right"))
        for i in range(150):
            cells = [f"blue {i}", f"green {i}"]
            lines.writerow((f"colour of {i}?", *(cells if i % 3 else cells[::-1]), "first" if i % 3 else 1))
    return path


def test_a_life_with_own_questions(table: Path, tmp_path: Path) -> None:
    run, form = tmp_path / "run", ("--text", "question", "--choices", "first,second")
    train = ("train", run, "--data", table, *form, "--label", "right", *SIZE)
    code, _, err = said(*train, "--epochs", 8, "--limit", 221)
    assert code == 0, err
    assert json.loads(said("status", run, "--json")[1])["retained"] == 220, "110 questions of two candidates"
    code, out, err = said("predict", run)
    asked = [i for i in range(150) if three_way(f"row-{i + 1:06d}") == "test"]
    told = f"choice_accuracy 1.0000 on {2 * len(asked)} test rows, candidates of {len(asked)} questions\n"
    assert (code, out) == (0, told), err
    result = json.loads(said("predict", run, "--json")[1])
    assert result["classes"] == list(CANDIDATE) and result["n"] == 2 * len(asked)
    answer = ("second", "first", "first")
    assert result["questions"] == [{"id": f"row-{i + 1:06d}", "answer": answer[i % 3]} for i in asked]
    code, out, err = said("predict", run, "--input", table, *form)
    assert (code, out.splitlines()[:3]) == (0, ["0\tsecond", "1\tfirst", "2\tfirst"]), err
    ids = {row["id"] for row in json.loads(said("predict", run, "--input", table, *form, "--json")[1])["rows"]}
    assert ids == {candidate(str(row), name) for row in range(150) for name in ("first", "second")}

    gone = _first_of(table, 221)
    code, out, err = said("delete", run, "--group", gone, "--json")
    assert code == 0, err
    assert sorted(json.loads(out)["deleted"]) == [candidate(gone, "first"), candidate(gone, "second")]
    code, out, _ = said("verify", run, *AUDIT)
    assert code == 0, out
    code, _, err = said("refresh", run)
    assert code == 0, err
    code, out, _ = said("verify", run, *AUDIT)
    assert code == 0, out

    for args, message in (
        (("--input", table, "--text", "question"), "ranks candidate answers to questions; name their columns"),
        (("--choices", "first,second"), "--choices says how --input is read"),
        (("--input", table, "--choices", "first,third"), "has no column"),
        (("--input", table, "--choices", "first,second", "--image", "first"), "image do not go together"),
        (("--input", tmp_path, *form), "is a folder of images, which has no columns"),
    ):
        code, out, err = said("predict", run, *args)
        assert (code, out) == (2, "") and message in err, err
    code, out, err = said("train", tmp_path / "other", *train[2:], "--limit", 1)
    assert (code, out) == (2, "") and "1 records of 'q' are less than a question of 2 candidates; take more" in err


def _first_of(table: Path, limit: int) -> str:
    data = load(table, text="question", choices="first,second", label="right")
    return question_of(data.subset(limit, len(data.validation), len(data.test)).train[0].id)[0]


def test_choices_are_for_runs_that_were_trained_on_them(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "plain"
    code, _, err = said(
        *("train", run, "--data", table, "--text", "question", "--label", "right", "--classes", "first,1"), *SIZE,
        "--epochs", 1,
    )  # fmt: skip
    assert code == 0, err
    code, out, err = said("predict", run, "--input", table, "--text", "question", "--choices", "first,second")
    assert (code, out) == (2, "") and "was not trained on questions with choices; leave out --choices" in err
    empty = tmp_path / "empty.csv"
    empty.write_text("text,a,b\nwho?,,\n")
    code, out, err = said("predict", run, "--input", empty, "--choices", "a,b")
    assert (code, out) == (2, "") and "row 0 has no choice in a, b" in err


@pytest.fixture
def multirc(monkeypatch: pytest.MonkeyPatch) -> None:
    text: dict[str, Any] = {name: Value("string") for name in ("paragraph", "question", "answer")}
    idx = {name: Value("int32") for name in ("paragraph", "question", "answer")}
    features = Features({**text, "idx": idx, "label": ClassLabel(names=["False", "True"])})
    rows = [
        {"paragraph": f"a paragraph on number {p}", "question": f"which question {q}"}
        | {"answer": f"{'blue' if a == q % 2 else 'red'} {a}"}
        | {"idx": {"paragraph": p, "question": q, "answer": a}, "label": int(a == q % 2)}
        for p in range(20) for q in (2 * p, 2 * p + 1) for a in range(3)
    ]  # fmt: skip
    made = {"train": rows, "validation": rows[:30], "test": [{**row, "label": -1} for row in rows[:6]]}
    tables = {split: datasets.Dataset.from_list(each, features=features) for split, each in made.items()}
    monkeypatch.setattr(hub, "_load", lambda *given: tables)


@pytest.mark.usefixtures("multirc")
def test_a_life_with_several_right_answers(tmp_path: Path) -> None:
    """Questions on one paragraph are deleted apart, and candidates too; tuning scores by the task's own metric."""
    run = tmp_path / "run"
    code, _, err = said("train", run, "--data", "superglue/multirc", *SIZE, "--epochs", 2)
    assert code == 0, err
    code, out, err = said("predict", run)
    assert code == 0 and out.startswith("f1a "), err
    assert ", question_em " in out and out.endswith("on 30 test rows, candidates of 10 questions\n")
    code, out, err = said("predict", run, "--json")
    result = json.loads(out)
    rows = {row["id"]: row["class"] == "right choice" for row in result["rows"]}
    true = [int(a == q % 2) for p in range(5) for q in (2 * p, 2 * p + 1) for a in range(3)]
    assert result["f1a"] == pytest.approx(measure(("f1",), [int(is_right) for is_right in rows.values()], true)["f1"])
    with closing(System.open(run)) as system:
        ids = system.ids()
    first = ids[0].split("\x1f")[0]
    code, out, err = said("delete", run, "--group", first, "--json")
    assert code == 0 and len(json.loads(out)["deleted"]) == 3, err
    code, out, err = said("delete", run, "--id", next(name for name in ids if not name.startswith(first)))
    assert code == 0, err
    code, out, _ = said("verify", run, *AUDIT)
    assert code == 0, out
    tuned = tmp_path / "tuned.json"
    code, out, err = said(
        *("tune", tuned, "--data", "superglue/multirc", "--model", "tiny", "--grid", "lr=0.01", "--engine", "fast"),
        *("--recipe", "epochs=1", "--shards", 1, "--slices", 1, "--recipe", "rank=2"),
    )
    assert code == 0 and ": f1a 0." in out, err
