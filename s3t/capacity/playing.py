"""Streams of requests, played in blocks for many trials at once: any stream gives first hits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s3t.capacity.outcomes import FirstHits, OrderSet

if TYPE_CHECKING:
    from s3t.streams import Population, Stream


def play(
    stream: Stream,
    population: Population,
    orders: OrderSet,
    trials: int,
    rng: np.random.Generator,
    *,
    horizon: int,
    after: int = 0,
) -> FirstHits:
    """Return the first hits in ``trials`` plays of ``stream``.

    Plays until every shard is dead in every trial and ``after`` requests have come, the stream ends, or ``horizon``
    requests have come.
    """
    hits = np.full((trials, population.counts.size), np.inf)
    shaped = hits.reshape(trials, population.shards, population.slices)
    rows = np.arange(trials)[:, None] * population.counts.size
    if stream.choosing:
        _play_chosen(stream, population, orders, shaped, rng)
        return FirstHits.of(shaped)
    for block in stream.blocks(population, rng, trials):
        times, slots = np.broadcast_arrays(block.requests, block.slots)
        np.minimum.at(hits.reshape(-1), (rows + slots).reshape(-1), times.reshape(-1).astype(np.float64))
        if block.until >= horizon:
            break
        if block.until >= after and np.isfinite(shaped[..., orders.first_slices]).all():
            break
    shaped[shaped > horizon] = np.inf
    return FirstHits.of(shaped)


def _play_chosen(
    stream: Stream, population: Population, orders: OrderSet, hits: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Play a stream that looks at the served chains before each request. Every request shortens one. Fills ``hits``."""
    flat = hits.reshape(len(hits), -1)
    trials = np.arange(len(hits))
    for request in range(1, flat.shape[1] + 1):
        chains = np.moveaxis(orders.chains(np.moveaxis(np.isfinite(hits[trials]), -1, 0)), 0, -1)
        live = (chains[..., 0] >= 0).any(axis=1)
        trials, chains = trials[live], chains[live]
        if not trials.size:
            return
        flat[trials, stream.choose(chains, population, rng)] = request
