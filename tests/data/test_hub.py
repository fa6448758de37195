"""Hub data, on small local folders in the hub's format; and that no connection is one error at once."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Features, Value

from s3t.answers import TEXT
from s3t.data import hub, load
from s3t.data.hub import is_hub_name, load_hub
from s3t.data.instructions import prompt
from s3t.data.splits import carve_test, carve_validation, three_way
from s3t.data.tasks import metrics_of
from s3t.errors import DataError

FEATURES = Features(
    {"text": Value("string"), "label": ClassLabel(names=["negative", "positive"]), "idx": Value("int64")}
)
Make = Callable[..., Path]


def rows(count: int, start: int = 0, hidden: bool = False) -> list[dict[str, Any]]:
    return [{"text": f"words {i}", "label": -1 if hidden else i % 2, "idx": i} for i in range(start, start + count)]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a folder as the hub has it: ``data/SPLIT-00000-of-00001.parquet`` with the features inside."""

    def write(splits: dict[str, list[dict[str, Any]]], features: Features = FEATURES) -> Path:
        folder = tmp_path / "owner-data"
        (folder / "data").mkdir(parents=True)
        for split, content in splits.items():
            columns = {name: [row[name] for row in content] for name in features}
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    return write


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Writing the folders shows no progress."""
    datasets.disable_progress_bars()


def test_splits_columns_and_class_names_are_the_hubs(make: Make) -> None:
    folder = make({"train": rows(20), "validation": rows(5, 20), "test": rows(5, 25)})
    data = load(str(folder))
    assert data.classes == ("negative", "positive")
    assert [record.id for record in data.train] == [f"train-{i:07d}" for i in range(20)]
    assert [record.id for record in data.validation] == [f"validation-{i:07d}" for i in range(5)]
    assert [record.inputs["text"] for record in data.test] == [f"words {i}" for i in range(25, 30)]
    assert [record.label for record in data.test] == [1, 0, 1, 0, 1]


def test_no_copy_of_a_local_folder_stays(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make({"train": rows(20), "validation": rows(5, 20), "test": rows(5, 25)})
    for name in ("scratch", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = sorted(path for path in tmp_path.rglob("*"))
    load_hub(str(folder))
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_hidden_test_labels_make_validation_the_test(make: Make) -> None:
    folder = make({"train": rows(300), "validation": rows(50, 300), "test": rows(50, 350, hidden=True)})
    data = load_hub(str(folder))
    assert [record.id for record in data.test] == [f"validation-{i:07d}" for i in range(50)]
    every = [f"train-{i:07d}" for i in range(300)]
    assert [record.id for record in data.validation] == [
        name for name in every if carve_validation(name) == "validation"
    ]
    assert [record.id for record in data.train] == [name for name in every if carve_validation(name) == "train"]
    with pytest.raises(DataError, match=r"split 'test' .* hides its labels; name another one for test"):
        load_hub(str(folder), test="test")


def test_a_validation_that_is_asked_for_stays_validation(make: Make) -> None:
    data = load_hub(str(make({"train": rows(300), "validation": rows(50, 300)})), validation="validation")
    assert len(data.validation) == 50
    every = [f"train-{i:07d}" for i in range(300)]
    assert [record.id for record in data.test] == [name for name in every if carve_test(name) == "test"]


@pytest.mark.parametrize("other", ["none", "test"])
def test_missing_splits_are_carved_from_train(make: Make, other: str) -> None:
    splits = {"train": rows(300)} | ({} if other == "none" else {"test": rows(50, 300)})
    data = load_hub(str(make(splits)))
    choose = three_way if other == "none" else carve_validation
    expected = [name for i in range(300) if choose(name := f"train-{i:07d}") == "validation"]
    assert [record.id for record in data.validation] == expected
    assert len(data.train) + len(data.validation) + len(data.test) == (300 if other == "none" else 350)


def test_ids_come_from_their_column(make: Make) -> None:
    data = load_hub(str(make({"train": rows(20), "validation": rows(5, 20), "test": rows(5, 25)})), id="idx")
    assert [record.id for record in data.test] == ["25", "26", "27", "28", "29"]


def test_two_columns_are_a_pair(make: Make) -> None:
    features = Features({"a": Value("string"), "b": Value("string"), "label": FEATURES["label"]})
    content = [{"a": f"a{i}", "b": f"b{i}", "label": i % 2} for i in range(20)]
    data = load_hub(str(make(dict.fromkeys(("train", "validation", "test"), content), features)), text="a,b")
    assert data.train[3].inputs == {"text": "a3", "text_pair": "b3"}


def test_declared_classes_reorder_the_features_names(make: Make) -> None:
    folder = make({"train": rows(4), "validation": rows(4, 4), "test": rows(4, 8)})
    assert [record.label for record in load_hub(str(folder)).train] == [0, 1, 0, 1]
    data = load_hub(str(folder), classes=("positive", "negative"))
    assert [record.label for record in data.train] == [1, 0, 1, 0]
    with pytest.raises(
        DataError, match=r"'train-0000001' has label 'positive', which is not among \['negative', 'good'\]"
    ):
        load_hub(str(folder), classes=("negative", "good"))


def test_labels_without_names_must_be_declared(make: Make) -> None:
    features = Features({**FEATURES, "label": Value("int64")})
    folder = make({"train": rows(4), "validation": rows(4, 4), "test": rows(4, 8)}, features)
    with pytest.raises(DataError, match="does not name its classes; declare them with --classes"):
        load_hub(str(folder))
    assert [record.label for record in load_hub(str(folder), classes=("0", "1")).train] == [0, 1, 0, 1]


def test_rows_without_text_or_label_are_left_out_and_ids_keep_their_positions(make: Make) -> None:
    content = rows(6)
    content[1]["text"], content[2]["text"], content[4]["label"] = "  ", None, -1
    data = load_hub(str(make({"train": content, "validation": rows(4, 6), "test": rows(4, 10)})))
    assert [record.id for record in data.train] == ["train-0000000", "train-0000003", "train-0000005"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "txt"}, r"no column 'txt' \(did you mean 'text'\?\); it has text, label, idx"),
        ({"label": "lable"}, r"no column 'lable' \(did you mean 'label'\?\)"),
        ({"id": "id"}, r"no column 'id'"),
        ({"text": "text,idx,label"}, "names 3 columns; give one, or two"),
        ({"validation": "dev"}, "no split 'dev' for validation; it has train, validation, test"),
        ({"test": "validation"}, "are not apart; a record in two could not be deleted"),
        ({"validation": "train"}, "are not apart"),
    ],
)
def test_what_is_not_there_is_named(make: Make, options: dict[str, str], message: str) -> None:
    folder = make({"train": rows(4), "validation": rows(4, 4), "test": rows(4, 8)})
    with pytest.raises(DataError, match=message):
        load_hub(str(folder), **options)


def test_data_without_a_train_split_is_refused(make: Make) -> None:
    with pytest.raises(DataError, match="has no train split; it has validation, test"):
        load_hub(str(make({"validation": rows(4), "test": rows(4, 4)})))


def test_glue_is_short_for_its_repository_and_columns(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": FEATURES["label"]})
    content = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 2} for i in range(30)]
    hidden = [{**row, "label": -1} for row in content]
    table = {
        "train": datasets.Dataset.from_list(content, features=features),
        "validation_matched": datasets.Dataset.from_list(content[:10], features=features),
        "validation_mismatched": datasets.Dataset.from_list(content[:5], features=features),
        "test_matched": datasets.Dataset.from_list(hidden, features=features),
    }
    asked: list[tuple[str, str]] = []

    def give(name: str, path: str, config: str, scratch: str) -> dict[str, Any]:
        asked.append((path, config))
        return table

    monkeypatch.setattr(hub, "_load", give)
    data = load("glue/mnli")
    assert asked == [("nyu-mll/glue", "mnli")]
    assert [record.id for record in data.test] == [f"validation_matched-{i:07d}" for i in range(10)]
    assert data.test[0].inputs == {"text": "p0", "text_pair": "h0"}
    assert data.source == "glue/mnli"


def test_superglue_tasks_with_more_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """WiC names a word before two sentences; WSC marks two spans of a text."""
    answer = ClassLabel(names=["False", "True"])
    wic = {"word": Value("string"), "sentence1": Value("string"), "sentence2": Value("string"), "label": answer}
    row = {"word": "bank", "sentence1": "The bank is closed.", "sentence2": "By the river bank.", "label": 0}
    made = {s: datasets.Dataset.from_list([row] * 20, features=Features(wic)) for s in ("train", "validation")}
    monkeypatch.setattr(hub, "_load", lambda *given: made)
    data = load("superglue/wic")
    assert data.classes == ("False", "True") and metrics_of("superglue/wic", data.classes) == ("accuracy",)
    assert data.train[0].inputs == {"text": "bank: The bank is closed.", "text_pair": "By the river bank."}
    spans = {"span1_text": Value("string"), "span1_index": Value("int32")}
    spans |= {"span2_text": Value("string"), "span2_index": Value("int32")}
    said = {"text": "Mark told Pete Smith that he was late .", "label": 1}
    said |= {"span1_text": "Pete Smith", "span1_index": 2, "span2_text": "he", "span2_index": 5}
    features = Features({"text": Value("string"), **spans, "label": answer})
    made = {s: datasets.Dataset.from_list([said] * 20, features=features) for s in ("train", "validation")}
    assert load("superglue/wsc").train[0].inputs == {"text": "Mark told *Pete Smith* that #he# was late ."}
    made["train"] = datasets.Dataset.from_list([{**said, "span2_index": 9}] * 20, features=features)
    with pytest.raises(DataError, match="the span 'he' at word 9 lies outside the text"):
        load("superglue/wsc")


def test_stsb_asks_for_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the hub's form: a float column; the test split hides its numbers behind -1."""
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": Value("float32")})
    content = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "label": i % 11 / 2} for i in range(40)]
    table = {
        "train": datasets.Dataset.from_list(content, features=features),
        "validation": datasets.Dataset.from_list(content[:12], features=features),
        "test": datasets.Dataset.from_list([{**row, "label": -1.0} for row in content], features=features),
    }
    monkeypatch.setattr(hub, "_load", lambda *given: table)
    data = load("glue/stsb")
    assert data.classes == ("0.0:5.0",)
    assert [record.label for record in data.test] == [i % 11 / 2 for i in range(12)]
    assert len(data.train) + len(data.validation) == 40 and {r.id[:5] for r in data.validation} == {"train"}
    wide = load("owner/name", number="-1:5", text="sentence1,sentence2")
    assert len(wide.test) == 40 and {record.label for record in wide.test} == {-1.0}
    with pytest.raises(DataError, match="does not name its classes"):
        load("owner/name", text="sentence1,sentence2")
    with pytest.raises(DataError, match="either numbers, '0:5', or the classes"):
        load("owner/name", number="0:5", classes=("a", "b"), text="sentence1,sentence2")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("glue/sst2", True),
        ("owner/name:config", True),
        ("a/b/c", False),
        ("trec7", False),
        ("/a", False),
        ("a/", False),
    ],
)
def test_the_form_of_hub_names(name: str, known: bool) -> None:
    assert is_hub_name(name) is known


OFFLINE = """
import sys, time
from s3t.data import load
from s3t.errors import DataError
import datasets, huggingface_hub
start = time.monotonic()
try:
    load("owner/no-such-data")
except DataError as error:
    print(error)
    sys.exit(0 if time.monotonic() - start < 10 else "slow")
sys.exit("no error")
"""


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0"}])
def test_without_a_connection_there_is_one_error_at_once(
    python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, variables: dict[str, str]
) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    done = python("-c", OFFLINE, **nowhere, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data 'owner/no-such-data' is no pack and no file here, and cannot be loaded from the hub:" in done.stdout
    assert "HF_HUB_OFFLINE=1" in done.stdout
    assert "Retrying" not in done.stderr


def test_instructions_are_read_as_such(make: Make) -> None:
    """Also where the set has the whole text in a column of its own, as the Alpaca set has."""
    features = Features({name: Value("string") for name in ("instruction", "input", "output", "text")})
    given = [
        {"instruction": f"do {i}", "input": "it" if i % 2 else "", "output": f"done {i}", "text": "all"}
        for i in range(60)
    ]
    folder = make({"train": [*given, {**given[0], "instruction": ""}]}, features)
    data = load(str(folder))
    assert data.classes == TEXT and len(data.train) + len(data.validation) + len(data.test) == 60
    assert data.test and data.validation
    first = next(record for record in (*data.train, *data.validation, *data.test) if record.id == "train-0000001")
    assert first.inputs == {"text": prompt("do 1", "it"), "answer": "done 1"}
    own = load(str(folder), text="instruction", answer="text")
    assert {record.inputs["answer"] for record in own.train} == {"all"}
    with pytest.raises(DataError, match=r"are texts, so number='0:5' means nothing; leave it out"):
        load(str(folder), text="instruction", answer="output", number="0:5")
