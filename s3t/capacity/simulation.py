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
from numpy.typing import NDArray

from s3t.capacity.checks import check_requests
from s3t.capacity.demand import Demand
from s3t.capacity.estimates import Estimate, Simulation
from s3t.capacity.firsthits import draw_deaths, draw_first_hits
from s3t.capacity.outcomes import OrderSet
from s3t.capacity.playing import play
from s3t.errors import LayoutError
from s3t.records import Order

if TYPE_CHECKING:
    from s3t.streams import Population, Stream

_HELD = 1 << 17
"""How many numbers per array a chunk of trials holds: 1 MB, so that most stays in the processor's cache."""

Floats = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], tuple[Floats, Floats | None]]
"""(trials, rng) -> deaths of shape (3, trials), and first hits of shape (trials, shards, slices) where they are needed."""


def simulate(
    demand: Demand,
    orders: Sequence[Order],
    *,
    trials: int,
    seed: int,
    after: Sequence[int] = (),
    threads: int | None = None,
) -> Simulation:
    """Simulate independent requests until no shard is live, ``trials`` times over.

    ``orders``: those that every shard trains. A request falls in a slot as ``demand`` says and cuts every order of its
    shard before the slice's position; a shard is dead when no order keeps a slice. ``after``: numbers of requests at which
    the best chains are looked at; without any, only first slices are drawn, which is faster. ``threads``: by default as
    many as there are cores, at most 4; the result does not depend on it. Another question with the same ``seed`` draws
    other numbers.

    Raises LayoutError for orders that do not fit, trials below 1, a negative seed or negative ``after``.
    """
    chosen = _order_set(orders, demand.slices)

    def draw(count: int, rng: np.random.Generator) -> tuple[Floats, Floats | None]:
        if not after:
            return draw_deaths(demand, chosen, count, rng), None
        hits = draw_first_hits(demand, count, rng)
        return chosen.deaths(hits), hits

    held = demand.weights.size if after else demand.shards * len(chosen.first_slices)
    about = [demand.weights.tobytes(), demand.replacement]
    return _run(draw, chosen, trials, _entropy(seed, chosen, about), tuple(after), threads, held)


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
        return simulate(demand, orders, trials=trials, seed=seed, after=after, threads=threads)
    if horizon < max((1, *after)):
        raise LayoutError(f"horizon={horizon} is too short: give at least {max((1, *after))}")
    chosen = _order_set(orders, population.slices)

    def draw(count: int, rng: np.random.Generator) -> tuple[Floats, Floats | None]:
        hits = play(stream, population, chosen, count, rng, horizon=horizon, after=max(after, default=0))
        return chosen.deaths(hits), hits if after else None

    held = max(population.counts.size, stream.held(population))
    about = [population.counts.tobytes(), repr(stream)]
    return _run(draw, chosen, trials, _entropy(seed, chosen, about), tuple(after), threads, held)


@dataclass(frozen=True, eq=False)
class _Part:
    """What one chunk of trials adds: deaths, and sums and sums of squares, shape (3 quantities, len(after))."""

    deaths: Floats
    sums: Floats
    squares: Floats


def _run(
    draw: Draw,
    orders: OrderSet,
    trials: int,
    entropy: list[int],
    after: tuple[int, ...],
    threads: int | None,
    held: int,
) -> Simulation:
    if trials < 1:
        raise LayoutError(f"trials={trials} is not possible: give an integer of at least 1")
    for requests in after:
        check_requests(requests)
    if threads is not None and threads < 1:
        raise LayoutError(f"threads={threads} is not possible: give an integer of at least 1")
    size = max(1, min(trials, _HELD // max(held, 1)))
    counts = [min(size, trials - start) for start in range(0, trials, size)]
    seeds = np.random.SeedSequence(entropy).spawn(len(counts))

    def chunk(count: int, source: np.random.SeedSequence) -> _Part:
        found, hits = draw(count, np.random.Generator(np.random.SFC64(source)))
        values = np.zeros((3, len(after), count))
        if hits is not None:
            for column, requests in enumerate(after):
                length = orders.lengths(hits <= requests)
                values[0, column] = length.mean(axis=1)
                values[2, column] = np.count_nonzero(length, axis=1)
            values[1] = values[0] / orders.slices
        return _Part(found, values.sum(axis=2), (values**2).sum(axis=2))

    workers = min(threads or min(4, os.cpu_count() or 1), len(counts))
    if workers == 1:
        parts = [chunk(count, source) for count, source in zip(counts, seeds, strict=True)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(chunk, counts, seeds))
    sums, squares = sum(part.sums for part in parts), sum(part.squares for part in parts)
    columns = [
        tuple(Estimate.of_sums(float(sums[i, j]), float(squares[i, j]), trials) for j in range(len(after)))  # type: ignore[index]
        for i in range(3)
    ]
    return Simulation(np.concatenate([part.deaths for part in parts], axis=1), after, *columns)


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
