"""The run's own copy of its records, erased row by row. No torch.

Salts and contents lie back to back in one flat file, written once. A deletion overwrites the row's bytes with zeros where
they are and synchronises the file: nothing ever moves, so no copy of a row can be left elsewhere in it, and the cost of an
erasure depends on the row alone. An index in SQLite says where each row lies; it holds keyed tags, salted commitments and
checksums only and is never changed after ingestion, and a row of it that is not as it was written is never used. What a file
system or an SSD keeps below that is out of reach and said so in the README.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from s3t.contract import Slot
from s3t.errors import RunError
from s3t.partition import SALT_BYTES, content_commitment, slot, tag
from s3t.records import Layout, Record, canonical_json
from s3t.store import no_space, readable

INDEX, CONTENTS = "records.sqlite", "records.bin"
MAGIC = b"s3t rows"
HEADER = len(MAGIC) + 8
"""Bytes before the first row: the magic, then the ledger entry up to which rows are erased (big-endian)."""

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;
CREATE TABLE records(tag TEXT NOT NULL, shard INTEGER, slice INTEGER, split TEXT NOT NULL, "commitment" TEXT NOT NULL,
                     start INTEGER NOT NULL, length INTEGER NOT NULL, "check" TEXT NOT NULL);
"""
_INDEXES = """
CREATE UNIQUE INDEX records_tag ON records(tag);
CREATE INDEX records_slot ON records(split, shard, slice);
"""


WHAT = "the run's records are"
"""How errors of reading begin."""


@dataclass(frozen=True)
class StoredRow:
    """A training record with the commitment that was taken of it before training."""

    record: Record
    commitment: str


@dataclass(frozen=True)
class _Place:
    """A row of the index: where a record lies."""

    tag: str
    shard: int | None
    piece: int | None
    split: str
    commitment: str
    start: int
    length: int

    @property
    def slot(self) -> Slot | None:
        """The slot of a training record, None for others."""
        return None if self.shard is None or self.piece is None else (self.shard, self.piece)


class RecordStore:
    """Records of one run by tag, in ``folder``. Raises RunError if a file is missing, damaged, or a row is.

    ``given``: how many records each slot was given (:meth:`counts`), if that is on record; a slot with others is damaged.
    """

    def __init__(self, folder: Path, given: Mapping[Slot, int] | None = None) -> None:
        self._given = given
        for name in (INDEX, CONTENTS):
            if not (folder / name).is_file():
                raise RunError(f"the run has no records ({name} is missing); it cannot be used without them")
        self._folder = folder
        self._file = os.open(folder / CONTENTS, os.O_RDWR)
        self._closing = weakref.finalize(self, os.close, self._file)
        with readable(WHAT):
            where = f"{(folder / INDEX).resolve().as_uri()}?mode=ro&immutable=1"
            self._db = sqlite3.connect(where, uri=True)
            last = next(self._index("ORDER BY rowid DESC LIMIT 1"), None)
        self.erased_through()
        size, wanted = os.fstat(self._file).st_size, last.start + last.length if last else HEADER
        if size != wanted:
            raise RunError(f"the run's records are damaged ({CONTENTS} has {size} bytes, not {wanted}); restore them")

    @staticmethod
    def create(
        folder: Path,
        key: bytes,
        layout: Layout,
        train: Sequence[Record],
        validation: Sequence[Record],
        test: Sequence[Record],
    ) -> RecordStore:
        """Ingest all splits, one record at a time; only training records get a slot. Every record gets a random salt."""
        db = sqlite3.connect(folder / INDEX)
        db.executescript(_SCHEMA)
        with (folder / CONTENTS).open("wb") as file:
            file.write(_header(0))
            splits = {"train": train, "validation": validation, "test": test}
            with db:
                db.executemany(
                    "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _ingest(file, key, layout, splits)
                )
            file.flush()
            os.fsync(file.fileno())
        db.executescript(_INDEXES)
        db.close()
        with (folder / INDEX).open("rb") as index:
            os.fsync(index.fileno())
        return RecordStore(folder)

    def close(self) -> None:
        """Close the files; the object must not be used afterwards."""
        self._db.close()
        self._closing()

    def place(self, record_tag: str) -> tuple[str, Slot | None] | None:
        """Return (split, slot) of the record with ``record_tag``, or None if it is not here or was erased."""
        row = next(self._index("WHERE tag = ?", record_tag), None)
        if row is None or not any(os.pread(self._file, SALT_BYTES, row.start)):
            return None
        return row.split, row.slot

    def row(self, record_tag: str) -> StoredRow | None:
        """Return the retained training record with ``record_tag``, None if it is not here or was erased."""
        found = self._retained(self._index("WHERE tag = ? AND split = 'train'", record_tag))
        return next((StoredRow(Record.from_content(content), value) for content, value in found), None)

    def number(self, record_tag: str) -> int:
        """Return where a training record stands among them in order of ingestion, from 0, whether erased or not."""
        with readable(WHAT):
            query = "SELECT rowid FROM records WHERE tag = ? AND split = 'train'"
            (found,) = self._db.execute(query, (record_tag,)).fetchone()
        return int(found) - 1

    @contextmanager
    def erasing(self) -> Iterator[None]:
        """Keep other processes from erasing; they wait. The hold ends with the process, however that ends."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def erase(self, tags: Iterable[str]) -> int:
        """Overwrite training rows by tag and return how many were there; on disk only after :meth:`note_erased`."""
        erased = 0
        with no_space(self._folder):
            for record_tag in tags:
                for row in self._index("WHERE tag = ? AND split = 'train'", record_tag):
                    erased += os.pread(self._file, row.length, row.start) != bytes(row.length)
                    self._write(row.start, bytes(row.length))
        return erased

    def erased_through(self) -> int:
        """Return the ledger entry up to which the rows of all requests are known to be erased."""
        header = os.pread(self._file, HEADER, 0)
        if len(header) != HEADER or not header.startswith(MAGIC):
            raise RunError(f"the run's records are damaged ({CONTENTS} does not begin as it must); restore them")
        return int.from_bytes(header[len(MAGIC) :], "big")

    def note_erased(self, through: int) -> None:
        """Have what was erased on disk, then note that nothing up to ledger entry ``through`` is left to erase.

        The note itself is not synchronised: if it is lost, the rows after it are overwritten once more.
        """
        with no_space(self._folder):
            os.fdatasync(self._file)
            self._write(0, _header(through))

    def commitments(self) -> Iterator[str]:
        """Yield the commitments of all training records ever ingested, sorted. For right after that: no row is checked."""
        with readable(WHAT):
            found = self._db.execute("SELECT commitment FROM records WHERE split = 'train' ORDER BY commitment")
            yield from (commitment for (commitment,) in found)

    def counts(self) -> dict[Slot, int]:
        """Return how many training records each slot was given, erased ones included."""
        query = "SELECT shard, slice, count(*) FROM records WHERE split = 'train' GROUP BY shard, slice"
        with readable(WHAT):
            return {(shard, piece): count for shard, piece, count in self._db.execute(query)}

    def contents(self, split: str) -> Iterator[bytes]:
        """Yield the contents of the retained records of a split, in the order of ingestion."""
        return (content for content, _ in self._retained(self._index("WHERE split = ? ORDER BY start", split)))

    def each_id(self, split: str) -> Iterator[str]:
        """Yield the ids of a split, in the order of ingestion. They are part of the contents, so all of these are read."""
        return (Record.from_content(content).id for content in self.contents(split))

    def ids(self, split: str) -> list[str]:
        """Return the ids of a split, sorted."""
        return sorted(self.each_id(split))

    def slot_ids(self, place: Slot, begin: str = "") -> list[str]:
        """Return the ids of a slot's retained records that ``begin`` so, sorted, for deletion; of the rows it holds one."""
        return sorted(row.record.id for row in self.slot_rows(*place) if row.record.id.startswith(begin))

    def evaluation(self, split: str) -> list[Record]:
        """Return the records of a never-deletable split (validation or test), sorted by id."""
        if split not in ("validation", "test"):
            raise RunError(f"split {split!r} is not for evaluation; choose validation or test")
        return sorted(map(Record.from_content, self.contents(split)), key=lambda record: record.id)

    def slot_rows(self, shard: int, piece: int) -> Iterator[StoredRow]:
        """Yield a slot's retained rows. RunError at their end if the index does not have as many as the slot was given."""
        rows, found = self._index("WHERE split = 'train' AND shard = ? AND slice = ? ORDER BY start", shard, piece), 0
        for row in rows:
            found += 1
            yield from (StoredRow(Record.from_content(content), value) for content, value in self._retained([row]))
        if self._given is not None and found != self._given.get((shard, piece), 0):
            raise RunError(
                f"the run's records are damaged ({INDEX} has {found} rows of slot {(shard, piece)}, not "
                f"{self._given.get((shard, piece), 0)}); restore them from a copy"
            )

    def _index(self, where: str, *values: Any) -> Iterator[_Place]:
        """Yield rows of the index. RunError for one that is not as it was written."""
        query = f'SELECT tag, shard, slice, split, "commitment", start, length, "check" FROM records {where}'
        with readable(WHAT):
            for *fields, check in self._db.execute(query, values):
                if not all(isinstance(field, str | int | None) for field in fields) or _checksum(fields) != check:
                    raise RunError(f"the run's records are damaged (a row of {INDEX}); restore them from a copy")
                yield _Place(*fields)

    def _retained(self, rows: Iterable[_Place]) -> Iterator[tuple[bytes, str]]:
        for row in rows:
            span = os.pread(self._file, row.length, row.start)
            if content_commitment(span[:SALT_BYTES], span[SALT_BYTES:]) != row.commitment:
                with self.erasing():  # another process may be in the middle of overwriting it
                    span = os.pread(self._file, row.length, row.start)
                if span == bytes(row.length):
                    continue
                raise RunError(
                    f"the run's records are damaged ({CONTENTS}: the row at byte {row.start} does not match its commitment); "
                    "restore them from a copy"
                )
            yield span[SALT_BYTES:], row.commitment

    def _write(self, start: int, content: bytes) -> None:
        while content:
            written = os.pwrite(self._file, content, start)
            start, content = start + written, content[written:]


def _header(through: int) -> bytes:
    return MAGIC + through.to_bytes(8, "big")


def _ingest(
    file: BinaryIO, key: bytes, layout: Layout, splits: Mapping[str, Sequence[Record]]
) -> Iterator[tuple[Any, ...]]:
    """Write salts and contents to ``file`` and yield the index's rows."""
    start = HEADER
    for split, records in splits.items():
        for record in records:
            content, salt = record.content(), secrets.token_bytes(SALT_BYTES)
            shard, piece = slot(key, record.id, layout) if split == "train" else (None, None)
            length = file.write(salt + content)
            fields = (tag(key, record.id), shard, piece, split, content_commitment(salt, content), start, length)
            yield *fields, _checksum(fields)
            start += length


def _checksum(fields: Sequence[Any]) -> str:
    """Return what tells whether a row of the index is as it was written (docs/DERIVATION.md, "Records")."""
    return hashlib.sha256(canonical_json(list(fields))).hexdigest()[:32]
