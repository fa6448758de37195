"""The fixed split of data that comes without one: by a hash of the record's id, never by its content.

A record's split depends on its own id and on the public constant below alone, so that neither other records nor a
deletion can move it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

from s3t.data.pack import Pack
from s3t.records import Dataset, Record, owner

Split = Literal["train", "validation", "test"]

SPLIT_SALT = b"s3t split v1\x00"
"""The public constant: part = the first 8 bytes of SHA256(SPLIT_SALT || id), as an unsigned big-endian number, mod 100."""

SHARE = 10
"""Of 100 parts, 10 (the parts 0..9) are validation and the next 10 (10..19) are test."""


def part_of(record_id: str) -> int:
    """Return the part 0..99 of an id; a group's records have the same."""
    return int.from_bytes(hashlib.sha256(SPLIT_SALT + owner(record_id).encode()).digest()[:8], "big") % 100


def three_way(record_id: str) -> Split:
    """Return the split of a record of data without any split: 10 % validation, 10 % test, the rest train."""
    part = part_of(record_id)
    return "validation" if part < SHARE else "test" if part < 2 * SHARE else "train"


def carve_validation(record_id: str) -> Split:
    """Return the split of a training record of data that has its own test records only: 10 % validation."""
    return "validation" if part_of(record_id) < SHARE else "train"


def carve_test(record_id: str) -> Split:
    """Return the split of a training record of data that has its own validation records only: 10 % test."""
    return "test" if part_of(record_id) < SHARE else "train"


def dataset_of(pack: Pack, placed: Iterable[tuple[Split, Record]]) -> Dataset:
    """Return the data set of a pack's records, each in its split."""
    splits: dict[Split, list[Record]] = {split: [] for split in get_args(Split)}
    for split, record in placed:
        splits[split].append(record)
    train, validation, test = (tuple(records) for records in splits.values())
    return Dataset(pack.name, pack.classes, train, validation, test, source=pack.name)
