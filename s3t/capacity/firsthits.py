"""First hits and deaths under a demand, drawn exactly without playing the requests in between.

No formula for any answer is used, only the laws of waiting. With replacement requests are a Poisson process of rate one
seen at its arrivals: slot f is first hit at time Exp(1) / q_f, independently, so the order of first hits is an
exponential race, and the requests between two of them are geometric with the mass still unhit. Without replacement
every record arrives at a uniform time in 0..1: the first of n records comes at 1 - U^(1/n), the same race with
rates n, and the requests in between are negative hypergeometric.

All numbers are float64: a race has no ties to speak of, and counts of requests are exact up to 2^53.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3t.capacity.demand import Demand
from s3t.capacity.outcomes import OrderSet, deaths, half_of
from s3t.errors import LayoutError

Floats = NDArray[np.float64]
Reals = NDArray[np.floating]


def draw_deaths(demand: Demand, orders: OrderSet, trials: int, rng: np.random.Generator) -> Floats:
    """Return the requests until the first shard, half of them and the last are dead, shape (3, trials).

    Only first slices are drawn, all other requests are counted as a sum. Infinity where a first slice is never hit.
    """
    weights = demand.weights[:, orders.first_slices]
    if demand.replacement and 0.0 < weights.min() == weights.max():
        return _equal_deaths(weights, trials, rng)
    race = rng.standard_exponential((*weights.shape, trials))
    with np.errstate(divide="ignore"):
        race /= weights[..., None]
    if not demand.replacement:
        np.negative(np.expm1(np.negative(race, out=race), out=race), out=race)
        race[weights == 0.0] = np.inf
    moments = deaths(race.max(axis=1))
    times, flat = race.reshape(-1, trials), weights.reshape(-1)
    if demand.replacement:
        return _count_repeating(times, flat, moments, rng)
    return _count_once(times, flat, moments, demand.total, rng)


def _equal_deaths(weights: Floats, trials: int, rng: np.random.Generator) -> Floats:
    """As :func:`draw_deaths`, for first slices of one probability: all orders of first hits are equally likely.

    Waits then do not depend on the order, so that the k-th first hit and who is k-th are drawn apart.
    """
    slots = weights.size
    unhit = float(weights.flat[0]) * np.arange(slots, 0, -1)[:, None]
    hits = np.cumsum(_repeating_waits(unhit, (slots, trials), rng), axis=0)
    if weights.shape[1] == 1:
        return hits[[0, half_of(slots) - 1, -1]]
    race = rng.random((*weights.shape, trials))
    moments = deaths(race.max(axis=1))
    found = np.empty_like(moments)
    for row, moment in enumerate(moments[:2]):
        before = np.count_nonzero(race.reshape(slots, trials) < moment, axis=0)
        found[row] = hits[before, np.arange(trials)]
    found[2] = hits[-1]
    return found


def _count_repeating(times: Floats, weights: Floats, moments: Floats, rng: np.random.Generator) -> Floats:
    """Return the number of requests up to each of the ascending ``moments`` (3, trials), those at the moments included.

    ``times``: first hits, shape (slots, trials). Given those, everything else is a Poisson process: slot f has rate q_f
    from its first hit on, and requests elsewhere have theirs from the start.
    """
    elsewhere = max(1.0 - float(weights.sum()), 0.0)
    counts = np.empty_like(moments)
    mean_before, before = np.zeros(moments.shape[1]), np.zeros(moments.shape[1])
    for row, moment in enumerate(np.where(np.isfinite(moments), moments, 0.0)):
        since = np.maximum(moment - times, 0.0)
        mean = np.maximum(np.einsum("f,ft->t", weights, since) + elsewhere * moment, mean_before)
        before = before + rng.poisson(mean - mean_before)
        counts[row] = before + np.count_nonzero(times <= moment, axis=0)
        mean_before = mean
    counts[np.isinf(moments)] = np.inf
    return counts


def _count_once(times: Floats, weights: Floats, moments: Floats, total: float, rng: np.random.Generator) -> Floats:
    """As :func:`_count_repeating`, without replacement: ``weights`` are records, ``total`` all of them.

    All records that are due at uniform times after the last moment are one pool: those elsewhere, and those left in slots
    that are hit. A slot hit since then has its other records at uniform times after its hit.
    """
    records, trials = weights.astype(np.int64), moments.shape[1]
    counts = np.empty_like(moments)
    last, before = np.zeros(trials), np.zeros(trials)
    pool = np.full(trials, round(total) - int(records.sum()))
    for row in range(len(moments)):
        moment = np.where(np.isfinite(moments[row]), moments[row], last)
        drawn = rng.binomial(pool, _share(moment - last, 1.0 - last))
        slot, trial = np.nonzero((times <= moment) & (times > last))
        rest, since = records[slot] - 1, times[slot, trial]
        others = rng.binomial(rest, _share(moment[trial] - since, 1.0 - since))
        before = before + drawn + np.bincount(trial, 1 + others, minlength=trials)
        pool = pool - drawn + np.bincount(trial, rest - others, minlength=trials).astype(np.int64)
        counts[row], last = before, moment
    counts[np.isinf(moments)] = np.inf
    return counts


def draw_first_hits(demand: Demand, trials: int, rng: np.random.Generator) -> Floats:
    """Return the first hits of all slots, shape (trials, shards, slices); infinity for slots that cannot be hit."""
    weights = demand.weights.reshape(-1)
    if demand.replacement and demand.total <= 0.0:
        raise LayoutError("no slot has a request probability above 0: give at least one")
    if demand.replacement and 0.0 < weights.min() == weights.max():
        # A random order, and waits that do not depend on it.
        unhit = float(weights[0]) * np.arange(weights.size, 0, -1)
        sequence = np.cumsum(_repeating_waits(unhit, (trials, weights.size), rng), axis=1)
        order = np.argsort(rng.random((trials, weights.size)), axis=1)
        hits = np.take_along_axis(sequence, order, axis=1)
        return hits.reshape(trials, demand.shards, demand.slices)
    race = rng.standard_exponential((trials, weights.size))
    with np.errstate(divide="ignore"):
        race /= weights
    order = np.argsort(race, axis=1)
    drawn = weights[order]
    unhit = np.flip(np.cumsum(np.flip(drawn, axis=1), axis=1), axis=1)
    waits = _repeating_waits(unhit, unhit.shape, rng) if demand.replacement else _once_waits(drawn, unhit, demand, rng)
    hits = np.empty_like(race)
    np.put_along_axis(hits, order, np.cumsum(waits, axis=1), axis=1)
    return hits.reshape(trials, demand.shards, demand.slices)


def _repeating_waits(unhit: Reals, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return geometric numbers of requests, of ``shape``, until something in a mass of ``unhit`` (broadcast) is requested.

    1 + floor(E / -log(1 - p)) with E exponential: more than k with probability (1 - p)^k, exactly.
    """
    with np.errstate(divide="ignore"):
        scale = -1.0 / np.log1p(-np.minimum(unhit, 1.0))
    waits = rng.standard_exponential(shape)
    waits *= scale
    np.floor(waits, out=waits)
    waits += 1.0
    return waits


def _once_waits(drawn: Floats, unhit: Reals, demand: Demand, rng: np.random.Generator) -> Floats:
    """Return the numbers of requests from one first hit to the next, shape (trials, slots), without replacement.

    The first of W unhit records comes at V = 1 - U^(1/W) of the time that is left, and each of the others before it with
    probability V, independently: a negative hypergeometric wait as a binomial with a beta-distributed chance.
    """
    slots = drawn.shape[1]
    others = np.rint(demand.total - unhit[:, 0]).astype(np.int64)
    waits = np.full_like(drawn, np.inf)
    for k in range(slots):
        left = unhit[:, k]
        possible = drawn[:, k] > 0.0
        chance = -np.expm1(-rng.standard_exponential(len(left)) / np.maximum(left, 1.0))
        passed = rng.binomial(np.where(possible, others, 0), chance)
        waits[possible, k] = passed[possible] + 1.0
        others += np.where(possible, drawn[:, k].astype(np.int64) - 1 - passed, 0)
    return waits


def _share(part: Floats, whole: Floats) -> Floats:
    """Return part / whole within 0..1, and 0 where nothing is left."""
    return np.clip(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0), 0.0, 1.0)
