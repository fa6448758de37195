"""Arguments of the capacity functions, checked: one clear LayoutError for what cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.errors import LayoutError
from s3t.orders.checks import in_range
from s3t.records import Order


def probabilities_of(values: ArrayLike) -> NDArray[np.float64]:
    """Return ``values`` as floats. LayoutError if there are none, one is outside 0..1, or they sum to more than 1."""
    p = np.asarray(values, dtype=np.float64)
    if p.size == 0:
        raise LayoutError("no probabilities given: give at least one")
    return in_range(p)


def counts_of(values: ArrayLike) -> NDArray[np.float64]:
    """Return counts of records as floats. LayoutError if there are none, or one is no whole number of at least 0."""
    counts = np.asarray(values)
    if counts.size == 0:
        raise LayoutError("no records given: give a count per slot")
    if counts.dtype.kind not in "iuf" or not ((counts >= 0) & (counts == np.floor(counts)) & (counts < 2**53)).all():
        raise LayoutError(f"records per slot must be whole numbers of at least 0, not {counts.ravel().tolist()[:8]}")
    return counts.astype(np.float64)


def check_orders(orders: Sequence[Order], slices: int) -> None:
    """Raise LayoutError unless every order is a permutation of the slices 0..slices-1."""
    for order in orders:
        if sorted(order) != list(range(slices)):
            raise LayoutError(f"order {tuple(order)} is not a permutation of the slices 0..{slices - 1}")


def check_some_orders(orders: Sequence[Order], slices: int) -> None:
    """Raise LayoutError unless there is an order, and all are permutations of the slices 0..slices-1."""
    if len(orders) == 0:
        raise LayoutError("no orders given: a shard trains at least one")
    check_orders(orders, slices)


def check_requests(requests: int) -> None:
    """Raise LayoutError for a number of requests that is negative or not whole."""
    if isinstance(requests, bool) or not isinstance(requests, int | np.integer) or requests < 0:
        raise LayoutError(f"requests={requests} is not possible: give an integer of at least 0")


def check_shards_dead(shards_dead: int | None, shards: int) -> int:
    """Return how many of ``shards`` are to be dead; None means all. LayoutError unless it is 1..shards."""
    if shards_dead is None:
        return shards
    if isinstance(shards_dead, bool) or not isinstance(shards_dead, int | np.integer) or not 1 <= shards_dead <= shards:
        raise LayoutError(f"shards_dead={shards_dead} is not possible: give 1..{shards}")
    return int(shards_dead)
