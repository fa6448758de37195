"""The one interface of all request streams: record by record for real systems, in blocks for simulation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3t.capacity.demand import Demand
from s3t.errors import DataError, LayoutError
from s3t.streams.population import Population

Request = tuple[int, ...]
"""The numbers of the records that one request deletes."""

STEPS = 256
"""Requests per block, where a stream is played step by step."""


@dataclass(frozen=True, eq=False)
class Block:
    """Requests of many trials at once: request number ``requests`` (from 1) falls in ``slots``.

    Both broadcast to (trials, events); one request may be several events. All events up to request ``until`` are out.
    """

    requests: NDArray[np.int64]
    slots: NDArray[np.int64]
    until: int


@dataclass(frozen=True)
class View:
    """What an attacker sees of a system, now. ``chains``: the slices that each shard serves, () for a dead one.

    ``scores``: the served score of every record for its own label, shape (records,); None where nothing is scored.
    """

    chains: Callable[[], Sequence[tuple[int, ...]]]
    scores: Callable[[], NDArray[np.floating]] | None = None


class Stream(ABC):
    """A law of deletion requests; a frozen dataclass. What it draws is a function of population and generator alone."""

    choosing = False
    """Whether it looks at what is served before each request; then :meth:`choose` stands for :meth:`blocks`."""
    main = ""
    """The field that a bare value in the stream's text form is for, if any."""

    @abstractmethod
    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        """Yield requests one by one, for as long as the stream lasts."""

    def demand(self, population: Population) -> Demand | None:
        """Return where independent requests fall, or None if requests depend on each other or on time."""
        return None

    def blocks(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Block]:
        """Yield the requests of ``trials`` independent plays, block by block."""
        raise LayoutError(f"{type(self).__name__} has no blocks: simulate it by its demand")

    def held(self, population: Population) -> int:
        """Return how many numbers a trial holds in :meth:`blocks`."""
        return STEPS

    def choose(self, chains: NDArray[np.int64], population: Population, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the slot that each trial requests next. ``chains``: served slices (trials, shards, slices), -1 behind."""
        raise LayoutError(f"{type(self).__name__} does not choose by what is served")


def distinct(requests: Iterator[Request], population: Population) -> Iterator[Request]:
    """Leave out records requested before, and requests of nothing else; end when every record was requested.

    Meant for streams that come back to every record; one that never does would be searched without end.
    """
    seen: set[int] = set()
    for request in requests:
        fresh = tuple(record for record in dict.fromkeys(request) if record not in seen)
        if fresh:
            seen.update(fresh)
            yield fresh
        if len(seen) == population.size:
            return


def named(requests: Iterator[Request], population: Population) -> Iterator[tuple[str, ...]]:
    """Turn record numbers into ids. DataError if the population has none."""
    if population.ids is None:
        raise DataError("a synthetic population has no record ids: make one of real ids to drive a real system")
    for request in requests:
        yield tuple(population.ids[record] for record in request)


def cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distribution function of ``weights``, exactly 1 from the last positive weight on."""
    ends = np.cumsum(weights)
    ends /= ends[-1]
    ends[np.flatnonzero(weights)[-1] :] = 1.0
    return np.asarray(ends)
