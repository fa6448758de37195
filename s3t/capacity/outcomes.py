"""From first hits to outcomes: when shards die, and what they serve after some requests. Follows the definitions alone.

A *first hit* is the request that first falls in a slot. Everything that deletions do to a system follows from the first
hits and the orders. Trials are the last axis throughout, so that every step runs over whole columns of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3t.capacity.checks import check_orders
from s3t.errors import LayoutError
from s3t.records import Order

_TABLE_SLICES = 14
"""Up to here the outcome of every set of hit slices is tabulated (2^14 sets); longer orders are followed one by one."""
_NETWORK_SHARDS = 12

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FirstHits:
    """The first hits of all slots in many trials.

    ``rank``: how many other slots are hit before, shape (shards, slices, trials), each of 0..slots-1 once per trial.
    ``requests``: the number (1, 2, ...) of the request that is the first hit of the slot of each rank, ascending, shape
    (slots, trials); infinity where a slot is never hit.
    """

    rank: NDArray[np.unsignedinteger]
    requests: NDArray[np.floating]

    @classmethod
    def of(cls, hits: Floats) -> FirstHits:
        """Return them from the number of the request, or infinity, per slot; shape (trials, shards, slices)."""
        flat = hits.reshape(len(hits), -1)
        order = np.argsort(flat, axis=1, kind="stable")
        rank = np.argsort(order, axis=1).astype(np.uint32)
        requests = np.ascontiguousarray(np.take_along_axis(flat, order, axis=1).T)
        return cls(np.ascontiguousarray(rank.T).reshape(*hits.shape[1:], len(hits)), requests)

    def each(self) -> Floats:
        """Return the first hit of every slot, shape (shards, slices, trials)."""
        flat = self.rank.reshape(len(self.requests), -1).astype(np.int64)
        return np.take_along_axis(self.requests, flat, axis=0).astype(np.float64).reshape(self.rank.shape)

    def hit_by(self, requests: int) -> Bools:
        """Say which slots are hit by the first ``requests`` requests, shape (shards, slices, trials)."""
        return np.asarray(self.rank < how_many(self.requests <= requests))


@dataclass(frozen=True)
class OrderSet:
    """The orders that every shard trains. LayoutError if there are none or one is no permutation of the slices."""

    orders: tuple[Order, ...]

    def __post_init__(self) -> None:
        if not self.orders or not self.orders[0]:
            raise LayoutError("no orders given: give at least one, each a permutation of the slices")
        check_orders(self.orders, len(self.orders[0]))

    @classmethod
    def of(cls, orders: Sequence[Order]) -> OrderSet:
        """Return ``orders`` as an order set; equal orders are kept, for they change nothing."""
        return cls(tuple(tuple(int(piece) for piece in order) for order in orders))

    @property
    def slices(self) -> int:
        """The number of slices of a shard."""
        return len(self.orders[0])

    @cached_property
    def first_slices(self) -> list[int]:
        """The distinct first slices: a shard is dead once all of them are hit."""
        return sorted({order[0] for order in self.orders})

    def lengths(self, hit: Bools) -> NDArray[np.int16]:
        """Return the length of the chain that is served, shape (...); 0: dead. ``hit``: shape (slices, ...)."""
        return self._look_up(hit, 0)

    def served(self, hit: Bools) -> NDArray[np.int16]:
        """Return the index of the order whose prefix is served: the longest, of equal ones the lowest."""
        return self._look_up(hit, 1)

    def chains(self, hit: Bools) -> Integers:
        """Return the slices of the served chains, shape (slices, ...), -1 behind their ends."""
        chains = np.moveaxis(np.asarray(self.orders, dtype=np.int64)[self.served(hit)], -1, 0)
        place = np.arange(self.slices).reshape(-1, *[1] * (hit.ndim - 1))
        return np.where(place < self.lengths(hit), chains, -1)

    def behind(self, hit: Bools) -> Bools:
        """Say which slices lie behind the served chains. ``hit`` and result: shape (slices, ...)."""
        return np.moveaxis(self._prefixes[self.served(hit), self.lengths(hit)], -1, 0)

    def deaths(self, first: FirstHits) -> Floats:
        """Return when the first shard, half of them and the last are dead, shape (3, trials)."""
        ranks = deaths(first.rank[:, self.first_slices].max(axis=1))
        return np.take_along_axis(first.requests, ranks.astype(np.int64), axis=0).astype(np.float64)

    def _look_up(self, hit: Bools, which: int) -> NDArray[Any]:
        if self.slices > _TABLE_SLICES:
            return self._best(hit)[which]
        index = hit[0].astype(np.uint8 if self.slices <= 8 else np.uint16)
        for piece in range(1, self.slices):
            index |= hit[piece].astype(index.dtype) << piece
        return np.asarray(self._table[which][index])

    @cached_property
    def _table(self) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Length and order of the served chain for every set of hit slices; bit l of the index says whether l is hit."""
        sets = np.arange(1 << self.slices)
        return self._best((sets >> np.arange(self.slices)[:, None] & 1).astype(bool))

    def _best(self, hit: Bools) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Return length and order of the served chains, order by order."""
        length, served = np.zeros(hit.shape[1:], np.int16), np.zeros(hit.shape[1:], np.int16)
        for number, order in enumerate(self.orders):
            kept = np.zeros(hit.shape[1:], np.int16)
            alive = np.ones(hit.shape[1:], bool)
            for piece in order:
                alive &= ~hit[piece]
                kept += alive
            longer = kept > length  # ties stay with the lowest order
            length[longer], served[longer] = kept[longer], number
        return length, served

    @cached_property
    def _prefixes(self) -> Bools:
        """Which slices the prefixes of every order hold, shape (orders, length + 1, slices)."""
        place = np.argsort(np.asarray(self.orders), axis=1)
        return np.asarray(place[:, None, :] < np.arange(self.slices + 1)[:, None])


def how_many(mask: Bools) -> NDArray[np.unsignedinteger]:
    """Count along the first axis, in the smallest type that holds the count: several times as fast as in 64 bits."""
    return np.asarray(mask.view(np.uint8).sum(axis=0, dtype=smallest(len(mask))))


def smallest(largest: int) -> Any:
    """Return the smallest unsigned type that holds 0..largest."""
    return np.min_scalar_type(largest)


def half_of(shards: int) -> int:
    """Return how many dead shards are half of them: ceil(shards / 2)."""
    return (shards + 1) // 2


def deaths(moments: NDArray[Any]) -> NDArray[Any]:
    """Return when the first shard, half of the shards and the last are dead, shape (3, trials).

    ``moments``: when each shard is dead, shape (shards, trials), in whatever goes up with time.
    """
    half = half_of(len(moments))
    if len(moments) > _NETWORK_SHARDS:
        middle = np.partition(moments, half - 1, axis=0)[half - 1]
        return np.stack([moments.min(axis=0), middle, moments.max(axis=0)])
    rest = list(moments)
    least = []
    for _ in range(half):
        # One pass of bubble sort over whole columns: much faster than a selection in each of millions of short ones.
        for i in range(len(rest) - 1, 0, -1):
            rest[i - 1], rest[i] = np.minimum(rest[i - 1], rest[i]), np.maximum(rest[i - 1], rest[i])
        least.append(rest.pop(0))
    return np.stack([least[0], least[-1], moments.max(axis=0)])
