"""What a set of orders is worth: the exact expected length, or score, of its longest chain that no request has cut.

Sets of slices are bit masks: bit l stands for slice l. A chain of j slices is kept while all of them are unhit, so with U
the set of unhit slices the best chain has the length of the longest prefix inside U. Expectations are taken over U.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.errors import LayoutError, did_you_mean
from s3t.orders.checks import Floats, check_horizon, prior_of
from s3t.records import Order

DENSE = 16
"""Up to this many slices all 2^slices sets are tabled; beyond, unions of prefixes are enumerated."""
UNIONS = 1 << 18
"""Most unions of prefixes that are enumerated."""
SCORES = ("paper", "expected_length")


def worths(score: str, slices: int) -> Floats:
    """Return what a chain of 0..slices slices is worth, shape (slices + 1,): its length, or 1 + 2 + ... + length ("paper").

    The expected worth of one order is then sum_j (1 - c_j)^T, or the paper's sum_j j (1 - c_j)^T, with c_j the request
    probability of its first j slices. LayoutError for an unknown score.
    """
    if score not in SCORES:
        raise LayoutError(f"score {score!r} is unknown{did_you_mean(score, SCORES)}; choose from {SCORES}")
    lengths = np.arange(slices + 1.0)
    return lengths if score == "expected_length" else lengths * (lengths + 1) / 2


@dataclass(frozen=True, eq=False)
class Unhit:
    """The law of the set of unhit slices: ``chances[U] * exp(log_scale)`` is the probability that exactly U is unhit.

    The scale is the chance that the rarest slice is unhit, so that orders can be told apart after any number of
    requests; the empty set, which keeps nothing, has chance 0 here. ``chances``: shape (2^slices,).
    """

    slices: int
    chances: Floats
    log_scale: float

    @classmethod
    def after(cls, p: Floats, requests: int) -> Unhit:
        """Return the law after ``requests`` independent requests: P(S unhit) = (1 - p(S))^T, inverted over supersets."""
        weight = np.zeros(1)
        for value in p:
            weight = np.concatenate([weight, weight + value])
        logs = powers(weight, requests)
        scale = float(logs[1:].max())
        scale = scale if math.isfinite(scale) else 0.0
        logs[0] = -np.inf
        chances = np.exp(logs - scale)
        for bit in range(p.size):
            halves = chances.reshape(-1, 2, 1 << bit)
            halves[:, 0] -= halves[:, 1]
        chances[0] = 0.0
        return cls(p.size, np.maximum(chances, 0.0), scale)

    def mean(self, table: NDArray[np.floating | np.integer]) -> Floats:
        """Return the scaled expectation of tables over all sets, the last axis; the empty set must have 0."""
        return np.asarray(table @ self.chances)


def powers(weight: Floats, requests: int) -> Floats:
    """Return log((1 - weight)^requests), -inf where a set of weight 1 is certain to be hit."""
    if requests == 0:
        return np.zeros_like(weight)
    with np.errstate(divide="ignore"):
        return np.asarray(requests * np.log1p(-np.minimum(weight, 1.0)))


def prefix_masks(orders: Sequence[Order]) -> NDArray[np.int64]:
    """Return the sets of the first 1..slices slices of each order as bit masks, shape (orders, slices)."""
    return np.bitwise_or.accumulate(np.int64(1) << np.asarray(orders, dtype=np.int64), axis=1)


def kept_lengths(orders: Sequence[Order]) -> NDArray[np.uint8]:
    """Return how many leading slices each order keeps if exactly the set U is unhit, shape (orders, 2^slices)."""
    masks = prefix_masks(orders)
    sets = np.arange(1 << masks.shape[1])
    kept = np.zeros((len(masks), sets.size), dtype=np.uint8)
    for prefix in masks.T:
        kept += (sets & prefix[:, None]) == prefix[:, None]
    return kept


def expected_best(
    orders: Sequence[Order], probabilities: ArrayLike, horizon: int, score: str = "expected_length"
) -> float:
    """Return the expected length (or score) of the longest chain that one shard keeps after ``horizon`` requests.

    ``probabilities``: that a request falls in each slice, shape (slices,). Exact up to rounding. Work: 2^slices per order
    up to 16 slices; beyond, the unions of the prefixes of each length.

    Raises LayoutError for impossible arguments, and beyond 16 slices for prefixes with more than 262,144 unions.
    """
    p = prior_of(probabilities)
    check_horizon(horizon)
    worth = worths(score, p.size)
    if not len(orders):
        raise LayoutError("no orders given: give at least one")
    for order in orders:
        if sorted(order) != list(range(p.size)):
            raise LayoutError(f"order {tuple(order)} is not a permutation of the slices 0..{p.size - 1}")
    if p.size > DENSE:
        return _by_unions(orders, p, horizon, worth)
    law = Unhit.after(p, horizon)
    return float(law.mean(worth[kept_lengths(orders).max(axis=0)])) * math.exp(law.log_scale)


def _by_unions(orders: Sequence[Order], p: Floats, horizon: int, worth: Floats) -> float:
    """Inclusion and exclusion over unions of prefixes, equal unions merged: sum_j of what length j adds * P(best >= j)."""
    terms: list[float] = []
    for j in range(1, p.size + 1):
        for union, sign in unions({sum(1 << item for item in order[:j]) for order in orders}).items():
            inside = math.fsum(p[item] for item in range(p.size) if union >> item & 1)
            terms.append((worth[j] - worth[j - 1]) * sign * max(0.0, 1.0 - inside) ** horizon)
    return math.fsum(terms)


def unions(sets: Iterable[int]) -> dict[int, int]:
    """Return coefficients with P(some set is unhit) = sum of coefficient * P(union is unhit). LayoutError if too many."""
    found: dict[int, int] = {}
    for one in sorted(sets):
        added = {one: 1}
        for union, sign in found.items():
            added[union | one] = added.get(union | one, 0) - sign
        for union, sign in added.items():
            found[union] = found.get(union, 0) + sign
        found = {union: sign for union, sign in found.items() if sign}
        if len(found) > UNIONS:
            raise LayoutError(
                f"the prefixes have more than {UNIONS} unions: give fewer orders, or at most {DENSE} slices"
            )
    return found
