"""The request process itself, simulated for many trials at once; no formula is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.capacity.checks import check_orders, probabilities_of
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
    check_orders(orders, slices)
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
    p = probabilities_of(probabilities)
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
