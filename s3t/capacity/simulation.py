"""The request process, simulated for many trials at once; no formula for any answer is used.

Under a demand the requests between first hits are drawn as waiting times (:mod:`~s3t.capacity.firsthits`); any other
stream of requests is played in blocks. Outcomes follow from the first hits (:mod:`~s3t.capacity.outcomes`). Trials run in
chunks, each with its own seed, so that memory is bounded and results do not depend on the number of threads.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.capacity.checks import check_requests, counts_of
from s3t.capacity.demand import Demand
from s3t.capacity.estimates import Estimate, Simulation
from s3t.capacity.firsthits import draw_deaths, draw_first_hits
from s3t.capacity.outcomes import FirstHits, OrderSet, how_many
from s3t.capacity.playing import play
from s3t.errors import LayoutError
from s3t.records import Order

if TYPE_CHECKING:
    from s3t.streams import Population, Stream

_HELD = 1 << 18
"""How many numbers per array a chunk of trials holds: at most 2 MB, so that most stays in the processor's cache."""

_MOST = 1 << 17
"""Chunks hold at least 16 trials, unless a trial is larger than this: some 100 MB in all for 100,000 slots."""

Floats = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], tuple[Floats, FirstHits | None]]
"""(trials, rng) -> deaths of shape (3, trials), and all first hits where they are needed."""


def simulate(
    demand: Demand,
    orders: Sequence[Order],
    *,
    trials: int,
    seed: int,
    after: Sequence[int] = (),
    records: ArrayLike | None = None,
    threads: int | None = None,
) -> Simulation:
    """Simulate independent requests until no shard is live, ``trials`` times over.

    ``orders``: those that every shard trains. A request falls in a slot as ``demand`` says and cuts every order of its
    shard before the slice's position; a shard is dead when no order keeps a slice. ``after``: numbers of requests at which
    the best chains are looked at; without any, only first slices are drawn, which is faster. ``records``: how many lie in
    each slot, shape (shards, slices), for the share of the records in service; without replacement those of the demand,
    else by default equally many. ``threads``: by default as many as there are cores, at most 4; the result does not depend
    on it. Another question with the same ``seed`` draws other numbers.

    Raises LayoutError for orders or records that do not fit, trials below 1, a negative seed or negative ``after``.
    """
    chosen = _order_set(orders, demand.slices)

    def draw(count: int, rng: np.random.Generator) -> tuple[Floats, FirstHits | None]:
        if not after:
            return draw_deaths(demand, chosen, count, rng), None
        hits = draw_first_hits(demand, count, rng)
        return chosen.deaths(hits), hits

    held = demand.weights.size if after else demand.shards * len(chosen.first_slices)
    entropy = _entropy(seed, chosen, [demand.weights.tobytes(), demand.replacement])
    look = _Look(chosen, tuple(after), _shares(demand, records))
    return _run(draw, look, trials, entropy, threads, held)


def simulate_stream(
    stream: Stream,
    population: Population,
    orders: Sequence[Order],
    *,
    trials: int,
    seed: int,
    after: Sequence[int] = (),
    horizon: int = 1_000_000,
    threads: int | None = None,
) -> Simulation:
    """Simulate any stream of requests to ``population``; else as :func:`simulate`.

    A stream of independent requests has a demand and is simulated by it; all others are played block by block until all
    shards are dead, the stream ends, or ``horizon`` requests have come; what has not died by then never does.

    Raises LayoutError as :func:`simulate`, for a horizon below 1, and where the stream does not fit the population.
    """
    demand = stream.demand(population)
    if demand is not None:
        counts = population.counts
        return simulate(demand, orders, trials=trials, seed=seed, after=after, records=counts, threads=threads)
    if horizon < max((1, *after)):
        raise LayoutError(f"horizon={horizon} is too short: give at least {max((1, *after))}")
    chosen = _order_set(orders, population.slices)

    def draw(count: int, rng: np.random.Generator) -> tuple[Floats, FirstHits | None]:
        hits = play(stream, population, chosen, count, rng, horizon=horizon, after=max(after, default=0))
        return chosen.deaths(hits), hits if after else None

    held = max(population.counts.size, stream.held(population))
    entropy = _entropy(seed, chosen, [population.counts.tobytes(), repr(stream)])
    look = _Look(chosen, tuple(after), population.counts / population.size)
    return _run(draw, look, trials, entropy, threads, held)


@dataclass(frozen=True, eq=False)
class _Look:
    """What is looked at in every trial, and after how many requests. ``shares``: of the records, per slot."""

    orders: OrderSet
    after: tuple[int, ...]
    shares: Floats

    def __call__(self, first: FirstHits) -> Floats:
        """Return best length, slices in service, records in service, live shards, shape (4, len(after), trials)."""
        equal = np.ptp(self.shares) <= 1e-12 * self.shares.max()
        shards = len(self.shares)
        values = np.zeros((4, len(self.after), first.rank.shape[-1]))
        for column, requests in enumerate(self.after):
            hit = np.moveaxis(first.hit_by(requests), 1, 0)
            length = self.orders.lengths(hit)
            values[0, column] = length.sum(axis=0, dtype=np.int32) / shards
            values[3, column] = how_many(length > 0)
            if not equal:
                values[2, column] = np.einsum("lst,sl->t", self.orders.behind(hit), self.shares)
        values[1] = values[0] / self.orders.slices
        if equal:
            values[2] = values[1]
        return values


@dataclass(frozen=True, eq=False)
class _Part:
    """What one chunk of trials adds: deaths, and sums and sums of squares, shape (4 quantities, len(after))."""

    deaths: Floats
    sums: Floats
    squares: Floats


def _run(draw: Draw, look: _Look, trials: int, entropy: list[int], threads: int | None, held: int) -> Simulation:
    if trials < 1:
        raise LayoutError(f"trials={trials} is not possible: give an integer of at least 1")
    for requests in look.after:
        check_requests(requests)
    if threads is not None and threads < 1:
        raise LayoutError(f"threads={threads} is not possible: give an integer of at least 1")
    size = min(trials, max(1 if held > _MOST else 16, _HELD // max(held, 1)))
    counts = [min(size, trials - start) for start in range(0, trials, size)]
    seeds = np.random.SeedSequence(entropy).spawn(len(counts))

    def chunk(count: int, source: np.random.SeedSequence) -> _Part:
        found, hits = draw(count, np.random.Generator(np.random.SFC64(source)))
        values = np.zeros((4, 0, count)) if hits is None else look(hits)
        return _Part(found, values.sum(axis=2), (values**2).sum(axis=2))

    workers = min(threads or min(4, os.cpu_count() or 1), len(counts))
    if workers == 1:
        parts = [chunk(count, source) for count, source in zip(counts, seeds, strict=True)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(chunk, counts, seeds))
    sums = np.sum([part.sums for part in parts], axis=0).tolist()
    squares = np.sum([part.squares for part in parts], axis=0).tolist()
    found = [
        tuple(Estimate.of_sums(one, two, trials) for one, two in zip(*rows, strict=True))
        for rows in zip(sums, squares, strict=True)
    ]
    return Simulation(np.concatenate([part.deaths for part in parts], axis=1), look.after, *found)


def _shares(demand: Demand, records: ArrayLike | None) -> Floats:
    """Return the share of the records that lies in each slot."""
    counts = demand.weights if records is None and not demand.replacement else np.ones(demand.weights.shape)
    if records is not None:
        counts = counts_of(records)
    if counts.shape != demand.weights.shape or not counts.sum() > 0:
        raise LayoutError(
            f"records of shape {counts.shape} do not fit: give one count per slot, {demand.weights.shape}"
        )
    if not demand.replacement and (counts != demand.weights).any():
        raise LayoutError("records are given twice, and differ: without replacement they are the demand's own")
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def _order_set(orders: Sequence[Order], slices: int) -> OrderSet:
    chosen = OrderSet.of(orders)
    if chosen.slices != slices:
        raise LayoutError(f"orders of {chosen.slices} slices do not fit shards of {slices}")
    return chosen


def _entropy(seed: int, orders: OrderSet, about: Sequence[object]) -> list[int]:
    """Return the entropy of a question: other layouts, orders or requests draw other numbers with the same seed.

    Otherwise the errors of neighbouring cells would be one and the same.
    """
    if seed < 0:
        raise LayoutError(f"seed={seed} is not possible: give an integer of at least 0")
    return [seed, zlib.crc32(repr([orders.orders, *about]).encode())]
