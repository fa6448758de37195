"""The scan and the rows: whatever is not accounted for is named; a clean run raises no alarm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.records import Record
from verify.report import Finding, Verdict, combine
from verify.residue import CHUNK, Needle, Search, check_residue
from verify.rows import check_rows
from verify.scan import check_scan


def first_node(run: Any) -> Path:
    return sorted((run.folder / "nodes").iterdir())[0]


def scanned(run: Any) -> list[Finding]:
    return check_scan(*run.read())


def rows(run: Any, source: bool = False) -> list[Finding]:
    return check_rows(*run.read(), run.records if source else None)


@pytest.mark.parametrize("deleted", [(), ("row-000",), ("row-001", "row-002", "row-003", "row-004", "row-005")])
def test_clean_runs_raise_no_alarm(forge: Callable[..., Any], deleted: tuple[str, ...]) -> None:
    run = forge()
    if deleted:
        run.delete(*deleted)
    assert [f.verdict for f in scanned(run)] == [Verdict.HOLDS]
    assert [f.verdict for f in rows(run, source=True)] == [Verdict.HOLDS]
    victims = [record for record in run.records if record.id in deleted]
    assert [f.verdict for f in check_residue(run.read()[0], victims)] == [Verdict.HOLDS]


STRAY: dict[str, tuple[Callable[[Any], object], str]] = {
    "log": (lambda run: (run.folder / "train.log").write_text("x"), "train.log is unknown"),
    "hidden": (lambda run: (run.folder / ".cache").write_text("x"), ".cache is unknown"),
    "folder": (lambda run: (run.folder / "backup").mkdir(), "backup/ is an unknown folder"),
    "nested": (lambda run: (run.folder / "nodes" / ("0" * 64)).mkdir(), "a dropped or unknown node"),
    "in a node": (
        lambda run: (first_node(run) / "merged.safetensors").write_text("x"),
        "merged.safetensors is unknown",
    ),
    "temp": (lambda run: (run.folder / "nodes" / "x.tmp").write_text("x"), "x.tmp is unknown"),
    "edited": (lambda run: (first_node(run) / "head.safetensors").write_text("x"), "its SHA-256 differs"),
    "link": (lambda run: (run.folder / "more").symlink_to(run.folder), "more is a link"),
    "link for file": (
        lambda run: (
            shutil.move(run.folder / "secret.key", run.folder.parent / "k"),
            (run.folder / "secret.key").symlink_to(run.folder.parent / "k"),
        ),
        "secret.key is a link",
    ),
    "table": (lambda run: run.store.execute("CREATE TABLE losses(id TEXT)"), "unknown table 'losses'"),
    "view": (lambda run: run.ledger.execute("CREATE VIEW names AS SELECT 1"), "unknown table 'names'"),
}


@pytest.mark.parametrize("name", STRAY)
def test_whatever_is_not_accounted_for_is_a_violation(forge: Callable[..., Any], name: str) -> None:
    spoil, message = STRAY[name]
    run = forge()
    spoil(run)
    found = scanned(run)
    assert combine(f.verdict for f in found) is Verdict.VIOLATED
    assert message in next(f.message for f in found if f.verdict is Verdict.VIOLATED)


def test_a_dropped_node_left_on_disk_is_a_violation(forge: Callable[..., Any]) -> None:
    run = forge()
    kept = run.folder.parent / "kept"
    shutil.copytree(run.folder / "nodes", kept)
    run.delete("row-000")
    shutil.copytree(kept, run.folder / "nodes", dirs_exist_ok=True)
    found = scanned(run)
    assert {f.verdict for f in found} == {Verdict.VIOLATED}
    assert any("dropped or unknown node" in f.message for f in found)


def test_a_missing_file_is_undecided(forge: Callable[..., Any]) -> None:
    run = forge()
    (first_node(run) / "head.safetensors").unlink()
    assert [f.verdict for f in scanned(run)] == [Verdict.UNDECIDED]


def test_a_ledger_that_admits_an_extra_file_does_not_excuse_it(forge: Callable[..., Any]) -> None:
    run = forge()
    body = dict(run.read()[0].entries[1].body)
    path = run.folder / "nodes" / body["key"] / "cache.bin"
    path.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    run.enter("train", body | {"files": dict(body["files"]) | {"cache.bin": empty}})
    assert any("'cache.bin', which no node has" in f.message for f in scanned(run))


def test_tombstone_table_must_say_what_the_requests_say(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-000")
    run.ledger.execute("CREATE TABLE tombstones(tag TEXT)")
    run.ledger.commit()
    assert "table of tombstones holds 0, its requests name 1" in scanned(run)[0].message


def update(assignment: str) -> Callable[[Any], object]:
    return lambda run: run.update(assignment, "row-001")


ROWS: dict[str, tuple[Callable[[Any], object], str]] = {
    "deleted but present": (lambda run: run.restore(run.records[0]), "'row-000' is still in records.bin"),
    "moved": (update("slice=1-slice"), "its id gives"),
    "tag": (update("tag='ab'"), "another record's tag"),
    "split": (update("split='extra'"), "unknown split 'extra'"),
    "salt": (lambda run: run.overwrite("row-001", lambda span: bytes(16) + span[16:]), "does not match its commitment"),
    "lost": (lambda run: run.erase("row-001"), "14 are retained and 1 tombstoned"),
    "test row in a slot": (lambda run: run.update("shard=0", "probe-001"), "of split test has a slot"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(forge: Callable[..., Any], name: str) -> None:
    spoil, message = ROWS[name]
    run = forge()
    run.delete("row-000")
    spoil(run)
    run.store.commit()
    found = rows(run)
    assert combine(f.verdict for f in found) is Verdict.VIOLATED
    assert any(message in f.message for f in found), found


def test_no_commitment_is_undecided(forge: Callable[..., Any]) -> None:
    run = forge()
    run.update('"commitment"=NULL', "row-001")
    assert Verdict.UNDECIDED in {f.verdict for f in rows(run)}


@pytest.mark.parametrize("deleted", [(), ("row-002",), ("row-002", "row-003")])
def test_commitments_are_checked_also_after_deletions(forge: Callable[..., Any], deleted: tuple[str, ...]) -> None:
    run = forge()
    if deleted:
        run.delete(*deleted)
    assert {f.verdict for f in rows(run)} == {Verdict.HOLDS}
    swapped = Record("row-001", {"text": "something else entirely"}, 0)
    row = run.row(swapped, "train")
    run.update(f"\"commitment\"='{row[6]}'", "row-001")
    run.overwrite("row-001", lambda _: row[5] + row[7])
    said = [f.message for f in rows(run)]
    assert any(m.startswith("1 retained rows are not among the commitments") for m in said)
    assert any(f"{len(deleted) + 1} leaves belong to no retained row" in m for m in said)
    assert any("differ from what was handed in, first 'row-001'" in f.message for f in rows(run, source=True))


def test_leaves_and_slot_key_are_those_committed_to(forge: Callable[..., Any]) -> None:
    run = forge()
    leaves = (run.folder / "commitments").read_bytes()
    (run.folder / "commitments").write_bytes(leaves[:-32] + bytes(32))
    said = [f.message for f in rows(run)]
    assert any("do not give the root" in m for m in said)
    assert any("1 retained rows are not among the commitments" in m for m in said)
    (run.folder / "commitments").write_bytes(leaves)
    (run.folder / "secret.key").write_text("11" * 32)
    assert any("is not the slot key that was committed to" in f.message for f in rows(run))


def test_one_leaf_stands_for_one_row(forge: Callable[..., Any]) -> None:
    run = forge()
    first, second = run.rows[0], run.rows[1]
    run.update(f"\"commitment\"='{first[6]}'", second[1])
    assert any(f.message.startswith("1 retained rows are not among the commitments") for f in rows(run))


def test_rows_that_nobody_handed_in(forge: Callable[..., Any]) -> None:
    run = forge()
    evidence, state = run.read()
    assert any("never handed in, first 'row-015'" in f.message for f in check_rows(evidence, state, run.records[:15]))
    more = [*run.records, Record("late", {"text": "x"}, 0)]
    assert any("neither retained nor deleted, first 'late'" in f.message for f in check_rows(evidence, state, more))


def test_a_request_must_drop_the_slot_of_its_record(forge: Callable[..., Any]) -> None:
    run = forge()
    run.erase("row-000")
    run.enter("request", {"request": "r", "tags": [run.rows[0][0]], "slots": []})
    assert any("was not dropped by any request" in f.message for f in rows(run, source=True))


def test_a_deleted_row_that_was_not_overwritten_is_found(forge: Callable[..., Any]) -> None:
    run = forge()
    raw = run.bin.read_bytes()
    run.delete("row-000")
    run.bin.write_bytes(raw)
    assert any("bytes of 1 deleted rows remain in records.bin" in f.message for f in rows(run))
    run.unlink("row-000")
    assert any("bytes of records.bin are no row's" in f.message for f in rows(run))
    found = check_residue(run.read()[0], run.records[:1])
    assert {f.details["path"] for f in found if f.verdict is Verdict.VIOLATED} == {"records.bin"}


def test_a_copy_of_a_deleted_row_in_the_index_is_found(forge: Callable[..., Any]) -> None:
    run = forge()
    run.store.execute("ALTER TABLE records ADD COLUMN id TEXT")
    run.update("id='row-000'", "row-000")
    run.delete("row-000")
    assert any("records.sqlite holds an unknown column 'id'" in f.message for f in scanned(run))
    found = check_residue(run.read()[0], run.records[:1])
    assert {f.details["path"] for f in found if f.verdict is Verdict.VIOLATED} == {"records.sqlite"}


PLANTED: dict[str, bytes] = {
    "id": b"...row-000...",
    "text": b"\x00amber dune row sentence 000\x00",
    "reads": b'["row-000","row-001"]',
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("where", ["head.safetensors", "adapter_config.json"])
def test_residue_inside_files_that_belong_there(forge: Callable[..., Any], name: str, where: str) -> None:
    run = forge()
    run.delete("row-000")
    with (first_node(run) / where).open("ab") as stream:
        stream.write(PLANTED[name])
    found = check_residue(run.read()[0], run.records[:1])
    assert {f.verdict for f in found} == {Verdict.VIOLATED}
    assert all(f.message.endswith(where) and "'row-000'" in f.message for f in found)


def test_ids_that_are_part_of_retained_ids_are_no_alarm(forge: Callable[..., Any]) -> None:
    names = ["r-0000", "r-00001", "xr-0000", "r-00002", "seven", "seventy", "7", "77", "aaaaaa", "aaaaaaa"]
    records = [Record(name, {"text": f"shared words in every text {i}"}, 0) for i, name in enumerate(names)]
    run = forge(records=records, shards=1)
    run.delete("r-0000", "seven", "7", "aaaaaa")
    victims = [record for record in records if record.id in ("r-0000", "seven", "7", "aaaaaa")]
    assert [f.verdict for f in check_residue(run.read()[0], victims)] == [Verdict.HOLDS]
    (run.folder / "notes.json").write_text('{"rows":["7","xr-0000","aaaaaaaa"]}')
    found = check_residue(run.read()[0], victims)
    assert sorted(str(f.details.get("id")) for f in found) == ["7"]


def test_texts_contained_in_retained_texts_are_no_alarm(forge: Callable[..., Any]) -> None:
    records = [
        Record("short-1", {"text": "the quick brown fox"}, 0),
        Record("other-2", {"text": "see the quick brown fox run"}, 0),
        *[Record(f"filler-{i}", {"text": f"filler text {i}"}, 0) for i in range(8)],
    ]
    run = forge(records=records, shards=1)
    run.delete("short-1")
    assert [f.verdict for f in check_residue(run.read()[0], records[:1])] == [Verdict.HOLDS]


def test_a_twin_of_a_deleted_record_is_undecided_unless_the_source_is_known(forge: Callable[..., Any]) -> None:
    base = [Record(f"row-{i:03d}", {"text": f"a text of its own {i}"}, 0) for i in range(8)]
    records = [*base, Record("copied", {"text": "a text of its own 0"}, 0)]
    run = forge(records=records, shards=1)
    run.delete("row-000")
    evidence, state = run.read()
    assert [f.verdict for f in check_residue(evidence, records[:1])] == [Verdict.UNDECIDED]
    assert [f.verdict for f in check_residue(evidence, records[:1], known=True)] == [Verdict.HOLDS]
    assert any("never handed in, first 'copied'" in f.message for f in check_rows(evidence, state, base))


def test_search_agrees_with_find_at_every_offset_and_window(tmp_path: Path) -> None:
    needle = Needle("v", "id", b"abcabd", (b"xabcabd",))
    search = Search([needle, Needle("w", "id", b"abq")])
    for offset in range(0, 40):
        raw = b"." * offset + b"abcabcabd" + b"." * 5
        assert list(search.in_bytes(raw)) == [needle]
        assert list(search.in_bytes(b"." * offset + b"xabcabd")) == []
    path = tmp_path / "large"
    for start in (CHUNK - 20, CHUNK - 7, CHUNK - 3, CHUNK, CHUNK + 1):
        path.write_bytes(b"." * start + b"abcabd" + b"." * 50)
        assert search.in_file(path) == [needle], start
        path.write_bytes(b"." * start + b"xabcabd" + b"." * 50)
        assert search.in_file(path) == [], start


def test_a_half_made_run_beside_the_folder(forge: Callable[..., Any]) -> None:
    run = forge()
    (run.folder.parent / f".{run.folder.name}.partial").mkdir()
    (found,) = check_scan(*run.read())
    assert found.verdict is Verdict.VIOLATED
    assert "half-made run" in found.message


def test_a_short_id_that_is_also_a_declared_word_is_no_residue(forge: Callable[..., Any]) -> None:
    """Found by the soak: record "2" was deleted, and run.json says that kernel "2" trained it."""
    run = forge()
    words = [run.run["kernel"], run.run["s3t"], "lora", "block-00", "mean-logits", "0", "query", "none"]
    for word in words:
        (found,) = check_residue(run.read()[0], [Record(word, {"text": "a text that is nowhere else"}, 0)])
        assert found.verdict is Verdict.HOLDS, word
    raw = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**raw, "note": ["77"]}))
    (found,) = check_residue(run.read()[0], [Record("77", {"text": "a text that is nowhere else"}, 0)])
    assert found.verdict is Verdict.VIOLATED


def test_digits_inside_digests_and_numbers_are_no_residue(forge: Callable[..., Any]) -> None:
    run = forge()
    victim = Record("abc123", {"text": "a text that is nowhere else"}, 0)
    for beside, verdict in [
        ("00abc1239f", Verdict.HOLDS), ("0.abc123", Verdict.HOLDS), ("abc1234", Verdict.HOLDS),
        ("abc123", Verdict.VIOLATED), ("user-abc123,", Verdict.VIOLATED), ("00abc1239f abc123", Verdict.VIOLATED),
    ]:  # fmt: skip
        (run.folder / "nodes" / "note.txt").write_text(beside)
        found = check_residue(run.read()[0], [victim])
        assert combine(f.verdict for f in found) is verdict, beside
    word = Record("user-abc123", {"text": "a text that is nowhere else"}, 0)
    assert check_residue(run.read()[0], [word])[0].verdict is Verdict.HOLDS
    (run.folder / "nodes" / "note.txt").write_text("00user-abc123ff")
    assert check_residue(run.read()[0], [word])[0].verdict is Verdict.VIOLATED, "such an id is searched anywhere"
