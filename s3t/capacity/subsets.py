"""From events about sets of unhit slices to probabilities: what a shard serves is a function of the set of its unhit slices.

Any function f of the unhit set U is a sum of its Moebius coefficients over the subsets, f(U) = sum of c(A) over A within U, so

    E[f] = sum over A of c(A) * P(all slices of A are unhit),

and that probability depends on the total weight of A alone. The coefficients are integers, and depend on the orders alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from s3t.errors import LayoutError
from s3t.records import Order

Integers = NDArray[np.int64]

SLICES = 16
"""Up to so many slices all sets of slices are enumerated."""
UNIONS = 1 << 18
"""Beyond, so many distinct unions of prefixes are held."""


@dataclass(frozen=True, eq=False)
class Expansion:
    """``members``: the sets with a coefficient, shape (sets, slices), 0 or 1; ``coefficients``: shape (sets, functions)."""

    members: Integers
    coefficients: Integers


def best_at_least(orders: Sequence[Order]) -> Expansion:
    """Expand "the longest kept chain has at least j slices", j = 1..L: some j slices that begin an order are all unhit.

    Only the sets of the prefixes matter. Raises LayoutError beyond 16 slices if their unions are too many.
    """
    return _best_at_least(tuple(map(tuple, orders)))


def in_service(orders: Sequence[Order]) -> Expansion:
    """Expand "slice l lies in the served chain", l = 0..L-1: in the longest kept one, among equals that of the first order.

    Raises LayoutError beyond 16 slices.
    """
    slices = len(orders[0])
    if slices > SLICES:
        raise LayoutError(f"slices={slices} are too many to say which is in service: give at most {SLICES}")
    return _in_service(tuple(map(tuple, orders)))


@lru_cache(maxsize=64)
def _best_at_least(orders: tuple[Order, ...]) -> Expansion:
    slices = len(orders[0])
    prefixes = [{_mask(order[:j]) for order in orders} for j in range(1, slices + 1)]
    if slices <= SLICES:
        return _expansion(np.stack([_above(sets, slices) for sets in prefixes], axis=1))
    coefficients: dict[int, Integers] = {}
    for j, sets in enumerate(prefixes):
        for union, coefficient in _inclusion_exclusion(sets).items():
            coefficients.setdefault(union, np.zeros(slices, dtype=np.int64))[j] = coefficient
    members = np.array([[union >> i & 1 for i in range(slices)] for union in coefficients], dtype=np.int64)
    return Expansion(members, np.array(list(coefficients.values())))


@lru_cache(maxsize=16)
def _in_service(orders: tuple[Order, ...]) -> Expansion:
    slices = len(orders[0])
    unhit = np.arange(1 << slices)
    longest = np.zeros(1 << slices, dtype=np.int64)
    served = np.zeros(1 << slices, dtype=np.int64)
    for order in orders:
        prefix = 0
        for j, position in enumerate(order, 1):
            prefix |= 1 << position
            better = (unhit & prefix == prefix) & (longest < j)
            longest[better], served[better] = j, prefix
    return _expansion(served[:, None] >> np.arange(slices) & 1)


def _mask(slices: Iterable[int]) -> int:
    return sum(1 << position for position in slices)


def _above(sets: set[int], slices: int) -> Integers:
    """Return 1 for every set (as a bit mask) that contains one of ``sets``, else 0."""
    indicator = np.zeros(1 << slices, dtype=np.int64)
    indicator[list(sets)] = 1
    for bit in range(slices):
        halves = indicator.reshape(-1, 2, 1 << bit)
        halves[:, 1] |= halves[:, 0]
    return indicator


def _expansion(functions: Integers) -> Expansion:
    """Return the Moebius transform of ``functions``, shape (2^slices, functions), without the sets that vanish."""
    transform = np.array(functions, dtype=np.int64)
    slices = len(transform).bit_length() - 1
    for bit in range(slices):
        halves = transform.reshape(-1, 2, 1 << bit, transform.shape[1])
        halves[:, 1] -= halves[:, 0]
    kept = np.flatnonzero(transform.any(axis=1))
    return Expansion(kept[:, None] >> np.arange(slices) & 1, transform[kept])


def _inclusion_exclusion(sets: set[int]) -> dict[int, int]:
    """Return the coefficient of every union of some of ``sets``: P(some set unhit) = sum of coefficient * P(union unhit)."""
    unions: dict[int, int] = {0: -1}
    for one in sorted(sets):
        grown = dict(unions)
        for union, coefficient in unions.items():
            grown[union | one] = grown.get(union | one, 0) - coefficient
        unions = {union: coefficient for union, coefficient in grown.items() if coefficient}
        if len(unions) > UNIONS:
            raise LayoutError(
                f"the prefixes of these orders have more than {UNIONS} unions: give fewer orders, or at most {SLICES} slices"
            )
    del unions[0]
    return unions
