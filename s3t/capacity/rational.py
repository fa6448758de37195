"""The theory in fractions, for small systems: exact values to compare rounded ones with.

Weights are fractions or whole numbers: probabilities with replacement, records without, as in
:class:`~s3t.capacity.demand.Demand`. Work and memory double with every slot that matters; 16 of them are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Rational

from s3t.capacity.checks import check_requests, check_shards_dead, check_some_orders
from s3t.errors import LayoutError
from s3t.records import Order

SLOTS = 16

Weights = Sequence[Sequence[Rational | int]]


def requests_to_dead_exact(
    weights: Weights, orders: Sequence[Order], shards_dead: int | None = None, *, replacement: bool = True
) -> Fraction | float:
    """Return the expected number of requests until ``shards_dead`` shards are dead (None: all), or infinity.

    Sum over sets A of first slices of c(A) E[first request to A], c the Moebius coefficients of "fewer are dead"; that
    first request is expected after 1 / w(A) requests with replacement, (N + 1) / (w(A) + 1) without.
    Raises LayoutError for impossible arguments, and for more than 16 first slices.
    """
    rows, dead = _checked(weights, orders, shards_dead, replacement)
    rows = [row for row in rows if all(row)]
    if len(rows) < dead:
        return math.inf
    total = sum((Fraction(w) for row in weights for w in row), Fraction(0))

    def expected_first(weight: Fraction) -> Fraction:
        return 1 / weight if replacement else (total + 1) / (weight + 1)

    return _expectation(rows, lambda unhit: _dead(unhit, len(rows), len(rows[0])) < dead, expected_first)


def probability_dead_exact(
    weights: Weights,
    orders: Sequence[Order],
    requests: int,
    shards_dead: int | None = None,
    *,
    replacement: bool = True,
) -> Fraction:
    """Return the probability that at least ``shards_dead`` shards (None: all) are dead after exactly ``requests``.

    Raises LayoutError as :func:`requests_to_dead_exact`, and for more requests than records.
    """
    rows, dead = _checked(weights, orders, shards_dead, replacement)
    unhit = _unhit(weights, requests, replacement)
    return _expectation(rows, lambda left: _dead(left, len(rows), len(rows[0])) >= dead, unhit)


def best_length_distribution_exact(
    weights: Weights, orders: Sequence[Order], requests: int, shard: int = 0, *, replacement: bool = True
) -> list[Fraction]:
    """Return P(the longest kept chain of ``shard`` has j slices) for j = 0..L, after ``requests`` to the system.

    Raises LayoutError as :func:`probability_dead_exact`.
    """
    _checked(weights, orders, None, replacement, every=True)
    slices = len(weights[shard])
    unhit = _unhit(weights, requests, replacement)

    def best(left: int) -> int:
        return max(next((j for j, s in enumerate(order) if not left >> s & 1), slices) for order in orders)

    row = [Fraction(weight) for weight in weights[shard]]

    def at_least(j: int) -> Fraction:
        return _expectation([row], lambda left: best(left) >= j, unhit)

    return [at_least(j) - at_least(j + 1) for j in range(slices + 1)]


def _dead(unhit: int, shards: int, firsts: int) -> int:
    """Return how many shards have no unhit first slice; ``unhit``: a bit per first slice, shard by shard."""
    return sum(not unhit >> shard * firsts & (1 << firsts) - 1 for shard in range(shards))


def _expectation(
    rows: Sequence[Sequence[Fraction]], indicator: Callable[[int], bool], of_weight: Callable[[Fraction], Fraction]
) -> Fraction:
    """Return the sum over sets A of slots of the Moebius coefficient of ``indicator`` times ``of_weight(w(A))``."""
    slots = [weight for row in rows for weight in row]
    coefficients = [int(indicator(unhit)) for unhit in range(1 << len(slots))]
    weights = [Fraction(0)] * len(coefficients)
    for bit, weight in enumerate(slots):
        for one in range(len(coefficients)):
            if one >> bit & 1:
                coefficients[one] -= coefficients[one ^ 1 << bit]
                weights[one] += weight
    grouped: dict[Fraction, int] = {}
    for coefficient, weight in zip(coefficients, weights, strict=True):
        if coefficient:
            grouped[weight] = grouped.get(weight, 0) + coefficient
    return sum((count * of_weight(weight) for weight, count in grouped.items() if count), Fraction(0))


def _unhit(weights: Weights, requests: int, replacement: bool) -> Callable[[Fraction], Fraction]:
    """Return the probability, by weight, that ``requests`` miss a set of slots."""
    check_requests(requests)
    if replacement:
        return lambda weight: (1 - weight) ** requests
    total = int(sum(Fraction(w) for row in weights for w in row))
    if requests > total:
        raise LayoutError(f"requests={requests} exceeds the {total} records: each is requested once")
    return lambda weight: Fraction(math.comb(total - int(weight), requests), math.comb(total, requests))


def _checked(
    weights: Weights, orders: Sequence[Order], shards_dead: int | None, replacement: bool, *, every: bool = False
) -> tuple[list[list[Fraction]], int]:
    """Return the weights of the shards' first slices as fractions, and how many shards are to be dead."""
    widths = {len(row) for row in weights}
    if len(widths) != 1 or widths == {0}:
        raise LayoutError("weights do not fit: give one per slot, as many slices in every shard")
    slots = [Fraction(weight) for row in weights for weight in row]
    if (
        min(slots) < 0
        or (replacement and sum(slots) > 1)
        or (not replacement and any(s.denominator > 1 for s in slots))
    ):
        needed = "probabilities that sum to 1 at most" if replacement else "whole numbers of records"
        raise LayoutError(f"weights {[str(s) for s in slots[:8]]} are not possible: give {needed}")
    check_some_orders(orders, len(weights[0]))
    firsts = sorted({order[0] for order in orders})
    count = len(weights[0]) if every else len(weights) * len(firsts)
    if count > SLOTS:
        raise LayoutError(f"{count} slots are too many for fractions: give at most {SLOTS}")
    return [[Fraction(row[f]) for f in firsts] for row in weights], check_shards_dead(shards_dead, len(weights))
