"""Evidence, word for word: each damage is one problem, and whatever else can be read is read all the same."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from s3t.errors import RunError
from s3t.records import canonical_json, sha256
from verify.evidence import Entry, Evidence, entry_digest, read_evidence


def sql(database: str, *statements: str) -> Callable[[Any], None]:
    def spoil(run: Any) -> None:
        connection = sqlite3.connect(run.folder / database)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return spoil


def write(name: str, raw: bytes) -> Callable[[Any], None]:
    return lambda run: (run.folder / name).write_bytes(raw)


def erase(name: str) -> Callable[[Any], None]:
    return lambda run: (run.folder / name).unlink()


def seal(kind: str, body: str) -> Callable[[Any], None]:
    def spoil(run: Any) -> None:
        seq, previous = len(run.entries) + 1, run.entries[-1][4]
        run.ledger.execute(
            "INSERT INTO entries VALUES(?,?,?,?,?)",
            (seq, kind, body, previous, entry_digest(seq, kind, body, previous)),
        )
        run.ledger.commit()

    return spoil


def cut(name: str, keep: int) -> Callable[[Any], None]:
    return lambda run: (run.folder / name).write_bytes((run.folder / name).read_bytes()[:keep])


def content(raw: bytes) -> Callable[[Any], None]:
    return lambda run: run.overwrite("row-001", lambda span: span[:16] + raw)


UNDERIVABLE = "slots and tags cannot be derived"
LEAVES = "commitments holds {} bytes, not 32 for each of the 16 rows committed to"
EXACT: dict[str, tuple[Callable[[Any], None], str]] = {
    "no key": (erase("secret.key"), f"secret.key is missing: {UNDERIVABLE}"),
    "key not hex": (write("secret.key", b"zz"), f"secret.key is not hex: {UNDERIVABLE}"),
    "key not ASCII": (write("secret.key", b"\xff\xfe"), f"secret.key is not hex: {UNDERIVABLE}"),
    "key short": (write("secret.key", b"00" * 31), f"secret.key has 31 bytes, not 32: {UNDERIVABLE}"),
    "key long": (write("secret.key", b"00" * 33), f"secret.key has 33 bytes, not 32: {UNDERIVABLE}"),
    "no commitments": (
        erase("commitments"),
        "commitments is missing: nothing says what was committed to before training",
    ),
    "leaf torn": (
        lambda run: write("commitments", (run.folder / "commitments").read_bytes()[:-1])(run),
        LEAVES.format(511),
    ),
    "leaf lost": (
        lambda run: write("commitments", (run.folder / "commitments").read_bytes()[32:])(run),
        LEAVES.format(480),
    ),
    "leaf more": (
        lambda run: write("commitments", (run.folder / "commitments").read_bytes() + bytes(32))(run),
        LEAVES.format(544),
    ),
    "no records": (erase("records.sqlite"), "records.sqlite is missing"),
    "records no database": (
        lambda run: (erase("records.sqlite")(run), write("records.sqlite", b"x" * 200)(run)),
        "records.sqlite cannot be read: file is not a database",
    ),
    "ledger without table": (
        lambda run: (erase("ledger.sqlite")(run), write("ledger.sqlite", b"")(run)),
        "ledger.sqlite cannot be read: no such table: entries",
    ),
    "entry lost": (
        sql("ledger.sqlite", "DELETE FROM entries WHERE seq=4"),
        "ledger.sqlite: entry 4 is missing (found 5)",
    ),
    "digest edited": (
        sql("ledger.sqlite", "UPDATE entries SET digest='00' WHERE seq=3"),
        "ledger.sqlite: the hash chain breaks at entry 3 (train)",
    ),
    "previous edited": (
        sql("ledger.sqlite", "UPDATE entries SET previous='00' WHERE seq=3"),
        "ledger.sqlite: the hash chain breaks at entry 3 (train)",
    ),
    "body not JSON": (seal("train", "{"), "ledger.sqlite: the body of entry 10 is not JSON"),
    "kind unknown": (seal("gossip", "{}"), "ledger.sqlite: entry 10 is of unknown kind 'gossip'"),
    "stray lacks": (seal("stray", "{}"), "ledger.sqlite: entry 10 (stray) lacks 'tags'"),
    "extend lacks": (seal("extend", '{"to":2}'), "ledger.sqlite: entry 10 (extend) lacks 'budget'"),
    "body no object": (seal("request", '["tags"]'), "ledger.sqlite: entry 10 (request) lacks 'tags'"),
    "second create": (
        seal("create", '{"run":"","rows":0,"root":"","key":""}'),
        "ledger.sqlite has more than one create entry",
    ),
    "run edited": (
        lambda run: write("run.json", json.dumps(run.run | {"seed": 8}).encode())(run),
        "run.json is not the one that the ledger was created for: its SHA-256 differs",
    ),
    "content torn": (
        content(b"{"),
        "records.bin: the row at byte {start} cannot be read (JSONDecodeError)",
    ),
    "content not UTF-8": (
        content(b'{"id":"\xff"}'),
        "records.bin: the row at byte {start} cannot be read (UnicodeDecodeError)",
    ),
    "content without id": (
        content(b'{"inputs":{},"label":0}'),
        "records.bin: the row at byte {start} cannot be read (KeyError)",
    ),
    "content a list": (
        content(b"[]"),
        "records.bin: the row at byte {start} cannot be read (TypeError)",
    ),
    "inputs a list": (
        content(b'{"id":"a","inputs":[],"label":0}'),
        "records.bin: the row at byte {start} cannot be read (AttributeError)",
    ),
    "label negative": (
        content(b'{"id":"a","inputs":{},"label":-1}'),
        "records.bin: the row at byte {start} cannot be read (DataError)",
    ),
    "content with spaces": (
        lambda run: run.overwrite("row-001", lambda span: span + b" "),
        "records.bin: the content of record 'row-001' is not its canonical form",
    ),
    "half of a row erased": (
        lambda run: run.overwrite("row-001", lambda span: span[:40] + bytes(len(span) - 40)),
        "records.bin: the row at byte {start} cannot be read (JSONDecodeError)",
    ),
    "no contents": (erase("records.bin"), "records.bin is missing"),
    "contents empty": (cut("records.bin", 0), "records.bin does not begin as it must"),
    "contents cut in the header": (cut("records.bin", 15), "records.bin does not begin as it must"),
    "contents of another kind": (
        write("records.bin", b"s3t rowz" + bytes(99)),
        "records.bin does not begin as it must",
    ),
    "contents cut": (
        lambda run: cut("records.bin", run.bin.stat().st_size - 1)(run),
        "records.sqlite: a row of {last[1]} bytes cannot lie at byte {last[0]} of records.bin",
    ),
    "a row in the header": (
        lambda run: run.update("start=15", "row-000"),
        "records.sqlite: a row of {first[1]} bytes cannot lie at byte 15 of records.bin",
    ),
    "rows overlap": (
        lambda run: run.update("start=start-1", "row-001"),
        "records.sqlite: a row of {row[1]} bytes cannot lie at byte {before} of records.bin",
    ),
    "a row without content": (
        lambda run: run.update("length=16", "row-001"),
        "records.sqlite: a row of 16 bytes cannot lie at byte {start} of records.bin",
    ),
    "a place that is no number": (
        lambda run: run.update("start='zz'", "row-001"),
        "records.sqlite: a row of {row[1]} bytes cannot lie at byte 'zz' of records.bin",
    ),
    "a length that is no number": (
        lambda run: run.update("length=NULL", "row-001"),
        "records.sqlite: a row of None bytes cannot lie at byte {start} of records.bin",
    ),
    "erased for what the ledger lacks": (
        lambda run: run.bin.write_bytes(b"s3t rows" + (10).to_bytes(8, "big") + run.bin.read_bytes()[16:]),
        "records.bin was erased for requests up to entry 10, the ledger ends at entry 9: it is an older one",
    ),
}


BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "commitments empty": (cut("commitments", 0), "holds 0 bytes"),
    "journal left": (write("records.sqlite-journal", b"x"), "records.sqlite cannot be read"),
    "ledger torn": (cut("ledger.sqlite", 5000), "ledger.sqlite"),
    "records torn": (cut("records.sqlite", 100), "records.sqlite cannot be read"),
    "first lost": (sql("ledger.sqlite", "DELETE FROM entries WHERE seq=1"), "entry 1 is missing"),
    "body edited": (
        sql("ledger.sqlite", """UPDATE entries SET body=replace(body,'"shard":0','"shard":1') WHERE seq=3"""),
        "chain breaks at entry 3",
    ),
    "kind edited": (sql("ledger.sqlite", "UPDATE entries SET kind='stray' WHERE seq=5"), "chain breaks at entry 5"),
    "reordered": (
        sql(
            "ledger.sqlite",
            "UPDATE entries SET seq=100 WHERE seq=3",
            "UPDATE entries SET seq=3 WHERE seq=4",
            "UPDATE entries SET seq=4 WHERE seq=100",
        ),
        "chain breaks at entry 3",
    ),
    "check of the index": (
        sql("records.sqlite", "UPDATE records SET length = length + 1 WHERE rowid = 2"),
        "does not match its check",
    ),
    "bytes in the index": (
        sql("records.sqlite", "UPDATE records SET split = x'00' WHERE rowid = 2"),
        "does not match its check",
    ),
    "key lacking": (seal("request", '{"tags":[]}'), "lacks 'slots'"),
}
"""Damage of which SQLite's own words, or further problems, are part: one of the problems says this."""


@pytest.mark.parametrize("name", BROKEN)
def test_damage_is_a_problem(forge: Callable[..., Any], name: str) -> None:
    spoil, message = BROKEN[name]
    run = forge()
    spoil(run)
    problems = read_evidence(run.folder).problems
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize("name", EXACT)
def test_each_damage_says_exactly_this(forge: Callable[..., Any], name: str) -> None:
    spoil, message = EXACT[name]
    run = forge()
    places = {"first": run.span("row-000"), "row": run.span("row-001"), "last": run.span("probe-002")}
    spoil(run)
    found = read_evidence(run.folder)
    assert found.problems == (message.format(start=(start := places["row"][0]), before=start - 1, **places),)
    assert found.key == (b"" if message.startswith("secret.key") else bytes(range(32)))


def test_without_a_ledger_or_its_first_entry(forge: Callable[..., Any]) -> None:
    run = forge()
    sql("ledger.sqlite", "DELETE FROM entries")(run)
    found = read_evidence(run.folder)
    assert found.problems == ("ledger.sqlite does not begin with a create entry",)
    assert found.checked == {"run": found.run_digest, "entries": 0, "head": ""}
    assert len(found.leaves) == 16
    (run.folder / "ledger.sqlite").unlink()
    found = read_evidence(run.folder)
    assert found.problems == ("ledger.sqlite is missing",)
    assert (found.entries, len(found.rows), len(found.leaves)) == ((), 19, 16)


def test_a_ledger_that_begins_otherwise(forge: Callable[..., Any]) -> None:
    run = forge()
    sql("ledger.sqlite", "DELETE FROM entries")(run)
    body = canonical_json({"budget": 2, "rows": 16}).decode()
    run.ledger.execute("INSERT INTO entries VALUES(1,'extend',?,'',?)", (body, entry_digest(1, "extend", body, "")))
    run.ledger.commit()
    assert read_evidence(run.folder).problems == ("ledger.sqlite does not begin with a create entry",)


def test_a_ledger_is_read_up_to_the_break(forge: Callable[..., Any]) -> None:
    for spoil in (
        sql("ledger.sqlite", "UPDATE entries SET digest='00' WHERE seq=4"),
        sql("ledger.sqlite", "DELETE FROM entries WHERE seq=4"),
    ):
        run = forge()
        spoil(run)
        assert [entry.seq for entry in read_evidence(run.folder).entries] == [1, 2, 3]
    run = forge()
    seal("gossip", "{}")(run)
    assert len(read_evidence(run.folder).entries) == 9


def test_a_break_in_one_file_hides_nothing_of_the_others(forge: Callable[..., Any]) -> None:
    run = forge()
    for spoil in (
        *(erase(name) for name in ("secret.key", "commitments", "records.sqlite", "records.bin", "ledger.sqlite")),
    ):
        spoil(run)
    found = read_evidence(run.folder)
    assert [problem.split()[0] for problem in found.problems] == [
        "secret.key",
        "ledger.sqlite",
        "records.sqlite",
        "records.bin",
        "commitments",
    ]
    assert (found.key, found.entries, found.rows, found.leaves) == (b"", (), (), ())


def test_whole_evidence_field_by_field(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-003")
    found = read_evidence(str(run.folder))
    raw = (run.folder / "run.json").read_bytes()
    assert found.folder == run.folder
    assert found.run == run.run
    assert found.run_digest == sha256(raw)
    assert found.key == bytes(range(32))
    assert [(e.seq, e.kind, e.body, e.digest) for e in found.entries] == [
        (seq, kind, json.loads(body), digest) for seq, kind, body, _, digest in run.entries
    ]
    assert found.checked == {"run": sha256(raw), "entries": 10, "head": run.entries[-1][4]}
    left = sorted((row for row in run.rows), key=lambda row: row[1])
    told = [(r.tag, r.record.id, r.shard, r.slice, r.split, r.salt, r.commitment, r.content) for r in found.rows]
    assert told == left
    assert b"".join(found.leaves) == (run.folder / "commitments").read_bytes()
    assert {len(leaf) for leaf in found.leaves} == {32}
    assert [row.record.id for row in found.train] == sorted(row[1] for row in left if row[4] == "train")
    assert found.split("validation") == ()


def test_rows_are_told_in_order_of_ids_however_they_are_stored() -> None:
    from s3t.records import Record
    from verify.evidence import Row

    def row(name: str, split: str) -> Row:
        return Row("", None, None, split, b"", None, b"", Record(name, {"text": "x"}, 0))

    rows = (row("b", "train"), row("a", "train"), row("d", "test"), row("c", "test"))
    evidence = Evidence(None, {}, "", b"", (), rows, ())  # type: ignore[arg-type]
    assert [r.record.id for r in evidence.train] == ["a", "b"]
    assert [r.id for r in evidence.split("test")] == ["c", "d"]
    assert (evidence.leaves, evidence.spans, evidence.loose) == ((), (), ())
    assert Entry(1, "stray", {}).digest == ""


def test_one_unreadable_row_hides_no_other(forge: Callable[..., Any]) -> None:
    run = forge()
    content(b"{")(run)
    run.overwrite("row-002", lambda span: span + b" ")
    found = read_evidence(run.folder)
    assert len(found.problems) == 2
    assert len(found.rows) == 17
    assert len(found.spans) == 19


def test_what_cannot_be_read_of_a_deleted_row_is_no_problem_but_a_rest_of_it(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-003")
    start, length = run.span("row-003")
    run.overwrite("row-003", lambda span: b"\x01" + span[1:])
    found = read_evidence(run.folder)
    assert (found.problems, len(found.rows), found.loose) == ((), 18, ())
    assert [(s.start, s.stop) for s in found.spans if not s.zero and s.tag in run.entries[-1][2]] == [
        (start, start + length)
    ]


def test_what_was_erased_is_known_without_a_ledger(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-003")
    run.bin.write_bytes(b"s3t rows" + (10).to_bytes(8, "big") + run.bin.read_bytes()[16:])
    assert read_evidence(run.folder).problems == ()
    erase("ledger.sqlite")(run)
    assert read_evidence(run.folder).problems == ("ledger.sqlite is missing",)


NO_RUN: dict[str, tuple[Any, str]] = {
    "cut": (b"{", r"^'{path}' is not JSON \(.+\); restore it from a backup$"),
    "not UTF-8": (b"\xff\xfe\xff", r"^'{path}' is not JSON \(.+\); restore it from a backup$"),
    "a list": (b"[]", "^'{path}' has format 'list'; this verifier reads format 4. Train anew$"),
    "no format": (b"{}", "^'{path}' has format None; this verifier reads format 4. Train anew$"),
    "format 1": (b'{"format":1}', "^'{path}' has format 1; this verifier reads format 4. Train anew$"),
    "bare": (
        b'{"format":4}',
        "^'{path}' lacks the key 's3t'; a run has format, s3t, kernel, plan, recipe, model, data, seed$",
    ),
}


@pytest.mark.parametrize("name", NO_RUN)
def test_what_is_no_run_says_exactly_this(forge: Callable[..., Any], name: str) -> None:
    raw, message = NO_RUN[name]
    run = forge()
    write("run.json", raw)(run)
    with pytest.raises(RunError, match=message.format(path=run.folder / "run.json")):
        read_evidence(run.folder)


def test_no_folder_and_an_empty_folder(forge: Callable[..., Any]) -> None:
    run = forge()
    erase("run.json")(run)
    with pytest.raises(
        RunError,
        match=f"^'{run.folder}' holds no run.json, so it is no run folder; give the one that `s3t train` wrote$",
    ):
        read_evidence(run.folder)
    nothing = run.folder / "nothing"
    message = f"^there is no run folder '{nothing}'; give the folder that `s3t train` wrote$"
    with pytest.raises(RunError, match=message):
        read_evidence(nothing)
    nothing.write_text("")
    with pytest.raises(RunError, match=message):
        read_evidence(nothing)


@pytest.mark.parametrize("key", ["s3t", "kernel", "plan", "recipe", "model", "data", "seed"])
def test_every_key_of_a_run_is_needed(forge: Callable[..., Any], key: str) -> None:
    run = forge()
    write("run.json", json.dumps({k: v for k, v in run.run.items() if k != key}).encode())(run)
    with pytest.raises(RunError, match=f"lacks the key '{key}'"):
        read_evidence(run.folder)


def test_reading_leaves_the_databases_free_and_unchanged(forge: Callable[..., Any]) -> None:
    run = forge()
    before = (run.folder / "ledger.sqlite").read_bytes()
    read_evidence(run.folder)
    run.ledger.execute("BEGIN EXCLUSIVE")
    run.ledger.rollback()
    assert (run.folder / "ledger.sqlite").read_bytes() == before


def test_reading_changes_nothing(forge: Callable[..., Any]) -> None:
    run = forge()
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    assert read_evidence(run.folder).problems == ()
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before
