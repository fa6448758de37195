"""Evidence that is missing, torn, edited or reordered is a problem; a folder that is no run is an error."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import RunError
from verify.evidence import entry_digest, read_evidence

Spoil = Callable[[Any], None]


def test_a_whole_run_has_no_problems(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-001")
    evidence = read_evidence(run.folder)
    assert evidence.problems == ()
    assert [entry.kind for entry in evidence.entries] == ["create", *["train"] * 8, "request"]
    assert len(evidence.train) == 15
    assert [record.id for record in evidence.split("test")] == ["probe-000", "probe-001", "probe-002"]


def test_reading_changes_nothing(forge: Callable[..., Any]) -> None:
    run = forge()
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    read_evidence(run.folder)
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before


def sql(database: str, *statements: str) -> Spoil:
    def spoil(run: Any) -> None:
        connection = sqlite3.connect(run.folder / database)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return spoil


def cut(name: str, keep: int) -> Spoil:
    return lambda run: (run.folder / name).write_bytes((run.folder / name).read_bytes()[:keep])


def erase(name: str) -> Spoil:
    return lambda run: (run.folder / name).unlink()


def reseal(kind: str, body: str) -> Spoil:
    """Append an entry with a valid digest."""

    def spoil(run: Any) -> None:
        seq, previous = len(run.entries) + 1, run.entries[-1][4]
        entry = (seq, kind, body, previous, entry_digest(seq, kind, body, previous))
        run.ledger.execute("INSERT INTO entries VALUES(?,?,?,?,?)", entry)
        run.ledger.commit()

    return spoil


BROKEN: dict[str, tuple[Spoil, str]] = {
    "no key": (erase("secret.key"), "secret.key is missing"),
    "key not hex": (lambda run: (run.folder / "secret.key").write_text("zz"), "not hex"),
    "key short": (lambda run: (run.folder / "secret.key").write_text("00" * 16), "16 bytes, not 32"),
    "no ledger": (erase("ledger.sqlite"), "ledger.sqlite is missing"),
    "no commitments": (erase("commitments"), "commitments is missing"),
    "commitments torn": (cut("commitments", 40), "holds 40 bytes, not 32 for each of the 16 rows"),
    "commitments short": (cut("commitments", 15 * 32), "holds 480 bytes"),
    "commitments empty": (cut("commitments", 0), "holds 0 bytes"),
    "no records": (erase("records.sqlite"), "records.sqlite is missing"),
    "journal left": (
        lambda run: (run.folder / "records.sqlite-journal").write_text("x"),
        "records.sqlite cannot be read",
    ),
    "ledger torn": (cut("ledger.sqlite", 5000), "ledger.sqlite"),
    "ledger empty file": (cut("ledger.sqlite", 0), "cannot be read"),
    "records torn": (cut("records.sqlite", 100), "records.sqlite cannot be read"),
    "entry lost": (sql("ledger.sqlite", "DELETE FROM entries WHERE seq=4"), "entry 4 is missing"),
    "first lost": (sql("ledger.sqlite", "DELETE FROM entries WHERE seq=1"), "entry 1 is missing"),
    "all lost": (sql("ledger.sqlite", "DELETE FROM entries"), "does not begin with a create entry"),
    "body edited": (
        sql("ledger.sqlite", """UPDATE entries SET body=replace(body,'"shard":0','"shard":1') WHERE seq=3"""),
        "chain breaks at entry 3",
    ),
    "kind edited": (sql("ledger.sqlite", "UPDATE entries SET kind='stray' WHERE seq=5"), "chain breaks at entry 5"),
    "digest edited": (sql("ledger.sqlite", "UPDATE entries SET digest='00' WHERE seq=2"), "chain breaks at entry 2"),
    "reordered": (
        sql(
            "ledger.sqlite",
            "UPDATE entries SET seq=100 WHERE seq=3",
            "UPDATE entries SET seq=3 WHERE seq=4",
            "UPDATE entries SET seq=4 WHERE seq=100",
        ),
        "chain breaks at entry 3",
    ),
    "body not JSON": (reseal("train", "{"), "is not JSON"),
    "kind unknown": (reseal("gossip", "{}"), "unknown kind 'gossip'"),
    "key lacking": (reseal("request", '{"tags":[]}'), "lacks 'slots'"),
    "body a list": (reseal("request", "[]"), "lacks 'tags'"),
    "second create": (reseal("create", '{"run":"","rows":0,"root":"","key":""}'), "more than one create"),
    "run edited": (
        lambda run: (run.folder / "run.json").write_text(json.dumps(run.run | {"seed": 8})),
        "not the one that the ledger was created for",
    ),
    "content torn": (sql("records.sqlite", "UPDATE records SET content=x'7b' WHERE id='row-001'"), "cannot be read"),
    "content of another": (
        sql("records.sqlite", "UPDATE records SET id='row-0x1' WHERE id='row-001'"),
        "not its canonical form",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damage_is_a_problem(forge: Callable[..., Any], name: str) -> None:
    spoil, message = BROKEN[name]
    run = forge()
    spoil(run)
    problems = read_evidence(run.folder).problems
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (erase("run.json"), "no run.json"),
        (cut("run.json", 40), "not JSON"),
        (
            lambda run: (run.folder / "run.json").write_text(json.dumps(run.run | {"format": 1})),
            "format 1; .*Train anew",
        ),
        (lambda run: (run.folder / "run.json").write_text("[]"), "format 'list'"),
        (lambda run: (run.folder / "run.json").write_text('{"format": 2}'), "lacks the key 's3t'"),
    ],
)
def test_what_is_no_run_is_an_error(forge: Callable[..., Any], spoil: Spoil, message: str) -> None:
    run = forge()
    spoil(run)
    with pytest.raises(RunError, match=message):
        read_evidence(run.folder)


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run folder"):
        read_evidence(tmp_path / "nothing")
