"""Copies of a record under other ids: a deletion of one copy does not delete the others. No torch.

*Exact* duplicates have the same inputs once text is normalised (Unicode NFKC, casefold, whitespace collapsed) and bytes
stand for their digest; labels may differ. *Near* duplicates share most of their shingles: the Jaccard similarity of their
shingle sets reaches a threshold (Broder 1997). :func:`find` proposes pairs by MinHash and locality-sensitive hashing
(library datasketch) and keeps those whose exact similarity reaches the threshold; :func:`closure` compares exactly and misses
none. Groups are connected components, so the ends of a chain may be less alike than the threshold.
"""

from __future__ import annotations

import hashlib
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from s3t.contract import Slot
from s3t.errors import DataError
from s3t.observing import ObservedRows
from s3t.records import Record
from s3t.runs import Run

Shingles = Literal["characters", "words"]
"""What a text is cut into: overlapping runs of 5 characters, or of 3 words."""

LENGTHS: Mapping[Shingles, int] = {"characters": 5, "words": 3}
THRESHOLD = 0.8
PERMUTATIONS = 128
MISS = 1e-3
"""Bound on the probability that :func:`find` proposes no comparison of a pair whose similarity is at the threshold."""


@dataclass(frozen=True)
class Group:
    """At least two records that are copies of each other, by sorted ``ids``.

    ``exact``: all have the same normalised inputs. ``labels_differ``: not all have the same label. ``slots``: where they
    are, sorted and distinct; empty if the places are not known.
    """

    ids: tuple[str, ...]
    exact: bool
    labels_differ: bool
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class Duplicates:
    """The groups found among ``compared`` records, largest first; the settings they were found with."""

    groups: tuple[Group, ...]
    compared: int
    threshold: float
    shingles: Shingles
    placed: bool

    def counts(self) -> dict[str, int | float | str | None]:
        """Return the figures without any id; None for what depends on places that are not known."""
        groups = self.groups
        return {
            "compared": self.compared,
            "threshold": self.threshold,
            "shingles": self.shingles,
            "groups": len(groups),
            "records": sum(len(group.ids) for group in groups),
            "exact_groups": sum(group.exact for group in groups),
            "largest": max((len(group.ids) for group in groups), default=0),
            "labels_differ": sum(group.labels_differ for group in groups),
            "across_slots": sum(len(group.slots) > 1 for group in groups) if self.placed else None,
            "across_shards": (
                sum(len({shard for shard, _ in group.slots}) > 1 for group in groups) if self.placed else None
            ),
        }


def find(
    records: Sequence[Record],
    *,
    threshold: float = THRESHOLD,
    shingles: Shingles = "characters",
    place: Callable[[str], Slot] | None = None,
) -> Duplicates:
    """Return the groups of exact and near duplicates among ``records``; ``place`` gives a record's slot by id.

    The same records give the same groups, in whatever order. A pair at the threshold is overlooked with probability below
    ``MISS``, a more similar one less often; exact duplicates never are. Raises DataError unless 0 < threshold <= 1.
    """
    _check(threshold)
    copies: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.id):
        copies[_normalised(record)].append(record)
    texts = sorted(copies)
    found = []
    for members in _components(len(texts), _pairs(texts, threshold, shingles)):
        group = [record for member in members for record in copies[texts[member]]]
        if len(group) > 1:
            ids = tuple(sorted(record.id for record in group))
            slots = tuple(sorted({place(name) for name in ids})) if place else ()
            found.append(Group(ids, len(members) == 1, len({record.label for record in group}) > 1, slots))
    found.sort(key=lambda group: (-len(group.ids), group.ids))
    return Duplicates(tuple(found), len(records), threshold, shingles, place is not None)


def closure(
    records: Iterable[Record],
    ids: Collection[str],
    *,
    threshold: float = THRESHOLD,
    shingles: Shingles = "characters",
) -> tuple[str, ...]:
    """Return the ids, sorted, of the groups that ``ids`` are in, those of ``ids`` among ``records`` included.

    Every record is compared exactly with every member, so no copy is overlooked. Raises DataError as :func:`find`.
    """
    _check(threshold)
    rest = {record.id: _normalised(record) for record in records}
    found: set[str] = set()
    frontier = sorted(set(ids) & rest.keys())
    while frontier:
        found.update(frontier)
        members = [cut(rest.pop(name), shingles) for name in frontier]
        holders: dict[str, list[int]] = defaultdict(list)
        for number, member in enumerate(members):
            for shingle in member:
                holders[shingle].append(number)
        frontier = [name for name, text in rest.items() if _close(cut(text, shingles), members, holders, threshold)]
    return tuple(sorted(found))


def retained(run: Run) -> list[Record]:
    """Return the retained training records of ``run``, sorted by id; nothing that trains reads them this way."""
    layout = run.config.plan.layout
    slots = [(shard, piece) for shard in range(layout.shards) for piece in range(layout.slices)]
    return [row.record for row in ObservedRows(run.records).read(slots)]


def characters(records: Iterable[Record]) -> int:
    """Return the number of characters in the texts of ``records``, which the time of :func:`find` grows with."""
    return sum(len(value) for record in records for value in record.inputs.values() if isinstance(value, str))


def cut(text: tuple[str, ...], shingles: Shingles) -> frozenset[str]:
    """Return the shingles of a normalised record, field by field; a field shorter than one shingle is one itself."""
    width = LENGTHS[shingles]
    found: set[str] = set()
    for field in text:
        name, _, value = field.partition("\x00")
        if shingles == "words":
            words = value.split(" ")
            parts = [" ".join(words[start : start + width]) for start in range(max(1, len(words) - width + 1))]
        else:
            parts = [value[start : start + width] for start in range(max(1, len(value) - width + 1))]
        found.update(f"{name}\x00{part}" for part in parts)
    return frozenset(found)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the size of the intersection over that of the union; both sets have at least one element."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def bands(threshold: float, permutations: int = PERMUTATIONS, miss: float = MISS) -> tuple[int, int]:
    """Return (bands, rows per band): the most rows for which a pair at ``threshold`` is overlooked with chance <= ``miss``.

    A pair of similarity s agrees in all rows of some band with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman,
    Ullman, Mining of Massive Datasets, section 3.4). One row per band is the least there is, whatever the bound.
    """
    for rows in range(permutations // 2, 1, -1):  # the library wants at least two bands
        if (1 - threshold**rows) ** (permutations // rows) <= miss:
            return permutations // rows, rows
    return permutations, 1


def _check(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise DataError(f"threshold={threshold!r} is not possible: give a Jaccard similarity above 0 and up to 1")


def _normalised(record: Record) -> tuple[str, ...]:
    fields = []
    for name, value in sorted(record.inputs.items()):
        if isinstance(value, bytes):
            fields.append(f"{name} bytes\x00{hashlib.sha256(value).hexdigest()}")
        else:
            folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
            fields.append(f"{name} text\x00{' '.join(folded.split())}")
    return tuple(fields)


def _pairs(texts: Sequence[tuple[str, ...]], threshold: float, shingles: Shingles) -> Iterable[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    blank = MinHash(PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
    for number, text in enumerate(texts):
        mine, sketch = cut(text, shingles), blank.copy()
        sketch.update_batch([shingle.encode(errors="surrogatepass") for shingle in mine])
        for other in sorted(index.query(sketch)):
            if jaccard(mine, cut(texts[other], shingles)) >= threshold:
                yield other, number
        index.insert(number, sketch, check_duplication=False)


def _components(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    parent = list(range(count))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for one, other in pairs:
        parent[root(other)] = root(one)
    groups: dict[int, list[int]] = defaultdict(list)
    for member in range(count):
        groups[root(member)].append(member)
    return list(groups.values())


def _close(
    mine: frozenset[str], members: Sequence[frozenset[str]], holders: Mapping[str, Sequence[int]], threshold: float
) -> bool:
    shared = Counter(number for shingle in mine for number in holders.get(shingle, ()))
    return any(count / (len(mine) + len(members[number]) - count) >= threshold for number, count in shared.items())
