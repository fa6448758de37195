"""The run's own copy of its records, erased row by row, and the one door through which training reads them. No torch.

Erasure uses SQLite's ``secure_delete`` (freed bytes are overwritten with zeros) and a rollback journal that is deleted at
commit. That is not enough: when SQLite splits or merges pages it leaves stale copies of rows in their gaps, where a later
deletion does not reach them. So the file is rewritten after each erasure, from the retained rows alone. What a file system
or an SSD keeps below that is out of reach and said so in the README.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3t.contract import Slot
from s3t.errors import RunError
from s3t.partition import SALT_BYTES, commitment, slot, tag
from s3t.records import Layout, Record
from s3t.store import no_space

_SCHEMA = """
CREATE TABLE records(tag TEXT PRIMARY KEY, id TEXT NOT NULL, shard INTEGER, slice INTEGER, split TEXT NOT NULL,
                     salt BLOB NOT NULL, "commitment" TEXT NOT NULL, content BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX records_slot ON records(split, shard, slice);
"""
_TO_COMPACT = 1
"""SQLite's ``user_version`` between the erasure of rows and the rewriting of the file; set in the same transaction."""


@dataclass(frozen=True)
class StoredRow:
    """A training record with the commitment that was taken of it before training."""

    record: Record
    commitment: str


class RecordStore:
    """Records of one run by tag. Raises RunError if the file is missing or damaged."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RunError(f"the run has no records ({path.name} is missing); it cannot be used without them")
        self._folder = path.parent
        self._db = sqlite3.connect(path, timeout=10.0)
        try:
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute("PRAGMA synchronous = EXTRA")
            self._db.execute("SELECT count(*) FROM records").fetchone()
        except sqlite3.DatabaseError as error:
            raise RunError(f"the run's records are damaged ({error}); restore them from a copy") from error

    @staticmethod
    def create(
        path: Path,
        key: bytes,
        layout: Layout,
        train: Sequence[Record],
        validation: Sequence[Record],
        test: Sequence[Record],
    ) -> RecordStore:
        """Ingest all splits; only training records get a slot. Every record gets a fresh random salt."""
        db = sqlite3.connect(path)
        db.executescript(_SCHEMA)
        with db:
            for split, records in (("train", train), ("validation", validation), ("test", test)):
                for record in records:
                    salt = secrets.token_bytes(SALT_BYTES)
                    shard, piece = slot(key, record.id, layout) if split == "train" else (None, None)
                    values = (shard, piece, split, salt, commitment(salt, record), record.content())
                    db.execute(
                        "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (tag(key, record.id), record.id, *values)
                    )
        db.close()
        return RecordStore(path)

    def close(self) -> None:
        """Close the file; the object must not be used afterwards."""
        self._db.close()

    def place(self, record_tag: str) -> tuple[str, Slot | None] | None:
        """Return (split, slot) of the record with ``record_tag``, or None if it is not here."""
        row = self._db.execute("SELECT split, shard, slice FROM records WHERE tag = ?", (record_tag,)).fetchone()
        return (row[0], None if row[1] is None else (row[1], row[2])) if row else None

    def erase(self, tags: Sequence[str]) -> int:
        """Erase training rows by tag and return how many were there."""
        with no_space(self._folder), self._db:
            before = self._db.total_changes
            self._db.executemany("DELETE FROM records WHERE tag = ? AND split = 'train'", [(t,) for t in tags])
            erased = self._db.total_changes - before
            if erased:
                self._db.execute(f"PRAGMA user_version = {_TO_COMPACT}")
        self.compact()
        return erased

    def compact(self) -> None:
        """Rewrite the file if rows were erased since it was last written: what else could hold them is overwritten."""
        with no_space(self._folder):
            if self._db.execute("PRAGMA user_version").fetchone()[0] == _TO_COMPACT:
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA user_version = 0")

    def slot_sizes(self) -> dict[Slot, int]:
        """Return the number of training records per slot that has any."""
        query = "SELECT shard, slice, count(*) FROM records WHERE split = 'train' GROUP BY shard, slice"
        return {(shard, piece): count for shard, piece, count in self._db.execute(query)}

    def count(self, split: str) -> int:
        """Return the number of records in a split."""
        return int(self._db.execute("SELECT count(*) FROM records WHERE split = ?", (split,)).fetchone()[0])

    def commitments(self) -> list[str]:
        """Return the commitments of all training records, sorted."""
        query = 'SELECT "commitment" FROM records WHERE split = \'train\' ORDER BY "commitment"'
        return [value for (value,) in self._db.execute(query)]

    def ids(self, split: str) -> list[str]:
        """Return the ids of a split, sorted; names only, no content is read."""
        return sorted(value for (value,) in self._db.execute("SELECT id FROM records WHERE split = ?", (split,)))

    def evaluation(self, split: str) -> list[Record]:
        """Return the records of a never-deletable split (validation or test), sorted by id."""
        if split not in ("validation", "test"):
            raise RunError(f"split {split!r} is not for evaluation; choose validation or test")
        rows = self._db.execute("SELECT content FROM records WHERE split = ?", (split,))
        return sorted((Record.from_content(content) for (content,) in rows), key=lambda record: record.id)

    def _slot_rows(self, shard: int, piece: int) -> list[StoredRow]:
        query = "SELECT content, \"commitment\" FROM records WHERE split = 'train' AND shard = ? AND slice = ?"
        rows = self._db.execute(query, (shard, piece))
        return [StoredRow(Record.from_content(content), value) for content, value in rows]


class ObservedRows:
    """The only door from training to the records. It notes which ids were read, and for which node.

    Reads outside any node are *stray*: they could influence everything, so the system records them as such.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._current: set[str] | None = None
        self.stray: set[str] = set()

    @contextmanager
    def observing(self) -> Iterator[set[str]]:
        """Attribute the reads of the body to one node; yields the growing set of ids read."""
        reads: set[str] = set()
        self._current = reads
        try:
            yield reads
        finally:
            self._current = None

    def read(self, slots: Sequence[Slot]) -> list[StoredRow]:
        """Return the retained training rows of ``slots``, sorted by id, and note that they were read."""
        rows = [row for shard, piece in slots for row in self._store._slot_rows(shard, piece)]
        rows.sort(key=lambda row: row.record.id)
        (self.stray if self._current is None else self._current).update(row.record.id for row in rows)
        return rows
