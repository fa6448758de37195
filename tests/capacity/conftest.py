"""Oracles of capacity: slow, obvious, in exact fractions. Tests compare every fast path with them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache

import pytest

Orders = list[tuple[int, ...]]
Weights = list[list[Fraction]]


def exact_capacity(
    shards: int, orders: Orders, probabilities: list[Fraction], shards_dead: int | None = None
) -> Fraction:
    """Slow oracle: solve the Markov chain over all sets of hit slots, exactly, from the definition of "dead"."""
    slices = len(orders[0])
    needed = shards_dead or shards

    def dead(hit: frozenset[int]) -> int:
        return sum(all(shard * slices + order[0] in hit for order in orders) for shard in range(shards))

    @cache
    def remaining(hit: frozenset[int]) -> Fraction:
        if dead(hit) >= needed:
            return Fraction(0)
        fresh = [slot for slot in range(shards * slices) if slot not in hit and probabilities[slot]]
        onward = sum((probabilities[slot] * remaining(hit | {slot}) for slot in fresh), Fraction(0))
        return (1 + onward) / sum((probabilities[slot] for slot in fresh), Fraction(0))

    return remaining(frozenset())


@pytest.fixture(name="exact_capacity", scope="session")
def _exact_capacity() -> Callable[..., Fraction]:
    """The expected number of requests until all shards (or so many) are dead: the Markov chain over all sets of hit slots."""
    return exact_capacity


class Played:
    """Every history of a system, played request by request; ``weights`` per slot, fractions, or records without replacement."""

    def __init__(self, weights: Weights, orders: Orders, replacement: bool) -> None:
        self.weights, self.orders, self.replacement = weights, orders, replacement
        self.shards, self.slices = len(weights), len(weights[0])
        self.slots = list(itertools.product(range(self.shards), range(self.slices)))

    def served(self, shard: int, hits: tuple[int, ...]) -> tuple[int, ...]:
        """The slices behind the chain that a shard serves: the longest unhit beginning, ties by the first order."""
        row = hits[shard * self.slices : (shard + 1) * self.slices]
        chains = [tuple(itertools.takewhile(lambda s: not row[s], order)) for order in self.orders]
        return max(chains, key=len)

    def dead(self, hits: tuple[int, ...]) -> int:
        return sum(not self.served(shard, hits) for shard in range(self.shards))

    def after(self) -> Iterator[dict[tuple[int, ...], Fraction]]:
        """The distribution of hits per slot (capped at one with replacement) after 0, 1, 2, ... requests."""
        now = {(0,) * len(self.slots): Fraction(1)}
        total = sum((w for row in self.weights for w in row), Fraction(0))
        for done in itertools.count():
            yield now
            later: dict[tuple[int, ...], Fraction] = defaultdict(Fraction)
            for hits, chance in now.items():
                if self.replacement and total < 1:
                    later[hits] += chance * (1 - total)
                for i, (shard, position) in enumerate(self.slots):
                    weight = self.weights[shard][position]
                    step = weight if self.replacement else Fraction(weight - hits[i], max(1, int(total) - done))
                    if step:
                        more = 1 if self.replacement else hits[i] + 1
                        later[(*hits[:i], more, *hits[i + 1 :])] += chance * step
            now = dict(later)

    def expect(self, requests: int, value: Callable[[tuple[int, ...]], Fraction | int]) -> Fraction:
        """The expectation of a function of the hits after so many requests."""
        distribution = next(itertools.islice(self.after(), requests, None))
        return sum((chance * value(hits) for hits, chance in distribution.items()), Fraction(0))


@pytest.fixture(name="played", scope="session")
def _played() -> type[Played]:
    """Every history of a small system, with exact probabilities."""
    return Played
