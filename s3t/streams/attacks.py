"""Requests chosen against the system: by who knows its slots, and by who only sees what it serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3t.errors import LayoutError
from s3t.streams.base import Request, Stream, View
from s3t.streams.population import Population

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class WorstCase(Stream):
    """Knows slots and orders: always hits the first slice of the chain served by the first live shard.

    No stream of single records kills sooner: every distinct first slice of every shard has to be hit, and each is, once.
    """

    choosing = True

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        yield from _chosen(self, population, rng, _needed(view))

    def choose(self, chains: Integers, population: Population, rng: np.random.Generator) -> Integers:
        shard = np.argmax(chains[..., 0] >= 0, axis=1)
        return np.asarray(shard * population.slices + chains[np.arange(len(chains)), shard, 0])


@dataclass(frozen=True)
class Adaptive(Stream):
    """Sees served outputs alone, and always deletes the record whose served score for its label is highest.

    Where nothing is scored, as in simulation, that is a uniformly random record behind the longest served chain (ties:
    lowest shard). Ends when no shard is live or every record was requested.
    """

    choosing = True

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        seen = _needed(view)
        if seen.scores is None:
            yield from _chosen(self, population, rng, seen)
            return
        left = np.ones(population.size, dtype=bool)
        while left.any() and any(seen.chains()):
            scores = np.asarray(seen.scores(), dtype=np.float64)
            if scores.shape != left.shape:
                raise LayoutError(f"scores of shape {scores.shape} do not fit {population.size} records: give one each")
            record = int(np.argmax(np.where(left & ~np.isnan(scores), scores, -np.inf)))
            record = record if left[record] else int(np.argmax(left))
            left[record] = False
            yield (record,)

    def choose(self, chains: Integers, population: Population, rng: np.random.Generator) -> Integers:
        shard = np.argmax((chains >= 0).sum(axis=2), axis=1)
        chain = chains[np.arange(len(chains)), shard]
        weights = np.where(chain >= 0, population.counts[shard[:, None], chain], 0)
        ends = np.cumsum(weights, axis=1)
        if (ends[:, -1] == 0).any():
            raise LayoutError("the longest served chain has no record behind it: give every slot records")
        place = (rng.random(len(chains)) * ends[:, -1]).astype(np.int64)
        piece = (ends <= place[:, None]).sum(axis=1)
        return np.asarray(shard * population.slices + chain[np.arange(len(chain)), piece])


def _chosen(stream: Stream, population: Population, rng: np.random.Generator, view: View) -> Iterator[Request]:
    while True:
        served = view.chains()
        if not any(served):
            return
        chains = np.full((1, population.shards, population.slices), -1, dtype=np.int64)
        for shard, chain in enumerate(served):
            chains[0, shard, : len(chain)] = chain
        slot = stream.choose(chains, population, rng)
        if not population.counts.reshape(-1)[slot[0]]:
            raise LayoutError(f"slot {divmod(int(slot[0]), population.slices)} has no record to request")
        yield (int(population.in_slots(slot, rng)[0]),)


def _needed(view: View | None) -> View:
    if view is None:
        raise LayoutError("this stream looks at what is served: give a view of the system")
    return view
