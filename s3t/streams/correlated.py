"""Requests that depend on each other or on time: bursts, all records of a user at once, drift."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from s3t.errors import LayoutError
from s3t.streams.base import STEPS, Block, Request, Stream, View, cumulative
from s3t.streams.independent import Zipf
from s3t.streams.population import Population, check_holdable

Integers = NDArray[np.int64]

_BURSTS = 32
"""Bursts per block."""


@dataclass(frozen=True)
class Bursty(Stream):
    """One group of records after another is asked for: a burst has a geometric number of requests, ``length`` on average.

    The group of a burst is the slot of a uniformly drawn record or, where users own several records, the records of its
    user; each request of the burst is for a uniformly drawn record of the group, whatever was requested before.
    """

    length: float = 20.0
    main = "length"

    def __post_init__(self) -> None:
        if not 1.0 <= self.length < np.inf:
            raise LayoutError(f"length={self.length} is no mean length of a burst: give a number of at least 1")

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        for groups in self._groups(population, rng, 1):
            draw = population.in_slots if population.user is None else population.of_users
            yield from ((record,) for record in draw(groups[0], rng).tolist())

    def blocks(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Block]:
        if population.user is None:
            yield from self._bursts(population, rng, trials)
            return
        for number, groups in enumerate(self._groups(population, rng, trials)):
            slots = population.slots_of(population.of_users(groups, rng))
            yield Block(np.arange(1, STEPS + 1) + number * STEPS, slots, (number + 1) * STEPS)

    def _bursts(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Block]:
        """Yield the first request of every burst: the others fall in the same slot and change nothing."""
        before = np.zeros((trials, 1), dtype=np.int64)
        while True:
            ends = before + np.cumsum(rng.geometric(1.0 / self.length, size=(trials, _BURSTS)), axis=1)
            starts = np.concatenate([before, ends[:, :-1]], axis=1) + 1
            slots = population.slots_of(rng.integers(population.size, size=(trials, _BURSTS)))
            before = ends[:, -1:]
            yield Block(starts, slots, int(before.min()))

    def _groups(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Integers]:
        """Yield the group of each request, shape (trials, STEPS) at a time."""
        groups = np.zeros((trials, STEPS + 1), dtype=np.int64)  # column 0: the group of the request before
        starts = np.zeros((trials, STEPS + 1), dtype=bool)
        begin = True
        while True:
            records = rng.integers(population.size, size=(trials, STEPS))
            groups[:, 1:] = population.slots_of(records) if population.user is None else population.user[records]
            starts[:, 1:] = rng.random((trials, STEPS)) * self.length < 1.0
            starts[:, 1] |= begin
            latest = np.maximum.accumulate(np.where(starts, np.arange(STEPS + 1), 0), axis=1)
            groups = np.take_along_axis(groups, latest, axis=1)
            yield groups[:, 1:]
            groups[:, 0] = groups[:, -1]
            begin = False


@dataclass(frozen=True)
class ByUser(Stream):
    """Each request deletes all records of one user, in all slots where they lie; users come in random order, each once."""

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        check_users(population)
        yield from (population.all_of_user(user) for user in rng.permutation(population.users).tolist())

    def blocks(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Block]:
        user = check_users(population)
        rank = np.argsort(rng.random((trials, population.users)), axis=1) + 1
        yield Block(rank[:, user], population.slots_of(np.arange(population.size)), population.users)

    def held(self, population: Population) -> int:
        return check_holdable(population.size, "users")


@dataclass(frozen=True)
class Drift(Stream):
    """Request t comes from ``end`` with probability min(1, (t - 1) / over), else from ``start``.

    Both are streams of independent requests. By default two Zipf laws with other rankings of the users.
    """

    over: float = 1000.0
    start: Stream = field(default_factory=Zipf)
    end: Stream = field(default_factory=lambda: Zipf(seed=1))
    main = "over"

    def __post_init__(self) -> None:
        if not 0.0 < self.over < np.inf:
            raise LayoutError(f"over={self.over} is no number of requests: give a number above 0")

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        self._check(population)
        start, end = self.start.requests(population, rng), self.end.requests(population, rng)
        number = 0
        while True:
            yield next(end if rng.random() * self.over < number else start)
            number += 1

    def blocks(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Block]:
        laws = [cumulative(weights) for weights in self._check(population)]
        first = 1
        while True:
            numbers = np.arange(first, first + STEPS)
            moved = rng.random((trials, STEPS)) * self.over < numbers - 1
            draws = rng.random((trials, STEPS))
            before, after = (np.searchsorted(law, draws, side="right") for law in laws)
            yield Block(numbers, np.where(moved, after, before), first + STEPS - 1)
            first += STEPS

    def _check(self, population: Population) -> list[NDArray[np.float64]]:
        """Return the slots' probabilities under both laws."""
        demands = [stream.demand(population) for stream in (self.start, self.end)]
        weights = [demand.weights.reshape(-1) for demand in demands if demand is not None and demand.replacement]
        if len(weights) < 2:
            raise LayoutError("a drift goes between two streams of independent requests that may repeat: give such two")
        return weights


def check_users(population: Population) -> Integers:
    """Return the user of every record. LayoutError where the population has none."""
    if population.user is None:
        raise LayoutError("requests by user need users: make the population with users or records_per_user")
    return population.user
