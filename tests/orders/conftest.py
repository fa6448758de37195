"""Slow, obvious oracles of what a set of orders is worth, and strategies for what the rules take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest

Order = tuple[int, ...]


def by_enumeration(orders: Sequence[Order], probabilities: Sequence[Fraction], requests: int) -> Fraction:
    """Play every sequence of requests; None is a request that falls in no slice of this shard."""
    falls = [*enumerate(probabilities), (None, 1 - sum(probabilities, Fraction(0)))]
    total = Fraction(0)
    for sequence in itertools.product(falls, repeat=requests):
        chance = Fraction(1)
        length = dict.fromkeys(orders, len(probabilities))
        for hit, probability in sequence:
            chance *= probability
            for order in orders:
                if hit is not None:
                    length[order] = min(length[order], order.index(hit))
        total += chance * max(length.values())
    return total


@pytest.fixture
def enumerated() -> Callable[[Sequence[Order], Sequence[Fraction], int], Fraction]:
    """Exact expected length of the best chain, by enumeration of all sequences of requests."""
    return by_enumeration
