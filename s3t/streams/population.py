"""Whose deletion is requested: records in slots, real ones by id or synthetic ones by number."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.errors import DataError, LayoutError, RecordError, did_you_mean
from s3t.records import Layout

Integers = NDArray[np.int64]

HOLDABLE = 10_000_000
"""Streams that need a number per record refuse larger populations."""


@dataclass(frozen=True, eq=False)
class Population:
    """Records numbered 0..size-1, each in a slot; slots are numbered shard * slices + slice.

    ``counts``: records per slot, shape (shards, slices). ``slot``: of each record, or None where records are numbered slot
    by slot, so that none has to be held. ``user``: the number of the user who owns each record, or None: each record is a
    user of its own. ``ids``: of real records. Make one with :meth:`of` or :meth:`synthetic`.
    """

    counts: Integers
    slot: Integers | None = None
    user: Integers | None = None
    ids: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        place: Callable[[str], tuple[int, int]],
        layout: Layout,
        users: Callable[[str], Hashable] | None = None,
    ) -> Population:
        """Return the population of real records. ``place``: id -> (shard, slice); ``users``: id -> who owns the record.

        Raises DataError for no or repeated ids, LayoutError for a slot outside ``layout``.
        """
        names = tuple(ids)
        if not names or len(set(names)) != len(names):
            raise DataError(
                f"{len(names)} ids, {len(set(names))} of them distinct, make no population: give unique ids"
            )
        places = np.array([place(name) for name in names], dtype=np.int64)
        outside = ((places < 0) | (places >= (layout.shards, layout.slices))).any(axis=1)
        if outside.any():
            wrong = int(np.argmax(outside))
            raise LayoutError(f"record {names[wrong]!r} lies in slot {tuple(places[wrong].tolist())}, outside {layout}")
        slot = places[:, 0] * layout.slices + places[:, 1]
        counts = np.bincount(slot, minlength=layout.shards * layout.slices).reshape(layout.shards, layout.slices)
        owner = None
        if users is not None:
            numbers: dict[Hashable, int] = {}
            owner = np.array([numbers.setdefault(users(name), len(numbers)) for name in names], dtype=np.int64)
        return cls(counts, slot, owner, names)

    @classmethod
    def synthetic(cls, counts: ArrayLike, *, records_per_user: int | None = None, seed: int = 0) -> Population:
        """Return records that exist by number alone. ``counts``: how many lie in each slot, shape (shards, slices).

        ``records_per_user``: users own that many records each (the last one perhaps fewer), dealt at random with ``seed``,
        as a keyed hash would place them. Raises LayoutError for counts that are none.
        """
        given = np.asarray(counts)
        if given.ndim != 2 or not given.size or given.dtype.kind not in "iu" or (given < 0).any() or not given.sum():
            raise LayoutError("records per slot must be integers of at least 0, shape (shards, slices), not all 0")
        whole = given.astype(np.int64)
        if records_per_user is None:
            return cls(whole)
        if records_per_user < 1:
            raise LayoutError(f"records_per_user={records_per_user} is not possible: give an integer of at least 1")
        size = check_holdable(int(whole.sum()), "users")
        dealt = np.random.default_rng(seed).permutation(size)
        return cls(whole, None, dealt // records_per_user)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return int(self.counts.shape[0])

    @property
    def slices(self) -> int:
        """The number of slices of a shard."""
        return int(self.counts.shape[1])

    @property
    def size(self) -> int:
        """The number of records."""
        return int(self._ends[-1])

    @property
    def users(self) -> int:
        """The number of users."""
        return self.size if self.user is None else len(self._user_ends)

    def slots_of(self, records: NDArray[np.int64]) -> Integers:
        """Return the slots of ``records``."""
        if self.slot is not None:
            return self.slot[records]
        return np.searchsorted(self._ends, records, side="right").astype(np.int64)

    def in_slots(self, slots: Integers, rng: np.random.Generator) -> Integers:
        """Return a record of each of ``slots`` (which must not be empty), uniformly at random."""
        first = self._ends[slots] - self.counts.reshape(-1)[slots]
        place = first + rng.integers(0, self._ends[slots] - first)
        return place if self.slot is None else self._by_slot[place]

    def of_users(self, users: Integers, rng: np.random.Generator) -> Integers:
        """Return a record of each of ``users``, uniformly at random."""
        if self.user is None:
            return users
        first = np.where(users > 0, self._user_ends[users - 1], 0)
        return self._by_user[first + rng.integers(0, self._user_ends[users] - first)]

    def all_of_user(self, user: int) -> tuple[int, ...]:
        """Return all records of one user, ascending."""
        if self.user is None:
            return (user,)
        first = int(self._user_ends[user - 1]) if user else 0
        return tuple(self._by_user[first : self._user_ends[user]].tolist())

    def records_per_user(self) -> Integers:
        """Return how many records each user owns."""
        return np.diff(self._user_ends, prepend=0) if self.user is not None else np.ones(self.size, dtype=np.int64)

    def find(self, record_id: str) -> int:
        """Return the number of a real record. RecordError for an unknown id."""
        found = self._index.get(record_id)
        if found is None:
            few = list(self._index) if len(self._index) <= 10_000 else []
            raise RecordError(f"record {record_id!r} is unknown{did_you_mean(record_id, few)}")
        return found

    @cached_property
    def _ends(self) -> Integers:
        return np.cumsum(self.counts.reshape(-1))

    @cached_property
    def _by_slot(self) -> Integers:
        return np.argsort(self.slot if self.slot is not None else np.arange(self.size), kind="stable")

    @cached_property
    def _by_user(self) -> Integers:
        assert self.user is not None
        return np.argsort(self.user, kind="stable")

    @cached_property
    def _user_ends(self) -> Integers:
        assert self.user is not None
        return np.cumsum(np.bincount(self.user))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids or ())}


def check_holdable(size: int, why: str) -> int:
    """Return ``size``. LayoutError where a number per record is needed for ``why`` and there are too many records."""
    if size > HOLDABLE:
        raise LayoutError(f"{size:,} records are too many to hold for {why}: give at most {HOLDABLE:,}")
    return size
