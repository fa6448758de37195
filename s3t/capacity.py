"""How many deletions a system bears: closed forms, an integral, and a simulation of the process itself.

Source: arXiv 2406.16257, section 4 (deletion rate, survival of orders). The closed form and the integral for arbitrary
request probabilities are our sharpening of the paper's orders of growth. Capacity counts requests, each to one slot;
"dead" means that no shard has an order whose first slice is unhit. Everything here is pure; no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad

from s3t.errors import LayoutError
from s3t.records import Layout, Order


@dataclass(frozen=True, eq=False)
class Simulation:
    """Simulated numbers of requests until no shard is live.

    ``samples``: one count per trial, shape (trials,). ``standard_error``: of the mean; NaN for a single trial.
    """

    mean: float
    standard_error: float
    trials: int
    samples: NDArray[np.int64]


def harmonic(n: int) -> float:
    """Return H(n) = 1 + 1/2 + ... + 1/n, with H(0) = 0. Raises LayoutError for a negative n."""
    if n < 0:
        raise LayoutError(f"harmonic number of {n} does not exist: give an integer of at least 0")
    return math.fsum(1 / k for k in range(1, n + 1))


def deletion_rate(shards: int, slices: int, budget: int) -> float:
    """Return the expected number of uniform requests until no shard is live: m L H(m B') with B' = min(B, L).

    B' is the number of distinct first slices of ``budget`` cyclic orders; SISA and other one-order methods have B' = 1.
    Raises LayoutError for a layout that cannot exist. Source: arXiv 2406.16257, section 4 (orders of growth there).
    """
    layout = Layout(shards, slices, budget)
    return shards * slices * harmonic(shards * min(layout.budget, slices))


def deletion_rate_from(first_slice_probabilities: ArrayLike) -> float:
    """Return the expected number of requests until every listed first slice is hit, by quadrature.

    ``first_slice_probabilities``: for each first slice of any order of any shard, the probability that a request falls
    in it; each slice listed once, any shape. They may sum to less than 1 (the rest falls elsewhere). A probability of 0
    gives infinity. Computes the integral over t of 1 - prod(1 - exp(-q_f t)): the coupon collector in continuous time.

    Raises LayoutError if there are none, one is outside 0..1, or they sum to more than 1.
    """
    q = _probabilities(first_slice_probabilities).ravel()
    rarest = float(q.min())
    if rarest == 0.0:
        return math.inf
    ratios = q / rarest

    def unhit(x: float) -> float:
        """Probability that some first slice is unhit at time x / rarest, free of cancellation."""
        if x == 0.0:
            return 1.0
        return -math.expm1(float(np.log1p(-np.exp(-ratios * x)).sum()))

    # In units of 1 / rarest the integrand is at most len(q) exp(-x): past log(len(q)) + 40 nothing is left to count.
    edges = [0.0, *np.geomspace(1e-3, math.log(q.size) + 40.0, 24)]
    return math.fsum(quad(unhit, a, b, epsrel=1e-10)[0] for a, b in itertools.pairwise(edges)) / rarest


def survival(slices: int, j: int, requests: int) -> float:
    """Return the probability (1 - j/L)^r that an order keeps its first ``j`` slices after r requests to its shard.

    Requests are uniform over the slices. Raises LayoutError unless 0 <= j <= slices and requests >= 0.
    Source: arXiv 2406.16257, section 4.
    """
    Layout(1, slices)
    if not 0 <= j <= slices:
        raise LayoutError(f"j={j} first slices do not fit an order of {slices}: give 0..{slices}")
    _check_requests(requests)
    return float((1 - j / slices) ** requests)


def expected_surviving_length(order: Order, probabilities: ArrayLike, requests: int) -> float:
    """Return how many leading slices of ``order`` are expected to be unhit after ``requests``: sum_j (1 - c_j)^T.

    ``probabilities``: that a request falls in each slice of this shard, shape (slices,), indexed by slice; c_j is their
    sum over the order's first j slices. They sum to less than 1 where requests also go to other shards.

    Raises LayoutError if the order is no permutation of the slices, or for impossible probabilities or requests.
    """
    p = _probabilities(probabilities)
    _check_orders([order], p.size)
    _check_requests(requests)
    kept = np.clip(1.0 - np.cumsum(p[list(order)]), 0.0, 1.0)
    return float((kept**requests).sum())


def simulate(
    shards: int, orders: Sequence[Order], *, trials: int, seed: int, probabilities: ArrayLike | None = None
) -> Simulation:
    """Simulate requests until no shard is live, ``trials`` times over. No formula is used.

    ``orders``: those that every shard trains. A request picks a slot, uniformly or with ``probabilities`` of shape
    (shards, slices) summing to 1, and cuts every order of its shard before the slice's position; a shard is live while
    some order keeps at least one slice. The request that kills the last shard is counted.

    Raises LayoutError for impossible orders, shards, trials or probabilities, and where the system may never die.
    """
    slices = len(orders[0]) if len(orders) else 0
    Layout(shards, slices)
    _check_orders(orders, slices)
    if trials < 1:
        raise LayoutError(f"trials={trials} is not possible: give an integer of at least 1")
    cumulative = None if probabilities is None else _request_distribution(probabilities, shards, orders)
    rng = np.random.default_rng([seed, shards, slices, len(orders)])

    position = np.argsort(np.asarray(orders), axis=1).T.astype(np.int16)  # (slices, orders): where each slice stands
    length = np.full((trials, shards, len(orders)), slices, dtype=np.int16)  # slices kept by every order
    live = np.full(trials, shards)
    samples = np.zeros(trials, dtype=np.int64)
    running = np.arange(trials)
    step = 0
    while running.size:
        step += 1
        if cumulative is None:
            slot = rng.integers(shards * slices, size=running.size)
        else:
            slot = np.searchsorted(cumulative, rng.random(running.size), side="right")
        shard, slice_ = np.divmod(slot, slices)
        before = length[running, shard]
        after = np.minimum(before, position[slice_])
        length[running, shard] = after
        live[running] -= before.any(axis=1) & ~after.any(axis=1)
        dead = live[running] == 0
        if dead.any():
            samples[running[dead]] = step
            running = running[~dead]
    error = float(samples.std(ddof=1) / math.sqrt(trials)) if trials > 1 else math.nan
    return Simulation(float(samples.mean()), error, trials, samples)


def _request_distribution(probabilities: ArrayLike, shards: int, orders: Sequence[Order]) -> NDArray[np.float64]:
    """Return the cumulative distribution over slots, shape (shards * slices,), that requests are drawn from."""
    p = _probabilities(probabilities)
    slices = len(orders[0])
    if p.shape != (shards, slices):
        raise LayoutError(f"probabilities of shape {p.shape} do not fit: give one per slot, shape {(shards, slices)}")
    if not math.isclose(float(p.sum()), 1.0, abs_tol=1e-9):
        raise LayoutError(f"probabilities of all slots sum to {p.sum():.6g}: they must sum to 1")
    if (p[:, sorted({order[0] for order in orders})] == 0.0).any():
        raise LayoutError("a first slice has request probability 0, so the system may never die: give all of them more")
    cumulative: NDArray[np.float64] = np.cumsum(p)
    cumulative[np.flatnonzero(p)[-1] :] = 1.0  # rounding must not leave a gap below 1
    return cumulative


def _probabilities(values: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(values, dtype=np.float64)
    if p.size == 0:
        raise LayoutError("no probabilities given: give at least one")
    wrong = p[~((p >= 0.0) & (p <= 1.0))]
    if wrong.size:
        raise LayoutError(f"probability {wrong[0]} is out of range: give 0 to 1")
    if p.sum() > 1.0 + 1e-9:
        raise LayoutError(f"probabilities sum to {p.sum():.6g}: they may sum to 1 at most")
    return p


def _check_orders(orders: Sequence[Order], slices: int) -> None:
    for order in orders:
        if sorted(order) != list(range(slices)):
            raise LayoutError(f"order {tuple(order)} is not a permutation of the slices 0..{slices - 1}")


def _check_requests(requests: int) -> None:
    if requests < 0:
        raise LayoutError(f"requests={requests} is not possible: give an integer of at least 0")
