"""Local files: ids, splits, classes that no deletable row decides, and errors that name the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3t.data import load
from s3t.data.local import load_local
from s3t.data.splits import carve_test, carve_validation, three_way
from s3t.errors import DataError
from s3t.records import Dataset


def csv(path: Path, count: int, header: str = "text,label", start: int = 0) -> Path:
    """Write ``count`` rows with labels no and yes in turn."""
    lines = [f"words {i},{'yes' if i % 2 else 'no'},u{i}" for i in range(start, start + count)]
    width = header.count(",") + 1
    path.write_text("\n".join([header, *(",".join(line.split(",")[:width]) for line in lines)]) + "\n")
    return path


def ids(data: Dataset) -> dict[str, list[str]]:
    return {split: [record.id for record in getattr(data, split)] for split in ("train", "validation", "test")}


def test_one_file_is_split_by_a_hash_of_generated_ids(tmp_path: Path) -> None:
    data = load_local(csv(tmp_path / "rows.csv", 200))
    every = [f"row-{number:06d}" for number in range(1, 201)]
    assert ids(data) == {
        split: [name for name in every if three_way(name) == split] for split in ("train", "validation", "test")
    }
    assert data.name == "rows"
    assert data.classes == ("no", "yes")
    first = next(record for record in (*data.train, *data.validation, *data.test) if record.id == "row-000002")
    assert (first.inputs, first.label) == ({"text": "words 1"}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"], "no cache beside it"


def test_columns_are_named_and_ids_taken_from_theirs(tmp_path: Path) -> None:
    data = load_local(csv(tmp_path / "rows.csv", 100, "words,answer,uid"), text="words", label="answer", id="uid")
    assert sorted(name for names in ids(data).values() for name in names) == sorted(f"u{i}" for i in range(100))


def test_files_of_their_own_are_validation_and_test(tmp_path: Path) -> None:
    main, more, last = (csv(tmp_path / f"{name}.csv", 100) for name in ("main", "more", "last"))
    every = [f"row-{number:06d}" for number in range(1, 101)]
    both = ids(load_local(main, validation=more, test=last))
    assert both["train"] == every
    assert both["validation"] == [f"validation-{number:06d}" for number in range(1, 101)]
    assert both["test"] == [f"test-{number:06d}" for number in range(1, 101)]
    first = ids(load_local(main, validation=more))
    assert first["test"] == [name for name in every if carve_test(name) == "test"]
    assert len(first["validation"]) == 100
    second = ids(load_local(main, test=last))
    assert second["validation"] == [name for name in every if carve_validation(name) == "validation"]
    assert len(second["test"]) == 100


def test_classes_come_from_what_is_never_deleted_or_are_declared(tmp_path: Path) -> None:
    main, more = csv(tmp_path / "main.csv", 50), csv(tmp_path / "more.csv", 50)
    with main.open("a") as out:
        out.write("words,maybe\n")
    with pytest.raises(DataError, match=r"record 'row-000051' .* label 'maybe'.*not among the classes .*--classes"):
        load_local(main, validation=more, test=csv(tmp_path / "last.csv", 10))
    data = load_local(main, classes=("yes", "no", "maybe"), validation=more, test=tmp_path / "last.csv")
    assert data.classes == ("yes", "no", "maybe")
    assert (data.train[0].label, data.train[-1].label) == (1, 2)


def test_a_label_outside_the_declared_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label 'yes'.*not among the declared classes \['no', 'yess'\] \(did you mean"):
        load_local(csv(tmp_path / "rows.csv", 50), classes=("no", "yess"))


@pytest.mark.parametrize("classes", [("no",), ("no", "no"), ()])
def test_fewer_than_two_distinct_classes_are_refused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="declare at least 2 distinct ones"):
        load_local(csv(tmp_path / "rows.csv", 50), classes=classes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,yes,1", "b,no,2", "c,no,1"], "record id '1' occurs twice, in rows 1 and 3"),
        (["a,yes,1", "b,no,"], "row 2 has no 'uid'"),
        (["a,yes,1", "  ,no,2"], r"row 2 \('2'\) has no 'text'"),
        (["a,yes,1", "b,,2"], r"row 2 \('2'\) has no 'label'"),
        (["a,yes,1", "b"], "row 2 has no 'uid'"),
        ([], "has no rows"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label,uid", *lines]) + "\n")
    with pytest.raises(DataError, match=message):
        load_local(path, id="uid", classes=("no", "yes"))


def test_a_missing_column_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'labl' \(did you mean 'label'\?\); it has text, label"):
        load_local(csv(tmp_path / "rows.csv", 5), label="labl")


def test_an_id_in_two_files_and_a_file_given_twice_are_refused(tmp_path: Path) -> None:
    header = "text,label,uid"
    main, more = csv(tmp_path / "main.csv", 20, header), csv(tmp_path / "more.csv", 20, header, start=19)
    with pytest.raises(DataError, match=r"record id 'u19' occurs twice, in .*main\.csv and .*more\.csv"):
        load_local(main, id="uid", validation=more)
    with pytest.raises(DataError, match="given as train and as test; a record that is in both could not be deleted"):
        load_local(main, test=tmp_path / "." / "main.csv")


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    number = next(i for i in range(1000) if three_way(f"u{i}") == "test")
    path = csv(tmp_path / "rows.csv", 1, "text,label,uid", start=number)
    with pytest.raises(DataError, match="leaves no records to train on"):
        load_local(path, id="uid", classes=("no", "yes"))


def test_the_source_loads_the_same_again(tmp_path: Path) -> None:
    plain = load_local(csv(tmp_path / "rows.csv", 100))
    assert plain.source == str(tmp_path / "rows.csv")
    assert load(plain.source) == plain
    header = "words,answer,uid"
    main, more = csv(tmp_path / "main.csv", 100, header), csv(tmp_path / "more.csv", 50, header, start=100)
    data = load_local(
        main, text="words", label="answer", id="uid", classes=["yes", "no"], validation=more, name="a name"
    )
    assert load(data.source) == data
    assert load(data.source).digest == data.digest != plain.digest
