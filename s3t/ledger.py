"""The ledger: append-only, hash-chained facts in SQLite (docs/DERIVATION.md, "Ledger"). No torch.

It stores what happened and interprets nothing, save two indexes that make a deletion independent of its length. An entry
is on disk when :meth:`Ledger.append` returns; a deletion is acknowledged only after that.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.contract import Slot
from s3t.errors import BusyError, RunError
from s3t.records import canonical_json
from s3t.store import no_space

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
        try:
            self._db = _connect(path)
            self._check_head()
        except sqlite3.DatabaseError as error:
            raise RunError(f"the ledger is damaged ({error}); restore it from a copy, nothing may be served") from error

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
        (seq,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        return int(seq)

    def entries(self, kind: str | None = None, after: int = 0, upto: int = 2**62) -> Iterator[Entry]:
        """Yield the facts after position ``after`` up to ``upto``, oldest first, of one kind or of all."""
        where, values = ("AND kind = ?", (after, upto, kind)) if kind else ("", (after, upto))
        query = f"SELECT seq, kind, body FROM entries WHERE seq > ? AND seq <= ? {where} ORDER BY seq"
        rows = self._db.execute(query, values)
        for seq, name, body in rows:
            yield Entry(seq, name, json.loads(body))

    def entry(self, seq: int) -> Entry:
        """Return the fact at position ``seq``."""
        name, body = self._db.execute("SELECT kind, body FROM entries WHERE seq = ?", (seq,)).fetchone()
        return Entry(seq, name, json.loads(body))

    def last(self, kind: str) -> Entry | None:
        """Return the latest fact of one kind, or None."""
        (seq,) = self._db.execute("SELECT max(seq) FROM entries WHERE kind = ?", (kind,)).fetchone()
        return self.entry(seq) if seq else None

    def count(self, kind: str) -> int:
        """Return the number of facts of one kind."""
        (count,) = self._db.execute("SELECT count(*) FROM entries WHERE kind = ?", (kind,)).fetchone()
        return int(count)

    def requests(self) -> int:
        """Return the number of requests; the last one's id says it, so nothing is counted."""
        last = self.last("request")
        return int(last.body["request"].removeprefix("r")) if last else 0

    def tombstones(self) -> int:
        """Return the number of records ever deleted; rows are numbered from 1 and never removed, so nothing is counted."""
        (count,) = self._db.execute("SELECT coalesce(max(rowid), 0) FROM tombstones").fetchone()
        return int(count)

    def tombstone(self, tag: str) -> int | None:
        """Return the position of the request that deleted the record with ``tag``, or None."""
        row = self._db.execute("SELECT seq FROM tombstones WHERE tag = ?", (tag,)).fetchone()
        return int(row[0]) if row else None

    def hits(self) -> dict[Slot, int]:
        """Return for each slot that was ever hit the position of its last request, by one step in the index per slot."""
        found: dict[Slot, int] = {}
        following = (
            "SELECT shard, slice FROM hits WHERE (shard, slice, seq) > (?, ?, ?) ORDER BY shard, slice, seq LIMIT 1"
        )
        row = self._db.execute(following, (-1, -1, 0)).fetchone()
        while row:
            last = found[row] = self._last_hit(*row)
            row = self._db.execute(following, (*row, last)).fetchone()
        return found

    def _last_hit(self, shard: int, piece: int) -> int:
        query = "SELECT coalesce(max(seq), 0) FROM hits WHERE shard = ? AND slice = ?"
        return int(self._db.execute(query, (shard, piece)).fetchone()[0])

    def _append(self, kind: str, body: dict[str, Any], tags: Sequence[str], slots: Sequence[Slot]) -> int:
        last = self._db.execute("SELECT seq, digest FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        seq, previous = (last[0] + 1, last[1]) if last else (1, "")
        text = canonical_json(body).decode()
        digest = _entry_digest(seq, kind, text, previous)
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (seq, kind, text, previous, digest))
        self._db.executemany("INSERT INTO tombstones VALUES (?, ?)", [(tag, seq) for tag in tags])
        self._db.executemany("INSERT INTO hits VALUES (?, ?, ?)", [(shard, piece, seq) for shard, piece in slots])
        return seq

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise BusyError(f"another process is writing to this run ({error}); try again") from error
        with no_space(self._folder):
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _check_head(self) -> None:
        row = self._db.execute("SELECT * FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        if row and _entry_digest(*row[:4]) != row[4]:
            raise RunError(f"the ledger is damaged: entry {row[0]} does not match its digest; nothing may be served")


def _entry_digest(seq: int, kind: str, body: str, previous: str) -> str:
    return hashlib.sha256(canonical_json([seq, kind, body, previous])).hexdigest()


def _connect(path: Path) -> sqlite3.Connection:
    """Open with durable commits: a rollback journal that is gone after each commit, and full synchronisation."""
    db = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    db.execute("PRAGMA synchronous = EXTRA")
    return db
