"""Whether ids are unique, without having all of them in memory. No torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from s3t.errors import DataError


class Named(Protocol):
    """What has an id."""

    @property
    def id(self) -> str:
        """The id."""


def check_unique(records: Collection[Named]) -> None:
    """Raise DataError if two records carry the same id. ``records`` are gone through twice at most.

    In memory are 8 bytes per record, hashes of the ids, and never all ids.
    """
    import numpy as np

    hashes = np.fromiter((hash(record.id) for record in records), np.int64, len(records))
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    seen: set[str] = set()
    for name in (record.id for record in records if hash(record.id) in suspects):
        if name in seen:
            raise DataError(f"record id {name!r} occurs twice; ids must be unique, for they are what is deleted")
        seen.add(name)
