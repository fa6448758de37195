"""Images flipped at random, exactly: a flip is drawn for each visit of a record from the node's seed alone.

Never from a generator that rows share. So an image has two versions and no more: both pass the frozen prefix once per slice,
and a node's batches choose.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from s3t.errors import DataError
from s3t.images import EncodedImage
from s3t.records import canonical_json
from s3t.training import Row


def with_flips(
    rows: Sequence[Row], ids: Sequence[str], batches: Sequence[Sequence[int]], seed: int
) -> tuple[list[Row], list[list[int]]]:
    """Return ``rows`` followed by themselves flipped, and ``batches`` with a version drawn for each visit.

    The draw is a function of ``seed``, how often the row was visited before, and its id: with probability 1/2 flipped.
    DataError for a row that is no image.
    """
    other = []
    for row, name in zip(rows, ids, strict=True):
        if not isinstance(row.encoded, EncodedImage):
            raise DataError(f"record {name!r} is no image, so it cannot be flipped")
        other.append(replace(row, encoded=replace(row.encoded, flipped=True)))
    visits: Counter[int] = Counter()
    drawn = []
    for batch in batches:
        drawn.append([i + len(rows) * _flip(seed, visits[i], ids[i]) for i in batch])
        visits.update(batch)
    return [*rows, *other], drawn


def _flip(seed: int, visit: int, name: str) -> int:
    return hashlib.sha256(canonical_json(["s3t flip v1", seed, visit, name])).digest()[0] & 1
