"""The one door through which training reads records: it notes who read what. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from s3t.contract import Slot
from s3t.rows import RecordStore, StoredRow


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
        rows = [row for shard, piece in slots for row in self._store.slot_rows(shard, piece)]
        rows.sort(key=lambda row: row.record.id)
        (self.stray if self._current is None else self._current).update(row.record.id for row in rows)
        return rows

    def each(self, slots: Sequence[Slot]) -> Iterator[StoredRow]:
        """Yield the retained training rows of ``slots``, slot by slot as they were ingested, one in memory at a time."""
        for shard, piece in slots:
            for row in self._store.slot_rows(shard, piece):
                (self.stray if self._current is None else self._current).add(row.record.id)
                yield row
