"""A person's records: one slot, one request, and nothing of them afterwards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import said
from hypothesis import given
from hypothesis import strategies as st

import s3t.data
from s3t import S3T
from s3t.data.splits import three_way
from s3t.errors import DataError
from s3t.partition import slot, tag
from s3t.records import Layout, Recipe, Record, grouped, owner
from verify import derive

KEY = bytes(range(32))
PEOPLE = [f"user {i}" for i in range(24)]
NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\x1f"), min_size=1)


@given(NAMES, NAMES, st.integers(1, 9), st.integers(1, 9))
def test_a_group_lies_in_one_slot_and_one_split(group: str, name: str, shards: int, slices: int) -> None:
    record_id, layout = grouped(group, name), Layout(shards, slices, 1)
    assert owner(record_id) == owner(group) == group
    assert slot(KEY, record_id, layout) == slot(KEY, group, layout)
    assert slot(KEY, record_id, layout) == derive.slot(KEY, record_id, shards, slices)
    assert three_way(record_id) == three_way(group)
    assert tag(KEY, record_id) != tag(KEY, group)


def test_ids_that_only_look_grouped() -> None:
    layout = Layout(7, 5, 1)
    for odd in ("\x1fa", "\x1f"):
        assert owner(odd) == odd and slot(KEY, odd, layout) == derive.slot(KEY, odd, 7, 5)
    for group in ("", "a\x1fb"):
        with pytest.raises(DataError, match="is not usable: give a non-empty string"):
            grouped(group, "1")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Five rows of each person."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "user"))
        for i in range(120):
            writer.writerow((f"the cat {'sat ' * (i % 4)}on number {i}", "ab"[i % 2], PEOPLE[i % 24]))
    return path


def test_columns_of_a_file(table: Path, tmp_path: Path) -> None:
    data = s3t.data.load(table, group="user", classes=("a", "b"))
    assert s3t.data.load(data.source) == data
    splits = [{owner(record.id) for record in part} for part in (data.train, data.validation, data.test)]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 24
    assert all(record.id.startswith(f"{owner(record.id)}\x1frow-") for record in data.train)
    broken = tmp_path / "broken.csv"
    broken.write_text("text,label,user\nx,a,\n")
    with pytest.raises(DataError, match=r"row 1, column 'user': group '' is not usable"):
        s3t.data.load(broken, group="user", classes=("a", "b"))


def test_one_request_removes_a_person(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    size = ("--model", "tiny", "--epochs", 1, "--rank", 2, "--shards", 2, "--slices", 2, "--budget", 2)
    data = ("--data", table, "--group-by", "user", "--classes", "a,b", "--no-duplicates")
    code, _, err = said("train", run, *size, *data)
    assert code == 0, err
    person = next(name for name in PEOPLE if three_way(name) == "train")
    code, out, err = said("delete", run, "--group", person, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert len(told["deleted"]) == 5 and len(told["slots"]) == 1 and told["request"] == "r000001"
    code, out, err = said("delete", run, "--id", grouped(person, "row-000001"), "--id", told["deleted"][0])
    assert ((code, out) == (2, "") and "is not in this system" in err) or "was deleted before" in out
    code, out, err = said("delete", run, "--group", person)
    assert (code, out) == (2, "") and f"no retained training record belongs to group '{person}'" in err
    code, out, _ = said("verify", run, "--level", "E0", "--level", "E1a", "--level", "E1b", "--no-isolate")
    assert code == 0, out
    assert not [path for path in run.rglob("*") if path.is_file() and f"{person}\x1f".encode() in path.read_bytes()]
    told_again = said("delete", run, "--id", told["deleted"][0])[1]
    assert f"record '{person}/row-" in told_again and "was deleted before" in told_again


def test_residue_of_a_group_is_found_in_any_form(tmp_path: Path) -> None:
    """Raw, and as JSON writes the separator; the group's name alone too, unless somebody retained has it."""

    from verify.residue import search

    gone, kept = (Record(grouped(who, "row-1"), {"text": "x"}, 0) for who in ("somebody", "another one"))
    folder = tmp_path / "run"
    folder.mkdir()
    forms = {"raw": gone.id.encode(), "json": json.dumps(gone.id).encode(), "name": b"of somebody"}
    for form, content in forms.items():
        (folder / "log").write_bytes(b"... " + content + b" ...")
        assert search(folder, [gone], [kept])[0].verdict.value == "VIOLATED", form
    also = Record(grouped("somebody", "row-2"), {"text": "y"}, 0)
    (folder / "log").write_bytes(forms["name"])
    assert search(folder, [gone], [kept, also])[0].verdict.value == "HOLDS"
    (folder / "log").write_bytes(forms["json"])
    assert search(folder, [gone], [kept, also])[0].verdict.value == "VIOLATED"


def test_a_name_that_begins_another_is_not_it(tmp_path: Path) -> None:
    records = [Record(grouped(who, str(i)), {"text": f"{who} {i}"}, i % 2) for who in ("ann", "anna") for i in range(4)]
    system = S3T(tmp_path / "run", Layout(1, 1, 1), classes=("a", "b"), model="tiny", recipe=Recipe(rank=2, epochs=1))
    system.fit(records)
    assert system.members("ann") == [record.id for record in records[:4]]
    system.delete(system.members("ann"))
    assert system.ids() == system.members("anna") == [record.id for record in records[4:]]
