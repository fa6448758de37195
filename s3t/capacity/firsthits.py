"""First hits and deaths under a demand, drawn exactly without playing the requests in between.

No formula for any answer is used, only the laws of waiting. With replacement requests are a Poisson process of rate one
seen at its arrivals: slot f is first hit at time Exp(1) / q_f, independently, so the order of first hits is an
exponential race, and the requests between two of them are geometric with the mass still unhit. Without replacement
every record arrives at a uniform time in 0..1: the first of n records comes at 1 - U^(1/n), the same race with
rates n, and the requests in between are negative hypergeometric.

Counts of requests are exact: float64 below 2^53, or float32 below 2^24. Two slots may agree in the 32 to 63 random bits
that decide their race: with 100,000 slots fewer than one trial in 10^4 has two neighbouring first hits swapped by that,
with 30 slots one in 10^7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3t.capacity.demand import Demand
from s3t.capacity.outcomes import FirstHits, OrderSet, deaths, half_of, how_many, smallest
from s3t.errors import LayoutError

Floats = NDArray[np.float64]
Reals = NDArray[np.floating]
"""Of double precision, or of single precision where all numbers are integers below 2^24."""
Ranks = NDArray[np.unsignedinteger]

_LONGEST = 23.0
"""No exponential number that is drawn from 32 bits is larger: log(2^33) = 22.9."""
_PACKED_SLOTS = 1024
"""Up to so many slots the last bits of a race's times may give way to the slot's number."""


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
    requests = _accumulated(_repeating_waits(unhit, (slots, trials), rng))
    if weights.shape[1] == 1:
        return requests[[0, half_of(slots) - 1, -1]].astype(np.float64)
    bits = rng.integers(0, 1 << 64, (slots * trials + 1) // 2, dtype=np.uint64).view(np.uint32)
    race = bits[: slots * trials].reshape(*weights.shape, trials)
    found = np.empty((3, trials))
    for row, moment in enumerate(deaths(race.max(axis=1))[:2]):
        before = how_many(race.reshape(slots, trials) < moment)
        found[row] = requests[before, np.arange(trials)]
    found[2] = requests[-1]
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
        counts[row] = before + how_many(times <= moment)
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


def draw_first_hits(demand: Demand, trials: int, rng: np.random.Generator) -> FirstHits:
    """Return the first hits of all slots; infinity for slots that cannot be hit."""
    weights = demand.weights.reshape(-1)
    shape = (*demand.weights.shape, trials)
    if demand.total <= 0.0:
        raise LayoutError("no slot can be requested: give at least one a probability, or records")
    if demand.replacement and 0.0 < weights.min() == weights.max():
        # A random order, and waits that do not depend on it.
        unhit = float(weights[0]) * np.arange(weights.size, 0, -1)[:, None]
        requests = _accumulated(_repeating_waits(unhit, (weights.size, trials), rng))
        bits = rng.integers(0, 1 << 64, (weights.size, trials), dtype=np.uint64)
        return FirstHits(_sorted_slots(bits).reshape(shape), requests)
    race = rng.standard_exponential((weights.size, trials))
    with np.errstate(divide="ignore"):
        race /= weights[:, None]
    # Positive floats are ordered as their bits are.
    order = _sorted_slots(race.view(np.uint64)) if weights.size <= _PACKED_SLOTS else np.argsort(race, axis=0)
    drawn = weights[order]
    unhit = np.flip(np.cumsum(np.flip(drawn, axis=0), axis=0), axis=0)
    waits = _repeating_waits(unhit, unhit.shape, rng) if demand.replacement else _once_waits(drawn, unhit, demand, rng)
    rank = np.empty((weights.size, trials), dtype=smallest(weights.size))
    np.put_along_axis(rank, order.astype(np.int64), np.arange(weights.size, dtype=rank.dtype)[:, None], axis=0)
    return FirstHits(rank.reshape(shape), _accumulated(waits))


def _sorted_slots(keys: NDArray[np.uint64]) -> Ranks:
    """Return the slots of every trial in the order of their ``keys``, shape (slots, trials); overwrites the keys.

    The slot's number takes the place of the last bits, so that sorting the keys sorts the slots.
    """
    slots = len(keys)
    last = np.uint64((1 << (slots - 1).bit_length()) - 1)
    keys &= ~last
    keys |= np.arange(slots, dtype=np.uint64)[:, None]
    keys.sort(axis=0)
    keys &= last
    return keys.astype(smallest(slots))


def _accumulated(waits: Reals) -> Reals:
    """Return the sums of ``waits`` so far, over the first axis, in their place."""
    if waits.shape[1] < 64:
        return np.cumsum(waits, axis=0, out=waits)
    for k in range(1, len(waits)):
        waits[k] += waits[k - 1]
    return waits


def _repeating_waits(unhit: Reals, shape: tuple[int, int], rng: np.random.Generator) -> Reals:
    """Return geometric numbers of requests, of ``shape``, until something in a mass of ``unhit`` (broadcast) is requested.

    1 + floor(E / -log(1 - p)) with E exponential: more than k with probability (1 - p)^k, exactly.
    """
    with np.errstate(divide="ignore"):
        scale = -1.0 / np.log1p(-np.minimum(unhit, 1.0))
    if scale.size < shape[0] * shape[1] and len(scale) * (1.0 + _LONGEST * scale.max()) < 1 << 24:
        return _single_waits(scale.astype(np.float32), shape, rng)
    waits = rng.standard_exponential(shape)
    waits *= scale
    np.floor(waits, out=waits)
    waits += 1.0
    return waits


def _single_waits(scale: Reals, shape: tuple[int, int], rng: np.random.Generator) -> Reals:
    """Return the same in single precision, three times as fast, where sums of all waits stay below 2^24 and so exact.

    Each E is -log(U) with U one of 2^32 equally likely values, rounded to 24 bits: the probability of every single wait is
    met to within 2^-24 or so, which 10^12 trials would not show.
    """
    bits = rng.integers(0, 1 << 64, (shape[0] * shape[1] + 1) // 2, dtype=np.uint64).view(np.uint32)
    waits = bits[: shape[0] * shape[1]].reshape(shape).astype(np.float32)
    waits += np.float32(0.5)
    waits *= np.float32(2.0**-32)
    np.log(waits, out=waits)
    waits *= -scale
    np.floor(waits, out=waits)
    waits += np.float32(1.0)
    return waits


def _once_waits(drawn: Floats, unhit: Reals, demand: Demand, rng: np.random.Generator) -> Floats:
    """Return the numbers of requests from one first hit to the next, shape (slots, trials), without replacement.

    The first of W unhit records comes at V = 1 - U^(1/W) of the time that is left, and each of the others before it with
    probability V, independently: a negative hypergeometric wait as a binomial with a beta-distributed chance.
    """
    others = np.rint(demand.total - unhit[0]).astype(np.int64)
    waits = np.full_like(drawn, np.inf)
    for records, left, wait in zip(drawn, unhit, waits, strict=True):
        possible = records > 0.0
        chance = -np.expm1(-rng.standard_exponential(len(left)) / np.maximum(left, 1.0))
        passed = rng.binomial(np.where(possible, others, 0), chance)
        wait[possible] = passed[possible] + 1.0
        others += np.where(possible, records.astype(np.int64) - 1 - passed, 0)
    return waits


def _share(part: Floats, whole: Floats) -> Floats:
    """Return part / whole within 0..1, and 0 where nothing is left."""
    return np.clip(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0), 0.0, 1.0)
