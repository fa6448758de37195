"""The ledger: append-only, hash-chained facts in SQLite (docs/DERIVATION.md, "Ledger"). No torch.

It stores what happened and interprets nothing, save two indexes that make a deletion independent of its length. An entry
is on disk when :meth:`Ledger.append` returns; a deletion is acknowledged only after that.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.contract import Slot
from s3t.errors import RunError
from s3t.reading import parse_json
from s3t.records import canonical_json
from s3t.store import no_space, readable

_SCHEMA = """
CREATE TABLE entries(seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, previous TEXT NOT NULL,
                     digest TEXT NOT NULL);
CREATE TABLE hits(shard INTEGER NOT NULL, slice INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(shard, slice, seq));
CREATE TABLE tombstones(tag TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE INDEX entries_kind ON entries(kind, seq);
"""
_APPEND_ONLY = """
CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


WHAT = "the ledger is"
"""How errors of reading begin."""


@dataclass(frozen=True)
class Entry:
    """One fact: its position from 1, what kind it is, and its content."""

    seq: int
    kind: str
    body: dict[str, Any]


class Superseded(Exception):
    """A deletion hit the slots of a node while it was being trained: the outcome must not be recorded."""


class Ledger:
    """One run's facts. Raises RunError if the file is missing or damaged, BusyError if another writer stays too long."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RunError(f"the run has no ledger ({path.name} is missing); without it nothing may be served")
        self._folder = path.parent
        with readable(WHAT):
            self._db = _connect(path)
        self._last()

    @staticmethod
    def create(path: Path) -> Ledger:
        """Create an empty ledger at ``path``, which must not exist."""
        db = sqlite3.connect(path)
        triggers = "".join(
            _APPEND_ONLY.format(table=table, verb=verb)
            for table in ("entries", "hits", "tombstones")
            for verb in ("UPDATE", "DELETE")
        )
        db.executescript(_SCHEMA + triggers)
        db.close()
        return Ledger(path)

    def close(self) -> None:
        """Close the file; the object must not be used afterwards."""
        self._db.close()

    def append(self, kind: str, body: dict[str, Any], *, tags: Sequence[str] = (), slots: Sequence[Slot] = ()) -> int:
        """Append one fact and return its position. ``tags`` become tombstones, ``slots`` are marked hit; all or nothing."""
        with self._writing():
            return self._append(kind, body, tags, slots)

    def append_trained(self, body: dict[str, Any], since: int) -> int:
        """Append a ``train`` fact unless a request after entry ``since`` hit its slots; then raise Superseded."""
        with self._writing():
            for piece in body["prefix"]:
                if self._last_hit(body["shard"], piece) > since:
                    raise Superseded
            return self._append("train", body, (), ())

    def append_request(self, body: dict[str, Any], tags: Sequence[str], slots: Sequence[Slot]) -> int:
        """Append a ``request`` fact, giving it the next request id (``r000001``...). Returns its position."""
        with self._writing():
            numbered = {"request": f"r{self.requests() + 1:06d}", **body}
            return self._append("request", numbered, tags, slots)

    def head(self) -> int:
        """Return the position of the last entry, 0 if there is none."""
        return int(self._one("SELECT coalesce(max(seq), 0) FROM entries")[0])

    def entries(self, kind: str | None = None, after: int = 0, upto: int = 2**62) -> Iterator[Entry]:
        """Yield the facts after position ``after`` up to ``upto``, oldest first, of one kind or of all."""
        where, values = ("AND kind = ?", (after, upto, kind)) if kind else ("", (after, upto))
        query = f"SELECT * FROM entries WHERE seq > ? AND seq <= ? {where} ORDER BY seq"
        with readable(WHAT):
            for row in self._db.execute(query, values):
                yield _entry(row)

    def entry(self, seq: int) -> Entry:
        """Return the fact at position ``seq``. RunError if there is none."""
        row = self._one("SELECT * FROM entries WHERE seq = ?", seq)
        if row is None:
            raise RunError(f"the ledger is damaged: entry {seq} is missing; nothing may be served")
        return _entry(row)

    def last(self, kind: str) -> Entry | None:
        """Return the latest fact of one kind, or None."""
        (seq,) = self._one("SELECT max(seq) FROM entries WHERE kind = ?", kind)
        return self.entry(seq) if seq else None

    def count(self, kind: str) -> int:
        """Return the number of facts of one kind."""
        return int(self._one("SELECT count(*) FROM entries WHERE kind = ?", kind)[0])

    def requests(self) -> int:
        """Return the number of requests; the last one's id says it, so nothing is counted."""
        last = self.last("request")
        return int(last.body["request"].removeprefix("r")) if last else 0

    def tombstones(self) -> int:
        """Return the number of records ever deleted; rows are numbered from 1 and never removed, so nothing is counted."""
        return int(self._one("SELECT coalesce(max(rowid), 0) FROM tombstones")[0])

    def tombstone(self, tag: str) -> int | None:
        """Return the position of the request that deleted the record with ``tag``, or None."""
        row = self._one("SELECT seq FROM tombstones WHERE tag = ?", tag)
        return _position(row[0]) if row else None

    def hits(self) -> dict[Slot, int]:
        """Return for each slot that was ever hit the position of its last request, by one step in the index per slot.

        RunError if the index says of a request what is not in it.
        """
        found: dict[Slot, int] = {}
        following = (
            "SELECT shard, slice FROM hits WHERE (shard, slice, seq) > (?, ?, ?) ORDER BY shard, slice, seq LIMIT 1"
        )
        row = self._one(following, -1, -1, 0)
        while row:
            last = found[row] = self._last_hit(*row)
            if list(row) not in self.entry(last).body.get("slots", ()):
                raise RunError(f"the ledger is damaged: its index says {row} of entry {last}; nothing may be served")
            row = self._one(following, *row, last)
        return found

    def _last_hit(self, shard: int, piece: int) -> int:
        query = "SELECT coalesce(max(seq), 0) FROM hits WHERE shard = ? AND slice = ?"
        return _position(self._one(query, shard, piece)[0])

    def _one(self, query: str, *values: Any) -> Any:
        with readable(WHAT):
            return self._db.execute(query, values).fetchone()

    def _last(self) -> tuple[int, str]:
        """Return position and digest of the last entry, (0, "") if there is none."""
        row = self._one("SELECT * FROM entries ORDER BY seq DESC LIMIT 1")
        return (_entry(row).seq, row[4]) if row else (0, "")

    def _append(self, kind: str, body: dict[str, Any], tags: Sequence[str], slots: Sequence[Slot]) -> int:
        last, previous = self._last()
        seq = last + 1
        text = canonical_json(body).decode()
        digest = _entry_digest(seq, kind, text, previous)
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (seq, kind, text, previous, digest))
        self._db.executemany("INSERT INTO tombstones VALUES (?, ?)", [(tag, seq) for tag in tags])
        self._db.executemany("INSERT INTO hits VALUES (?, ?, ?)", [(shard, piece, seq) for shard, piece in slots])
        return seq

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with readable(WHAT), no_space(self._folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _position(value: Any) -> int:
    if not isinstance(value, int):  # SQLite keeps any type in any column
        raise RunError(f"the ledger is damaged: its index says {value!r} is a position; nothing may be served")
    return value


def _entry(row: Sequence[Any]) -> Entry:
    """Return a row of the table of entries as a fact. RunError if it does not match its digest."""
    seq, kind, body, previous, digest = row
    if not all(isinstance(text, str) for text in row[1:]) or _entry_digest(seq, kind, body, previous) != digest:
        raise RunError(f"the ledger is damaged: entry {seq} does not match its digest; nothing may be served")
    return Entry(seq, kind, parse_json(body))


def _entry_digest(seq: int, kind: str, body: str, previous: str) -> str:
    return hashlib.sha256(canonical_json([seq, kind, body, previous])).hexdigest()


def _connect(path: Path) -> sqlite3.Connection:
    """Open with durable commits: a rollback journal that is gone after each commit, and full synchronisation."""
    db = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    db.execute("PRAGMA synchronous = EXTRA")
    return db
