"""The ledger: append-only, hash-chained, numbered, atomic, durable or an error, and safe with two writers."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3t.errors import BusyError, RunError
from s3t.ledger import Ledger, Superseded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    made = Ledger.create(path)
    made.append("create", {"rows": 3})
    made.append_request({"tags": ["t1"], "slots": [[0, 1]]}, ["t1"], [(0, 1)])
    yield made
    made.close()


def _raw(path: Path, *statements: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        rows: list[tuple[object, ...]] = []
        for statement in statements:
            rows = db.execute(statement).fetchall()
        db.commit()
        return rows
    finally:
        db.close()


@pytest.mark.parametrize("table", ["entries", "hits", "tombstones"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET seq = 9", "DELETE FROM {}"])
def test_append_only_for_every_connection(ledger: Ledger, path: Path, table: str, verb: str) -> None:
    before = _raw(path, f"SELECT * FROM {table}")
    assert before
    with pytest.raises(sqlite3.IntegrityError, match="the ledger is append-only"):
        _raw(path, verb.format(table))
    assert _raw(path, f"SELECT * FROM {table}") == before


def test_hash_chain_by_the_document(ledger: Ledger, path: Path) -> None:
    ledger.append("note", {"b": [1, "ü"], "a": None})
    last = ""
    for position, (seq, kind, body, previous, digest) in enumerate(
        _raw(path, "SELECT * FROM entries ORDER BY seq"), start=1
    ):
        assert (seq, previous) == (position, last)
        text = json.dumps([seq, kind, body, previous], separators=(",", ":"), ensure_ascii=False)
        last = hashlib.sha256(text.encode()).hexdigest()
        assert digest == last
    assert _raw(path, "SELECT body FROM entries WHERE kind = 'note'") == [('{"a":null,"b":[1,"ü"]}',)]


@pytest.mark.parametrize("column", ["kind", "body", "previous", "digest"])
def test_a_damaged_head_is_refused(ledger: Ledger, path: Path, column: str) -> None:
    _raw(path, "DROP TRIGGER entries_UPDATE", f"UPDATE entries SET {column} = 'x' WHERE seq = 2")
    with pytest.raises(RunError, match="damaged: entry 2 does not match its digest"):
        Ledger(path)


@pytest.mark.parametrize("value", ["'x'", "x'ff'", "1.5"])
@pytest.mark.parametrize("table", ["hits", "tombstones"])
def test_an_index_with_values_of_another_kind_is_refused(ledger: Ledger, path: Path, table: str, value: str) -> None:
    """SQLite keeps any type in any column."""
    _raw(path, f"DROP TRIGGER {table}_UPDATE", f"UPDATE {table} SET seq = {value}")
    with pytest.raises(RunError, match=r"the ledger is damaged: its index says .* is a position"):
        ledger.hits() if table == "hits" else ledger.tombstone("t1")


def test_a_missing_or_foreign_file_is_refused(path: Path) -> None:
    with pytest.raises(RunError, match=r"ledger.sqlite is missing"):
        Ledger(path)
    assert not path.exists()
    path.write_bytes(b"no database " * 400)
    with pytest.raises(RunError, match="the ledger is damaged"):
        Ledger(path)
    path.write_bytes(b"")
    with pytest.raises(RunError, match="the ledger is damaged"):
        Ledger(path)


def test_requests_are_numbered_whatever_is_between(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.append("note", {})
        ledger.append_request({"tags": [], "slots": []}, (), ())
    names = [entry.body["request"] for entry in ledger.entries("request")]
    assert names == ["r000001", "r000002", "r000003", "r000004"]


def test_a_request_is_one_atomic_fact(ledger: Ledger) -> None:
    """One of its records is deleted already: nothing of it is recorded."""
    head = ledger.head()
    with pytest.raises(sqlite3.IntegrityError):
        ledger.append_request({"tags": ["t0", "t1"], "slots": [[1, 1]]}, ["t0", "t1"], [(1, 1)])
    assert ledger.head() == head
    assert ledger.tombstone("t0") is None
    assert ledger.hits() == {(0, 1): 2}
    assert ledger.append("note", {}) == head + 1


def test_what_it_answers(ledger: Ledger) -> None:
    assert ledger.append_request({"tags": ["t2"], "slots": [[0, 1], [1, 0]]}, ["t2"], [(0, 1), (1, 0)]) == 3
    assert (ledger.head(), ledger.count("request"), ledger.tombstones()) == (3, 2, 2)
    assert (ledger.tombstone("t1"), ledger.tombstone("t2"), ledger.tombstone("t3")) == (2, 3, None)
    assert ledger.hits() == {(0, 1): 3, (1, 0): 3}
    assert [e.seq for e in ledger.entries()] == [1, 2, 3]
    assert [e.seq for e in ledger.entries("request", after=2)] == [3]
    assert [e.seq for e in ledger.entries(upto=2)] == [1, 2]
    assert ledger.entry(1).kind == "create"


def test_a_training_that_a_request_overtook_is_superseded(ledger: Ledger) -> None:
    body = {"shard": 0, "prefix": [2, 1]}
    with pytest.raises(Superseded):
        ledger.append_trained(body, since=1)
    assert ledger.count("train") == 0
    assert ledger.append_trained(body, since=2) == 3
    assert ledger.append_trained({"shard": 1, "prefix": [2, 1]}, since=0) == 4
    assert ledger.append_trained({"shard": 0, "prefix": [2, 0]}, since=0) == 5


def test_two_writers_take_turns(ledger: Ledger, path: Path) -> None:
    other = Ledger(path)
    for _ in range(3):
        ledger.append_request({"tags": [], "slots": []}, (), ())
        other.append_request({"tags": [], "slots": []}, (), ())
    assert [e.body["request"] for e in other.entries("request")] == [f"r{i:06d}" for i in range(1, 8)]
    assert ledger.head() == other.head() == 8
    other.close()
    Ledger(path).close()


def test_a_writer_that_stays_is_reported_and_nothing_changes(ledger: Ledger, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger._db.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(BusyError, match="another process is writing to this run"):
        ledger.append("note", {})
    other.execute("ROLLBACK")
    other.close()
    assert ledger.append("note", {}) == 3


def test_an_entry_is_there_for_others_when_append_returns(ledger: Ledger, path: Path) -> None:
    seq = ledger.append("note", {"x": 1})
    assert _raw(path, f"SELECT body FROM entries WHERE seq = {seq}") == [('{"x":1}',)]
    assert not path.with_name(path.name + "-journal").exists()
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (3,)


def test_a_full_disk_is_one_error_and_the_ledger_goes_on(ledger: Ledger) -> None:
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RunError, match="no space left for the run"):
        ledger.append("note", {"long": "x" * 100_000})
    assert ledger.head() == 2
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert ledger.append("note", {"long": "x" * 100_000}) == 3


def test_a_commit_that_fails_leaves_no_open_transaction(ledger: Ledger) -> None:
    class Failing:
        """The connection, but its disk is full at COMMIT."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self.db, self.failed = db, False

        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if statement == "COMMIT" and not self.failed:
                self.failed = True
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return self.db.execute(statement, *values)

        def __getattr__(self, name: str) -> object:
            return getattr(self.db, name)

    ledger._db = Failing(ledger._db)  # type: ignore[assignment]
    with pytest.raises(RunError, match="no space left"):
        ledger.append("note", {})
    assert ledger.head() == 2
    assert ledger.append("note", {}) == 3
