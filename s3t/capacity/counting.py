"""Dead shards after a given number of requests: exact, from continuous time by Cauchy's integral.

In continuous time slots are independent, after exactly r requests they are not. But if P(t) is the probability of an event at
time t, and P_r the one after r requests, then

    with replacement     P(t) e^t         = sum over r of P_r t^r / r!            (the number of requests is Poisson)
    without              P(x) (1 + x)^N   = sum over r of P_r C(N, r) x^r          (binomial; x = u / (1 - u) are the odds)

so P_r is a coefficient of a power series, read off by the trapezoidal rule on a circle. All coefficients are non-negative,
hence the sum is largest at the real point and nothing cancels: the result is good to about 1e-12 in absolute terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log1p

from s3t.capacity.checks import check_requests, check_some_orders
from s3t.capacity.demand import Demand
from s3t.capacity.hypergeometric import log_binomial, log_poisson
from s3t.capacity.shards import log_dead_and_live, mortal_shards
from s3t.errors import LayoutError
from s3t.records import Order

Numbers = NDArray[Any]
Logs = Callable[[Numbers], Numbers]
"""Times, shape (n,), to logs of probabilities, shape (n,) or (n, events); analytic in the time."""

_BLOCK = 64
_NEGLIGIBLE = -45.0
_VANISHING = -700.0


def probability_dead(demand: Demand, orders: Sequence[Order], requests: int, shards_dead: int | None = None) -> float:
    """Return the probability that at least ``shards_dead`` shards are dead after exactly ``requests`` requests; None means all.

    Exact for any demand and orders, with the dependence between shards (a request that falls in one shard falls in no
    other): to about 1e-12 in absolute terms, and to 1e-10 of a small value for the first shard and the last, for equal
    shards, and for 32 at most. Work grows with the shards, and hardly with the requests or the records.
    Raises LayoutError for impossible arguments, also for more requests than there are records.
    """
    check_requests(requests)
    mortal = mortal_shards(demand, orders, shards_dead)
    demand.check(requests)
    if mortal is None or requests < mortal.dead * mortal.firsts:
        return 0.0
    if not demand.replacement and requests == demand.total:
        return 1.0
    series = _Series(demand, requests)

    def average(logs: Logs) -> float:
        return float(series.averages(lambda t: logs(t)[:, None])[0])

    middle = series.clock(np.array([series.odds()]))
    if mortal.log_dead(middle)[0] >= np.log(0.5):
        return min(1.0, max(0.0, 1.0 - average(mortal.log_short)))
    small = series.coefficient if mortal.graded else average
    return min(1.0, max(0.0, small(mortal.log_dead)))


def requests_until(
    demand: Demand, orders: Sequence[Order], probability: float, shards_dead: int | None = None
) -> float:
    """Return the smallest number of requests after which ``shards_dead`` shards are dead with at least ``probability``.

    A quantile: 0.05 says how many requests the system bears with 95 % certainty (one fewer). Infinity where it is never
    reached. Raises LayoutError for impossible arguments; ``probability`` lies strictly between 0 and 1.
    """
    if not 0.0 < probability < 1.0:
        raise LayoutError(f"probability={probability} is not possible: give a number between 0 and 1")
    if mortal_shards(demand, orders, shards_dead) is None:
        return np.inf
    low, high = 0, 1
    while probability_dead(demand, orders, high, shards_dead) < probability:
        low, high = high, 2 * high if demand.replacement else min(2 * high, int(demand.total))
    while high - low > 1:
        middle = (low + high) // 2
        reached = probability_dead(demand, orders, middle, shards_dead) >= probability
        low, high = (low, middle) if reached else (middle, high)
    return float(high)


def probability_live(demand: Demand, orders: Sequence[Order], requests: int) -> NDArray[np.float64]:
    """Return, for each shard, the probability that it is live after exactly ``requests`` requests to the system.

    Shape (shards,); to about 1e-12 in absolute terms. Raises LayoutError as :func:`probability_dead`.
    """
    check_requests(requests)
    check_some_orders(orders, demand.slices)
    demand.check(requests)
    firsts = demand.weights[:, sorted({order[0] for order in orders})]
    live = np.ones(demand.shards)
    mortal = (firsts > 0).all(axis=1)
    if requests == 0 or not mortal.any():
        return live
    if not demand.replacement and requests == demand.total:
        return np.where(mortal, 0.0, 1.0)
    distinct, which = np.unique(np.sort(firsts[mortal], axis=1), axis=0, return_inverse=True)
    series = _Series(demand, requests)
    live[mortal] = np.clip(series.averages(lambda t: log_dead_and_live(distinct, t)[1]), 0.0, 1.0)[which.ravel()]
    return live


def expected_live_shards(demand: Demand, orders: Sequence[Order], requests: int) -> float:
    """Return how many shards are expected to be live after exactly ``requests`` requests. LayoutError as the others."""
    return float(probability_live(demand, orders, requests).sum())


class _Series:
    """Coefficients number ``requests`` of the power series above."""

    def __init__(self, demand: Demand, requests: int) -> None:
        self.demand, self.requests = demand, requests

    def odds(self) -> float:
        """Return the radius at which the number of requests is expected."""
        return self.requests if self.demand.replacement else self.requests / (self.demand.total - self.requests)

    def clock(self, points: Numbers) -> Numbers:
        """Return the times that belong to points of the series' argument."""
        return points if self.demand.replacement else np.asarray(log1p(points))

    def _log_count(self, radius: float) -> float:
        """Return the log of the probability of so many requests at ``radius``."""
        if self.demand.replacement:
            return log_poisson(self.requests, radius)
        return log_binomial(self.requests, self.demand.total, radius)

    def coefficient(self, logs: Logs) -> float:
        """Return P_r where it may be small: on the circle through the saddle point."""

        def height(log_radius: float) -> float:
            """Return the log of the largest value on the circle, up to a constant. Convex in the log of the radius."""
            radius = float(np.exp(log_radius))
            largest = float(logs(self.clock(np.array([radius])))[0]) - self._log_count(radius)
            return largest if np.isfinite(largest) else 1e9

        start = float(np.log(self.odds()))
        near = 0.1 / float(np.sqrt(self.requests))
        saddle = minimize_scalar(height, bounds=(start - 9.0, start + 9.0), method="bounded", options={"xatol": near})
        return float(self._circle(lambda t: logs(t)[:, None], float(np.exp(saddle.x)))[0])

    def averages(self, logs: Logs) -> NDArray[np.float64]:
        """Return P_r of many events at once, in absolute accuracy: on the circle where r is the expected count."""
        return self._circle(logs, self.odds())

    def _circle(self, logs: Logs, radius: float) -> NDArray[np.float64]:
        """Return the mean over the circle, from the real point outwards until nothing counts any more."""
        r, n = self.requests, self.demand.total
        radius_count = radius if self.demand.replacement else n * radius / (1 + radius)
        peak = logs(self.clock(np.array([radius])))[0]
        if not (peak > _VANISHING).any():
            return np.zeros(len(peak))
        peak = np.maximum(peak, _VANISHING)
        depth = -_NEGLIGIBLE - float(peak.min())
        # Counts further from r than this have no weight left (Chernoff), so a coarser circle could not tell more.
        points = int(abs(radius_count - r) + depth + np.sqrt(2 * depth * max(r, radius_count))) + 2
        total = np.ones(len(peak))
        for start in range(1, points // 2 + 1, _BLOCK):
            j = np.arange(start, min(start + _BLOCK, points // 2 + 1))
            angle = 2 * np.pi * j / points
            fall, sine = -2 * np.sin(angle / 2) ** 2, np.sin(angle)  # exp(i angle) - 1 in parts
            if self.demand.replacement:
                growth = radius * fall + 1j * ((radius - r) * sine + r * _sine_rest(angle))
            else:
                growth = n * log1p((fall + 1j * sine) * (radius / (1 + radius))) - 1j * r * angle
            relative = logs(self.clock(radius * np.exp(1j * angle))) - peak + growth[:, None]
            weight = np.where(2 * j == points, 1.0, 2.0)[:, None]
            total += (weight * np.exp(relative).real).sum(axis=0)
            if relative.real.max() < _NEGLIGIBLE:
                break
        return np.asarray(np.exp(peak - self._log_count(radius)) * total / points)


def _sine_rest(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sin(angle) - angle, with full relative accuracy near 0."""
    square = angle * angle
    series = -angle * square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72)))
    return np.where(angle < 0.05, series, np.sin(angle) - angle)
