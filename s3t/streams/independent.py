"""Independent requests: uniform, and by users whose request weights are exponential, Pareto or Zipf.

Users with weights: SISA's distribution-aware sharding (arXiv 1912.03817, section VIII) assumes a known probability of
deletion for each user and studies exponential and Pareto laws.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3t.capacity.demand import Demand
from s3t.errors import LayoutError
from s3t.streams.base import Block, Request, Stream, View, cumulative
from s3t.streams.population import Population, check_holdable

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Uniform(Stream):
    """Every record equally likely. ``once``: among those not requested yet, until none is left; else for ever."""

    once: bool = False

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        if not self.once:
            while True:
                yield from ((record,) for record in rng.integers(population.size, size=256).tolist())
        # A shuffle that holds only what it has moved.
        moved: dict[int, int] = {}
        for left in range(population.size, 0, -1):
            pick = int(rng.integers(left))
            yield (moved.get(pick, pick),)
            moved[pick] = moved.pop(left - 1, left - 1)

    def demand(self, population: Population) -> Demand | None:
        return Demand.once(population.counts) if self.once else Demand.of(population.counts / population.size)


@dataclass(frozen=True)
class Weighted(Stream):
    """Base of streams by users: one is drawn with probability proportional to its weight, then one of its records uniformly.

    Each user's weight is drawn once, with ``seed``: it belongs to the stream, not to a trial. ``once``: records requested
    before are skipped, so that every request is fresh, until none is left.
    """

    seed: int = 0
    once: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise LayoutError(f"seed={self.seed} is not possible: give an integer of at least 0")

    piecewise = True
    """Whether the weights of users can be drawn piece by piece."""

    @abstractmethod
    def weights(self, rng: np.random.Generator, users: int) -> Floats:
        """Return the weights of the next ``users`` users from ``rng``."""

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        if self.once:
            order = np.argsort(_race(rng, self.record_weights(population)))
            yield from ((record,) for record in order.tolist())
            return
        ends = cumulative(self.user_weights(population))
        while True:
            users = np.searchsorted(ends, rng.random(256), side="right")
            yield from ((record,) for record in population.of_users(users, rng).tolist())

    def user_weights(self, population: Population) -> Floats:
        """Return the weight of every user."""
        return self.weights(np.random.default_rng(self.seed), check_holdable(population.users, "their weights"))

    def record_weights(self, population: Population) -> Floats:
        """Return the request probability of every record."""
        weights = self.user_weights(population)
        weights /= weights.sum()
        if population.user is None:
            return weights
        return np.asarray((weights / population.records_per_user())[population.user])

    def slot_weights(self, population: Population) -> Floats:
        """Return the request probability of every slot, shape (shards, slices); no record is held where none needs to be."""
        totals: Floats
        if population.user is not None or population.slot is not None or not self.piecewise:
            weights = self.record_weights(population)
            slots = population.slots_of(np.arange(population.size))
            totals = np.bincount(slots, weights, minlength=population.counts.size).astype(np.float64)
        else:
            rng = np.random.default_rng(self.seed)
            totals = np.zeros(population.counts.size)
            for slot, count in enumerate(population.counts.reshape(-1).tolist()):
                while count > 0:
                    step = min(count, 1 << 20)
                    totals[slot] += self.weights(rng, step).sum()
                    count -= step
        return np.asarray(totals / totals.sum(), dtype=np.float64).reshape(population.counts.shape)

    def demand(self, population: Population) -> Demand | None:
        return None if self.once else Demand.of(self.slot_weights(population))

    def blocks(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Block]:
        if not self.once:
            yield from super().blocks(population, rng, trials)
        weights, slots = self.record_weights(population), population.slots_of(np.arange(population.size))
        order = np.argsort(_race(rng, weights, trials), axis=1)
        yield Block(np.arange(1, population.size + 1), slots[order], population.size)

    def held(self, population: Population) -> int:
        return check_holdable(population.size, "requests without repetition")


@dataclass(frozen=True)
class Exponential(Weighted):
    """Users whose weights are exponential (their scale does not matter)."""

    def weights(self, rng: np.random.Generator, users: int) -> Floats:
        return rng.standard_exponential(users)


@dataclass(frozen=True)
class Pareto(Weighted):
    """Users whose weights are Pareto with exponent ``shape`` and least value 1: P(weight > x) = x^-shape."""

    shape: float = 1.16
    main = "shape"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shape > 0.0:
            raise LayoutError(f"shape={self.shape} is no Pareto exponent: give a number above 0")

    def weights(self, rng: np.random.Generator, users: int) -> Floats:
        return rng.pareto(self.shape, users) + 1.0


@dataclass(frozen=True)
class Zipf(Weighted):
    """The k-th user of a random ranking has weight k^-exponent, k = 1, 2, ..."""

    exponent: float = 1.0
    piecewise = False
    main = "exponent"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.exponent < np.inf:
            raise LayoutError(f"exponent={self.exponent} is no Zipf exponent: give a number of at least 0")

    def weights(self, rng: np.random.Generator, users: int) -> Floats:
        return np.asarray((rng.permutation(users) + 1.0) ** -self.exponent)


def _race(rng: np.random.Generator, weights: Floats, trials: int | None = None) -> Floats:
    """Return arrival times Exp(1) / weight: in their order records come as drawn one by one without repetition."""
    shape = weights.shape if trials is None else (trials, len(weights))
    with np.errstate(divide="ignore"):
        return np.asarray(rng.standard_exponential(shape) / weights)
