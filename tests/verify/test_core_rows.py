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
    return lambda run: run.update(assignment, name)


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
        lambda run: run.overwrite("row-001", lambda span: bytes(16) + span[16:]),
        [(V, "record 'row-001' does not match its commitment: its content was changed")],
    ),
    "content of a test row": (
        lambda run: run.overwrite("probe-000", lambda span: span.replace(b"sentence", b"SENTENCE")),
        [(V, "record 'probe-000' does not match its commitment: its content was changed")],
    ),
    "no commitment of a test row": (update('"commitment"=NULL', "probe-000"), [(H, "")]),
    "a validation row": (update("split='validation'", "probe-000"), [(H, "")]),
    "shard of a test row": (update("shard=0", "probe-000"), [(V, "record 'probe-000' of split test has a slot")]),
    "slice of a test row": (update("slice=0", "probe-000"), [(V, "record 'probe-000' of split test has a slot")]),
    "lost": (
        lambda run: (run.erase("row-001"), run.erase("row-002")),
        [(V, COUNT.format(14, 0, 2))],
    ),
    "erased and not in the index": (
        lambda run: (run.erase("row-001"), run.unlink("row-001")),
        [(V, COUNT.format(15, 0, 1))],
    ),
    "unlinked": (
        lambda run: run.unlink("row-001", "row-002"),
        [(V, COUNT.format(14, 0, 2)), (V, "{} bytes of records.bin are no row's, first at {} to {}")],
    ),
    "unlinked at the end": (
        lambda run: run.unlink("probe-002"),
        [(V, "{} bytes of records.bin are no row's, first at {} to {}")],
    ),
    "behind the rows": (
        lambda run: run.bin.write_bytes(run.bin.read_bytes() + bytes(9) + b"x"),
        [(V, "{} bytes of records.bin are no row's, first at {} to {}")],
    ),
    "zeros behind the rows": (lambda run: run.bin.write_bytes(run.bin.read_bytes() + bytes(9)), [(H, "")]),
}
CLEAN = "16 train rows match commitments, slots and counts; no deleted row is present"


@pytest.mark.parametrize("name", EXACT)
def test_each_fault_says_exactly_this(forge: Callable[..., Any], name: str) -> None:
    spoil, expected = EXACT[name]
    run = forge()
    free = {name: run.span(name) for name in ("row-001", "row-002", "probe-002")}
    spoil(run)
    run.store.commit()
    (one, size), (two, more), (last, length) = free.values()
    end = last + length
    places = {
        "unlinked": (size + more, one, two + more),
        "unlinked at the end": (length, last, end),
        "behind the rows": (10, end, end + 10),
    }
    place = places.get(name, ())
    said = [
        (verdict, (message if "{}" not in message else message.format(*place)) or CLEAN)
        for verdict, message in expected
    ]
    assert told(run) == said


def test_without_a_commitment_nothing_is_decided_and_the_row_is_unknown(forge: Callable[..., Any]) -> None:
    run = forge()
    update('"commitment"=NULL')(run)
    run.store.commit()
    assert told(run) == [
        (U, "record 'row-001' has no commitment"),
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
        run.restore(record)
    assert told(run) == [
        (V, "the deleted record 'row-000' is still in records.bin"),
        (V, "the deleted record 'row-001' is still in records.bin"),
        (V, "bytes of 2 deleted rows remain in records.bin"),
    ]


@pytest.mark.parametrize("byte", [0, 15, 16, 40, -1])
def test_a_single_byte_of_a_deleted_row_is_enough(forge: Callable[..., Any], byte: int) -> None:
    run = forge()
    run.delete("row-000")

    def change(span: bytes) -> bytes:
        left = bytearray(span)
        left[byte] = 1
        return bytes(left)

    run.overwrite("row-000", change)
    evidence, _ = run.read()
    assert evidence.problems == ()
    assert told(run) == [(V, "bytes of 1 deleted rows remain in records.bin")]


def test_a_deleted_row_that_was_unlinked_but_not_overwritten(forge: Callable[..., Any]) -> None:
    run = forge()
    start, length = run.span("row-000")
    raw = run.bin.read_bytes()
    run.delete("row-000")
    run.unlink("row-000")
    assert told(run) == [(H, CLEAN.replace("16", "15"))]
    run.bin.write_bytes(raw)
    message = f"{length} bytes of records.bin are no row's, first at {start} to {start + length}"
    assert told(run) == [(V, message)]


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
    run.update("\"commitment\"='ab'", "row-001")
    run.update("\"commitment\"='cd'", "row-002")
    assert told(run)[2:] == [
        (V, "2 retained rows are not among the commitments taken before training"),
        (V, COUNT.format(16, 0, 2)),
    ]


def test_the_same_leaf_for_several_rows(forge: Callable[..., Any]) -> None:
    run = forge()
    first = run.rows[0][6]
    run.update(f"\"commitment\"='{first}'", "row-001", "row-002")
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
    for row in both:
        run.erase(row[1])
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
