"""Deletion rate: how many requests a system bears until a shard, half of them, or all are dead.

Source: arXiv 2406.16257, section 4 (orders of growth); closed forms, and integrals for arbitrary demand and orders, with and
without replacement, are our sharpening of them (docs/CAPACITY.md derives them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma

from s3t.capacity.checks import check_shards_dead, probabilities_of
from s3t.capacity.demand import Demand
from s3t.capacity.quadrature import first_time, integral
from s3t.capacity.shards import Shards, mortal_shards
from s3t.errors import LayoutError
from s3t.records import Layout, Order


def harmonic(n: int) -> float:
    """Return H(n) = 1 + 1/2 + ... + 1/n, with H(0) = 0. Raises LayoutError for a negative n."""
    if n < 0:
        raise LayoutError(f"harmonic number of {n} does not exist: give an integer of at least 0")
    if n > 100_000:
        return float(digamma(n + 1.0) + np.euler_gamma)
    return math.fsum(1 / k for k in range(1, n + 1))


def deletion_rate(shards: int, slices: int, budget: int) -> float:
    """Return the expected number of uniform requests until no shard is live: m L H(m B') with B' = min(B, L).

    B' is the number of distinct first slices of ``budget`` cyclic orders; SISA and other one-order methods have B' = 1.
    Raises LayoutError for a layout that cannot exist. Source: arXiv 2406.16257, section 4 (orders of growth there).
    """
    layout = Layout(shards, slices, budget)
    return shards * slices * harmonic(shards * min(layout.budget, slices))


def deletion_rate_once(shards: int, slices: int, budget: int, records: int) -> float:
    """Return the same where each of ``records`` records per slot is requested once, in random order.

    (N + 1) (1 - product over i = 1..K of i n / (i n + 1)), K = m B', n = ``records``, N = m L n: the mean rank of the last
    of the first hits of K equal slots. Raises LayoutError for an impossible layout or a negative number of records.
    """
    layout = Layout(shards, slices, budget)
    if records < 0:
        raise LayoutError(f"records={records} is not possible: give an integer of at least 0")
    if records == 0:
        return math.inf
    slots = np.arange(1, shards * min(layout.budget, slices) + 1, dtype=np.float64)
    return (shards * slices * records + 1) * -math.expm1(-math.fsum(np.log1p(1 / (slots * records))))


def deletion_rate_exact(
    shards: int, slices: int, budget: int, *, shards_dead: int | None = None, records: int | None = None
) -> Fraction:
    """Return the deletion rate of equal slots as a fraction, for any number of dead shards; None means all.

    Sum over i = k..m of (-1)^(i-k) C(i-1, k-1) C(m, i) D(i B'), the k-th smallest of m from the largest of i; D(K) is
    m L H(K) with replacement (``records`` None), and as in :func:`deletion_rate_once` with ``records`` per slot. The sum
    alternates, so it is exact or worthless: hence fractions, whose cost grows with the shards (hundreds are fine).
    Raises LayoutError as the others, and for no records at all.
    """
    layout = Layout(shards, slices, budget)
    dead = check_shards_dead(shards_dead, shards)
    if records is not None and records < 1:
        raise LayoutError(f"records={records} is not possible here: give an integer of at least 1")
    firsts = min(layout.budget, slices)
    last_of = [Fraction(0)]
    unhit = Fraction(1)
    for slot in range(1, shards * firsts + 1):
        if records is None:
            last_of.append(last_of[-1] + Fraction(shards * slices, slot))
        else:
            unhit *= Fraction(slot * records, slot * records + 1)
            last_of.append((shards * slices * records + 1) * (1 - unhit))
    return sum(
        (
            (-1) ** (i - dead) * math.comb(i - 1, dead - 1) * math.comb(shards, i) * last_of[i * firsts]
            for i in range(dead, shards + 1)
        ),
        Fraction(0),
    )


def deletion_rate_from(first_slice_probabilities: ArrayLike) -> float:
    """Return the expected number of requests until every listed first slice is hit, by quadrature.

    ``first_slice_probabilities``: for each first slice of any order of any shard, the probability that a request falls
    in it; each slice listed once, any shape. They may sum to less than 1 (the rest falls elsewhere). A probability of 0
    gives infinity. Computes the integral over t of 1 - prod(1 - exp(-q_f t)): the coupon collector in continuous time.

    Raises LayoutError if there are none, one is outside 0..1, or they sum to more than 1.
    """
    q = np.unique(probabilities_of(first_slice_probabilities).ravel(), return_counts=True)
    if q[0][0] == 0.0:
        return math.inf
    slots = np.repeat(*q)[:, None]
    return _moment(Shards(slots, len(slots)), np.ones_like)


def requests_to_dead(demand: Demand, orders: Sequence[Order], shards_dead: int | None = None) -> float:
    """Return the expected number of requests until ``shards_dead`` shards are dead; None means all.

    1 is the first dead shard, (m + 1) // 2 half of them, m the last. Any orders, any demand; infinity where fewer shards
    can ever die, because a first slice is never requested (or holds no record). Relative accuracy about 1e-11.

    With replacement: the integral over t >= 0 of P(fewer dead at t). Without: (N + 1) times the integral over u in [0, 1] of
    P(fewer dead at u). Raises LayoutError for orders or ``shards_dead`` that do not fit the demand.
    """
    mortal = mortal_shards(demand, orders, shards_dead)
    if mortal is None:
        return math.inf
    if demand.replacement:
        return _moment(mortal, np.ones_like)
    return (demand.total + 1) * _moment(mortal, lambda t: np.exp(-t))


def deviation_to_dead(demand: Demand, orders: Sequence[Order], shards_dead: int | None = None) -> float:
    """Return the standard deviation of the number of requests until ``shards_dead`` shards are dead.

    From E[R (R + 1)]: with replacement that is E[T^2] of the time T, without (N + 1) (N + 2) E[u^2]. NaN where the mean is
    infinite. About 1e-11 of the squared mean is lost. Raises LayoutError as :func:`requests_to_dead`.
    """
    mortal = mortal_shards(demand, orders, shards_dead)
    if mortal is None:
        return math.nan
    mean = requests_to_dead(demand, orders, shards_dead)
    if demand.replacement:
        rising = _moment(mortal, lambda t: 2 * t)
    else:
        rising = (demand.total + 1) * (demand.total + 2) * _moment(mortal, lambda t: -2 * np.expm1(-t) * np.exp(-t))
    return math.sqrt(max(0.0, rising - mean - mean**2))


def _moment(shards: Shards, density: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
    """Return the integral over t >= 0 of P(fewer than so many are dead at t) * density(t)."""
    latest = shards.latest()
    start = first_time(lambda t: float(np.exp(shards.log_dead(np.array([t]))[0])), latest, 1e-14)
    certain = integral(density, start * 1e-16, start)  # nobody is dead yet; earlier still, nothing counts
    return certain + integral(lambda t: np.exp(shards.log_short(t)) * density(t), start, latest)
