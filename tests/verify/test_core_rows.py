"""Rows against what was committed to, word for word, and twins of deleted records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from s3t.records import Record
from verify import derive
from verify.rows import check_rows, duplicates

V, U, H = "VIOLATED", "UNDECIDED", "HOLDS"
COUNT = "16 rows were committed to, but {} are retained and {} tombstoned: {} leaves belong to no retained row"


def told(run: Any, source: Any = None) -> list[tuple[str, str]]:
    found = check_rows(*run.read(), source)
    assert {(f.check, f.tensor, f.node) for f in found} == {("E0 rows", "", "")}
    return [(f.verdict.value, f.message) for f in found]


def update(assignment: str, name: str = "row-001") -> Callable[[Any], Any]:
    return lambda run: run.store.execute(f"UPDATE records SET {assignment} WHERE id=?", (name,))


def slot(name: str) -> tuple[int, int]:
    return derive.slot(bytes(range(32)), name, 2, 2)


S = slot("row-001")
EXACT: dict[str, tuple[Callable[[Any], Any], list[tuple[str, str]]]] = {
    "another shard": (
        update(f"shard={1 - S[0]}"),
        [(V, f"record 'row-001' is in slot ({1 - S[0]}, {S[1]}); its id gives {S}")],
    ),
    "another slice": (
        update(f"slice={1 - S[1]}"),
        [(V, f"record 'row-001' is in slot ({S[0]}, {1 - S[1]}); its id gives {S}")],
    ),
    "tag": (update("tag='ab'"), [(V, "record 'row-001' is stored under another record's tag")]),
    "split": (
        update("split='extra', shard=NULL, slice=NULL"),
        [(V, "record 'row-001' is of unknown split 'extra'"), (V, COUNT.format(15, 0, 1))],
    ),
    "salt": (
        update("salt=x'00'"),
        [(V, "record 'row-001' does not match its commitment: its content was changed")],
    ),
    "no salt": (update("salt=NULL"), [(U, "record 'row-001' has no salt or commitment")]),
    "no salt of a test row": (update("salt=NULL", "probe-000"), [(H, "")]),
    "no commitment of a test row": (update('"commitment"=NULL', "probe-000"), [(H, "")]),
    "a validation row": (update("split='validation'", "probe-000"), [(H, "")]),
    "shard of a test row": (update("shard=0", "probe-000"), [(V, "record 'probe-000' of split test has a slot")]),
    "slice of a test row": (update("slice=0", "probe-000"), [(V, "record 'probe-000' of split test has a slot")]),
    "lost": (
        lambda run: run.store.execute("DELETE FROM records WHERE id IN ('row-001', 'row-002')"),
        [(V, COUNT.format(14, 0, 2))],
    ),
}
CLEAN = "16 train rows match commitments, slots and counts; no deleted row is present"


@pytest.mark.parametrize("name", EXACT)
def test_each_fault_says_exactly_this(forge: Callable[..., Any], name: str) -> None:
    spoil, expected = EXACT[name]
    run = forge()
    spoil(run)
    run.store.commit()
    assert told(run) == [(verdict, message or CLEAN) for verdict, message in expected]


def test_without_a_commitment_nothing_is_decided_and_the_row_is_unknown(forge: Callable[..., Any]) -> None:
    run = forge()
    update('"commitment"=NULL')(run)
    run.store.commit()
    assert told(run) == [
        (U, "record 'row-001' has no salt or commitment"),
        (V, "1 retained rows are not among the commitments taken before training"),
        (V, COUNT.format(16, 0, 1)),
    ]


def test_a_clean_run_is_counted(forge: Callable[..., Any]) -> None:
    run = forge()
    (found,) = check_rows(*run.read())
    assert (found.check, found.message, found.details) == ("E0 rows", CLEAN, {"rows": 19})


def test_a_deleted_row_that_is_present(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-000", "row-001")
    for record in run.records[:2]:
        run.store.execute("INSERT INTO records VALUES(?,?,?,?,?,?,?,?)", run.row(record, "train"))
    run.store.commit()
    assert told(run) == [
        (V, "the deleted record 'row-000' is still in records.sqlite"),
        (V, "the deleted record 'row-001' is still in records.sqlite"),
        (V, "bytes of 2 deleted rows remain in records.sqlite"),
    ]


def test_bytes_of_a_deleted_row_anywhere_in_the_files_of_the_database(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-000")
    read = run.read()
    (tag,) = read[1].tombstones
    for raw, left in ((b"zz" + tag.encode(), 1), (b"0" + tag.encode() + b"0", 1), (tag[1:].encode(), 0)):
        path = run.folder / "records.sqlite-journal"
        path.write_bytes(raw)
        found = [f.message for f in check_rows(*read)]
        path.unlink()
        assert ("bytes of 1 deleted rows remain in records.sqlite-journal" in found) is bool(left)


def test_leaves_key_and_root(forge: Callable[..., Any]) -> None:
    run = forge()
    evidence, state = run.read()
    (found,) = check_rows(dataclasses.replace(evidence, leaves=evidence.leaves[::-1]), state)
    assert found.message == "the leaves in commitments do not give the root in the ledger's first entry"
    create = evidence.entries[0]
    other = dataclasses.replace(create, body=dict(create.body) | {"key": "00"})
    (found,) = check_rows(dataclasses.replace(evidence, entries=(other, *evidence.entries[1:])), state)
    assert found.message == "secret.key is not the slot key that was committed to before training"


def test_rows_not_committed_to_are_counted(forge: Callable[..., Any]) -> None:
    run = forge()
    run.store.execute("UPDATE records SET \"commitment\"='ab', salt=NULL WHERE id='row-001'")
    run.store.execute("UPDATE records SET \"commitment\"='cd', salt=NULL WHERE id='row-002'")
    run.store.commit()
    assert told(run)[2:] == [
        (V, "2 retained rows are not among the commitments taken before training"),
        (V, COUNT.format(16, 0, 2)),
    ]


def test_the_same_leaf_for_several_rows(forge: Callable[..., Any]) -> None:
    run = forge()
    first = run.rows[0][6]
    for name in ("row-001", "row-002"):
        run.store.execute('UPDATE records SET "commitment"=?, salt=NULL WHERE id=?', (first, name))
    run.store.commit()
    assert (V, "2 retained rows are not among the commitments taken before training") in told(run)


def test_against_the_source(forge: Callable[..., Any]) -> None:
    run = forge()
    assert told(run, run.records) == [(H, CLEAN)]
    assert told(run, run.records[2:]) == [(V, "2 train rows were never handed in, first 'row-000'")]
    more = [*run.records, Record("zz", {"text": "x"}, 0), Record("late", {"text": "x"}, 0)]
    assert told(run, more) == [(V, "2 records are neither retained nor deleted, first 'late'")]
    changed = [Record(r.id, r.inputs, 2 - r.label) if r.id in ("row-003", "row-005") else r for r in run.records]
    assert told(run, changed) == [(V, "2 rows differ from what was handed in, first 'row-003'")]
    run.delete("row-000")
    assert told(run, run.records) == [(H, CLEAN.replace("16", "15"))]


def test_every_deleted_records_slot_must_have_been_dropped(forge: Callable[..., Any]) -> None:
    run = forge()
    both = [next(row for row in run.rows if row[4] == "train" and row[2:4] == place) for place in ((1, 1), (0, 1))]
    run.store.execute("DELETE FROM records WHERE id IN (?, ?)", (both[0][1], both[1][1]))
    run.store.commit()
    run.enter("request", {"request": "r", "tags": [row[0] for row in both], "slots": []})
    assert told(run, run.records) == [(V, "a deleted record's slot (0, 1) was not dropped by any request")]
    run.enter("request", {"request": "r", "tags": [], "slots": [[0, 1]]})
    assert told(run, run.records) == [(V, "a deleted record's slot (1, 1) was not dropped by any request")]


def test_twins_have_the_same_inputs_and_label_under_another_id(forge: Callable[..., Any]) -> None:
    records = [
        Record("one", {"text": "same words", "more": "b"}, 0),
        Record("two", {"more": "b", "text": "same words"}, 0),
        Record("other label", {"text": "same words", "more": "b"}, 1),
        Record("other field", {"text": "same words", "less": "b"}, 0),
        Record("three", {"text": "same words", "more": "b"}, 0),
    ]
    evidence, _ = forge(records=records).read()
    victim = Record("gone", {"text": "same words", "more": "b"}, 0)
    assert duplicates(evidence, [victim]) == [("gone", "one"), ("gone", "three"), ("gone", "two")]
    assert duplicates(evidence, [records[2]]) == []
    assert duplicates(evidence, []) == []


def test_the_source_adds_to_what_was_found_without_it(forge: Callable[..., Any]) -> None:
    run = forge()
    EXACT["tag"][0](run)
    run.store.commit()
    assert told(run, run.records[1:]) == [
        (V, "record 'row-001' is stored under another record's tag"),
        (V, "1 train rows were never handed in, first 'row-000'"),
    ]


def test_twins_may_have_fields_of_several_kinds_in_any_order(forge: Callable[..., Any]) -> None:
    twin = Record("twin", {"b": b"raw", "a": "same", "c": "same"}, 0)
    evidence, _ = forge(records=[twin]).read()
    assert duplicates(evidence, [Record("gone", {"c": "same", "a": "same", "b": b"raw"}, 0)]) == [("gone", "twin")]
