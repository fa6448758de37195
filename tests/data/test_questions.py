"""Questions with candidate answers: SuperGLUE's in the hub's form, own ones in files, whole in every split and subset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Features, Value
from datasets import List as Repeated

from s3t.answers import CANDIDATE
from s3t.data import hub, load
from s3t.data.questions import right_choice
from s3t.data.splits import carve_validation
from s3t.data.tasks import metrics_of
from s3t.errors import DataError
from s3t.records import Dataset, Record, candidate, grouped, owner, question_of

TEXT = Value("string")
COPA = Features(
    {
        **dict.fromkeys(("premise", "choice1", "choice2", "question"), TEXT),
        "idx": Value("int32"),
        "label": ClassLabel(names=["choice1", "choice2"]),
    }
)
MULTIRC = Features(
    {
        **dict.fromkeys(("paragraph", "question", "answer"), TEXT),
        "idx": {name: Value("int32") for name in ("paragraph", "question", "answer")},
        "label": ClassLabel(names=["False", "True"]),
    }
)
RECORD = Features(
    {
        **dict.fromkeys(("passage", "query"), TEXT),
        "entities": Repeated(TEXT),
        "entity_spans": {"text": Repeated(TEXT), "start": Repeated(Value("int32")), "end": Repeated(Value("int32"))},
        "answers": Repeated(TEXT),
        "idx": {"passage": Value("int32"), "query": Value("int32")},
    }
)
Give = Callable[[Features, dict[str, list[dict[str, Any]]]], None]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Makes tables what the hub has."""

    def made(features: Features, splits: dict[str, list[dict[str, Any]]]) -> None:
        tables = {split: datasets.Dataset.from_list(rows, features=features) for split, rows in splits.items()}
        monkeypatch.setattr(hub, "_load", lambda *given: tables)

    return made


def copa(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"premise": f"The man fell {i}.", "choice1": f"He tripped {i}.", "choice2": f"He got hurt {i}."}
        | {"question": ("cause", "effect")[i % 2], "idx": i, "label": i % 2, **changes}
        for i in range(count)
    ]


def multirc(paragraphs: int, **changes: Any) -> list[dict[str, Any]]:
    """Two questions on each paragraph with three answers each, of which those of the question's parity are right."""
    return [
        {"paragraph": f"Long text {p}.", "question": f"Who did {q}?", "answer": f"Person {a}."}
        | {"idx": {"paragraph": p, "question": q, "answer": a}, "label": int(a % 2 == q % 2), **changes}
        for p in range(paragraphs)
        for q in (2 * p, 2 * p + 1)
        for a in range(3)
    ]


def record(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"passage": f"Ada met Bo in Oslo {i}.\n@highlight\nAda is  a poet\n@highlight\nBo sings"}
        | {"query": "They say @placeholder wrote it.", "entities": ["Ada", "Bo", "Ada", "Oslo"]}
        | {"entity_spans": {"text": ["Ada"], "start": [0], "end": [3]}, "answers": ["Ada", "Miss Ada"]}
        | {"idx": {"passage": i, "query": i}, **changes}
        for i in range(count)
    ]


def whole(data: Dataset, size: int) -> None:
    """Every question has all of its candidates, in one split."""
    seen: set[str] = set()
    for part in (data.train, data.validation, data.test):
        counted = Counter(question_of(record.id)[0] for record in part)
        assert part and set(counted.values()) == {size} and not seen & set(counted)
        seen |= set(counted)


def test_copa(give: Give) -> None:
    give(COPA, {"train": copa(80), "validation": copa(10), "test": copa(5, label=-1)})
    data = load("superglue/copa")
    assert data.classes == CANDIDATE and metrics_of(data.name, data.classes) == ("choice_accuracy",)
    whole(data, 2)
    first, second, third, _ = data.test[:4]
    assert first.id == candidate("validation-0000000", "choice1") and question_of(third.id)[0] == "validation-0000001"
    assert first.inputs == {"text": "The man fell 0. What was the cause of this?", "text_pair": "He tripped 0."}
    assert second.inputs["text_pair"] == "He got hurt 0."
    assert str(third.inputs["text"]).endswith("What happened as a result?")
    assert [record.label for record in data.test[:4]] == [1, 0, 0, 1]
    ids = {question_of(record.id)[0] for record in data.validation}
    assert ids == {name for i in range(80) if carve_validation(name := f"train-{i:07d}") == "validation"}


def test_multirc(give: Give) -> None:
    give(MULTIRC, {"train": multirc(40), "validation": multirc(3), "test": multirc(2, label=-1)})
    data = load("superglue/multirc")
    whole(data, 3)
    assert metrics_of(data.name, data.classes) == ("f1a", "question_em")
    assert [record.id for record in data.test[2:4]] == [
        candidate("validation-00000-00000", "2"),
        candidate("validation-00000-00001", "0"),
    ]
    assert data.test[4].inputs == {"text": "Long text 0.", "text_pair": "Who did 1? Person 1."}
    assert [record.label for record in data.test[:6]] == [1, 0, 1, 0, 1, 0]


def test_record(give: Give) -> None:
    give(RECORD, {"train": record(60), "validation": record(4), "test": record(3, answers=[])})
    data = load("superglue/record")
    whole(data, 3)
    assert len(data.test) == 12, "the validation split, for the test split hides its answers"
    assert metrics_of(data.name, data.classes) == ("answer_f1", "answer_em")
    assert [question_of(record.id)[1] for record in data.test[:3]] == ["Ada", "Bo", "Oslo"]
    assert [record.label for record in data.test[:3]] == [1, 0, 0]
    text = "Ada met Bo in Oslo 0. Ada is a poet Bo sings"
    assert data.test[1].inputs == {"text": text, "text_pair": "They say Bo wrote it."}


@pytest.mark.parametrize(
    ("features", "task", "rows", "message"),
    [
        (COPA, "copa", copa(1, question="why"), "row 'train-0000000' .*question 'why' is neither cause nor effect"),
        (RECORD, "record", record(1, query="Who?"), "the query 'Who[?]' has no @placeholder; mend or drop the row"),
        (RECORD, "record", record(1, entities=["Ada", ""]), "candidate '' of question 'train-0000000' is not usable"),
        (MULTIRC, "multirc", multirc(1) * 2, "occurs twice; ids must be unique"),
    ],
)
def test_rows_that_are_not_of_the_form(
    give: Give, features: Features, task: str, rows: list[dict[str, Any]], message: str
) -> None:
    give(features, {"train": rows})
    with pytest.raises(DataError, match=message):
        load(f"superglue/{task}")


def test_rows_without_text_or_answers_are_left_out(give: Give) -> None:
    rows = [*copa(1, premise="  "), *copa(2)[1:], *copa(1, label=-1)]
    give(COPA, {"train": rows, "validation": copa(2), "test": copa(2)})
    assert [record.id for record in load("superglue/copa").train] == [
        candidate("train-0000001", name) for name in ("choice1", "choice2")
    ]


@pytest.mark.parametrize("option", ["text", "choices", "label", "id", "classes", "number"])
def test_tasks_by_name_have_their_own_columns(option: str) -> None:
    with pytest.raises(DataError, match=f"'superglue/copa' has questions of a form of its own; leave out {option}"):
        load("superglue/copa", **{option: "x"})


def test_a_persons_questions_stay_together(give: Give) -> None:
    """The person's group decides slot and split; the question is still told by the id."""
    features = Features({**COPA, "who": TEXT})
    rows = [{**row, "who": f"user {i % 7}"} for i, row in enumerate(copa(42))]
    give(features, {"train": rows, "validation": rows[:3]})
    data = load("superglue/copa", group="who", validation="validation")
    assert data.train[0].id == "user 0\x1ftrain-0000000\x1fchoice1"
    assert question_of(data.train[0].id) == (grouped("user 0", "train-0000000"), "choice1")
    splits = [{owner(record.id) for record in part} for part in (data.train, data.test)]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 7


def test_own_questions_of_the_hub(give: Give) -> None:
    """By position, as PIQA has it, and through a class label, which is a position too."""
    rows = [{"goal": f"g{i}", "sol1": f"a{i}", "sol2": f"b{i}", "label": i % 2} for i in range(30)]
    texts = dict.fromkeys(("goal", "sol1", "sol2"), TEXT)
    for kind in (Value("int64"), ClassLabel(names=["x", "y"])):
        hidden = [{**row, "label": -1} for row in rows]
        give(Features({**texts, "label": kind}), {"train": rows, "validation": rows[:9], "test": hidden})
        data = load("owner/name", text="goal", choices="sol1,sol2")
        assert data.classes == CANDIDATE and [record.label for record in data.test[:4]] == [1, 0, 0, 1]
        assert data.test[1].inputs == {"text": "g0", "text_pair": "b0"}
    with pytest.raises(DataError, match=r"no column 'sol3' \(did you mean"):
        load("owner/name", text="goal", choices="sol1,sol3")
    with pytest.raises(DataError, match="names 2 columns; give one, the question's, beside the choices"):
        load("owner/name", text="goal,sol1", choices="sol1,sol2")
    with pytest.raises(DataError, match="and classes do not go together"):
        load("owner/name", text="goal", choices="sol1,sol2", classes=("x", "y"))
    with pytest.raises(DataError, match="task 'superglue/wic' has no questions with choices"):
        load("superglue/wic", choices="sol1,sol2")
    many = [{**row, "sol1": ["a", "b"]} for row in rows]
    give(Features({**texts, "sol1": Repeated(TEXT), "label": Value("int64")}), {"train": many})
    with pytest.raises(DataError, match="row 'train-0000000' of 'owner/name': column 'sol1' holds no plain text"):
        load("owner/name", text="goal", choices="sol1,sol2")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """60 questions; the third choice is missing in every other one."""
    rows = [
        {"q": f"which is {i}", "a": f"one {i}", "b": f"two {i}", "c": f"three {i}" if i % 2 else None}
        | {"right": "ab"[i % 2], "user": f"user {i % 12}", "name": f"n{i}"}
        for i in range(60)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_questions_of_a_file(table: Path) -> None:
    data = load(table, text="q", choices="a, b,c", label="right", id="name")
    assert load(data.source) == data and "choices=a%2C+b%2Cc" in data.source
    every = {record.id: record for record in (*data.train, *data.validation, *data.test)}
    assert len(every) == 150 and data.classes == CANDIDATE
    assert every["n1\x1fc"] == Record("n1\x1fc", {"text": "which is 1", "text_pair": "three 1"}, 0)
    assert every["n1\x1fb"].label == every["n0\x1fa"].label == 1 and "n0\x1fc" not in every
    for part in (data.train, data.validation, data.test):
        counted = Counter(question_of(record.id)[0] for record in part)
        assert all(counted[name] == 2 + int(name[1:]) % 2 for name in counted)
    by_person = load(table, text="q", choices="a,b,c", label="right", group="user")
    assert {record.id.count("\x1f") for record in by_person.train} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": "a"}, "choices='a' does not name two or more distinct columns"),
        ({"choices": "a,a"}, "choices='a,a' does not name two or more distinct columns"),
        ({"choices": "a,,b"}, "does not name two or more distinct"),
        ({"choices": "a,d"}, "has no column 'd'"),
        ({"choices": "a,b", "classes": ("x", "y")}, "choices='a,b' and classes do not go together"),
        ({"choices": "a,b", "number": "0:1"}, "choices='a,b' and number do not go together"),
        ({"choices": "a,b", "image": "q"}, "choices='a,b' and image do not go together"),
        ({"choices": "b,c"}, r"row 1 \('row-000001'\): only 1 of the choices b, c are filled in"),
        ({"choices": "a,b", "label": "user"}, r"row 1 .*label 'user 0' is none of the choices"),
    ],
)
def test_what_cannot_be_read_as_questions(table: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(table, **{"text": "q", "label": "right", **options})


def test_which_choice_is_right() -> None:
    columns, cells = ("a", "b", "c"), ("red", "b", "")
    assert [right_choice(label, columns, cells) for label in ("a", "0", "red", " red ", "b", "1")] == [*"aaaabb"]
    for label, message in (
        ("c", r"label 'c' is none of the choices.*\(a, b\), its position from 0, or its words"),
        ("2", "label '2' is none of the choices"),
        ("3", "label '3' is none of the choices"),
        ("rad", r"did you mean 'red'"),
        ("", "label '' is none of the choices"),
    ):
        with pytest.raises(DataError, match=message):
            right_choice(label, columns, cells)
    with pytest.raises(DataError, match="label '1' can mean each of a and b; give the right choice's column name"):
        right_choice("1", ("a", "b"), ("1", "2"))
    with pytest.raises(DataError, match="label 'b' can mean each of a and b"):
        right_choice("b", ("a", "b"), ("b", "x"))


def test_subsets_have_whole_questions(table: Path) -> None:
    data = load(table, text="q", choices="a,b,c", label="right")
    sizes = Counter(question_of(record.id)[0] for record in data.train)
    before: set[str] = set()
    for count in range(3, len(data.train) + 1):
        part = data.subset(count, 0, 0)
        kept = Counter(question_of(record.id)[0] for record in part.train)
        assert before <= set(kept) and count - 3 < len(part.train) <= count
        assert all(kept[name] == sizes[name] for name in kept)
        assert data.subset(len(part.train), 0, 0).train == part.train, "the audit finds it by its size"
        before = set(kept)
    assert data.subset(len(data.train), 0, 0).train == data.train
    with pytest.raises(DataError, match=r"1 records of 'q' are less than a question of [23] candidates; take more"):
        data.subset(1, 0, 0)


def test_names_of_candidates() -> None:
    assert question_of("alone") == ("alone", "") and question_of("\x1fodd") == ("\x1fodd", "")
    for question, name in (("", "a"), ("q", ""), ("q", "a\x1fb")):
        with pytest.raises(DataError, match="is not usable: give non-empty strings"):
            candidate(question, name)
