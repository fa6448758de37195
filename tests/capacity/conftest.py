"""Oracles of capacity: slow, obvious, in exact fractions. Tests compare every fast path with them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache

import pytest


def exact_capacity(shards: int, orders: list[tuple[int, ...]], probabilities: list[Fraction]) -> Fraction:
    """Slow oracle: solve the Markov chain over all sets of hit slots, exactly, from the definition of "live"."""
    slices = len(orders[0])

    def is_live(hit: frozenset[int]) -> bool:
        return any(shard * slices + order[0] not in hit for shard in range(shards) for order in orders)

    @cache
    def remaining(hit: frozenset[int]) -> Fraction:
        if not is_live(hit):
            return Fraction(0)
        fresh = [slot for slot in range(shards * slices) if slot not in hit and probabilities[slot]]
        onward = sum((probabilities[slot] * remaining(hit | {slot}) for slot in fresh), Fraction(0))
        return (1 + onward) / sum((probabilities[slot] for slot in fresh), Fraction(0))

    return remaining(frozenset())


@pytest.fixture(name="exact_capacity", scope="session")
def _exact_capacity() -> Callable[[int, list[tuple[int, ...]], list[Fraction]], Fraction]:
    """The expected number of requests until no shard is live, from the Markov chain over all sets of hit slots."""
    return exact_capacity
