"""What survives: how much of an order, of the best chain, and of the data in service is left after some requests.

Source: arXiv 2406.16257, section 4, for one order under uniform requests; the rest is ours (docs/CAPACITY.md). Everything
here is exact for prefixes that overlap, up to rounding (about 1e-12 in absolute terms).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.capacity.checks import check_orders, check_requests, check_some_orders, counts_of, probabilities_of
from s3t.capacity.demand import Demand
from s3t.capacity.subsets import Expansion, best_at_least, in_service
from s3t.errors import LayoutError
from s3t.records import Layout, Order

Floats = NDArray[np.float64]
Expand = Callable[[Sequence[Order]], Expansion]
Share = Literal["slices", "records", "retained"]

_BLOCK = 4_000_000


def survival(slices: int, j: int, requests: int) -> float:
    """Return the probability (1 - j/L)^r that an order keeps its first ``j`` slices after r requests to its shard.

    Requests are uniform over the slices. Raises LayoutError unless 0 <= j <= slices and requests >= 0.
    Source: arXiv 2406.16257, section 4.
    """
    Layout(1, slices)
    if not 0 <= j <= slices:
        raise LayoutError(f"j={j} first slices do not fit an order of {slices}: give 0..{slices}")
    check_requests(requests)
    return float((1 - j / slices) ** requests)


def expected_surviving_length(order: Order, probabilities: ArrayLike, requests: int) -> float:
    """Return how many leading slices of ``order`` are expected to be unhit after ``requests``: sum_j (1 - c_j)^T.

    ``probabilities``: that a request falls in each slice of this shard, shape (slices,), indexed by slice; c_j is their
    sum over the order's first j slices. They sum to less than 1 where requests also go to other shards.

    Raises LayoutError if the order is no permutation of the slices, or for impossible probabilities or requests.
    """
    p = probabilities_of(probabilities)
    check_orders([order], p.size)
    check_requests(requests)
    return float(_one_shard(p).unhit(np.cumsum(p[list(order)]), requests).sum())


def best_length_distribution(orders: Sequence[Order], probabilities: ArrayLike, requests: int) -> Floats:
    """Return the distribution of the length of one shard's longest kept chain: P(best = j) for j = 0..L, shape (L + 1,).

    ``probabilities`` as in :func:`expected_surviving_length`; with replacement. j = 0 is the probability that the shard is
    dead. Raises LayoutError for impossible orders, probabilities or requests, and for too many orders beyond 16 slices.
    """
    return np.asarray(best_length_distributions(_one_shard(probabilities), orders, requests)[0])


def expected_best_length(orders: Sequence[Order], probabilities: ArrayLike, requests: int) -> float:
    """Return the expected length of one shard's longest kept chain after ``requests``, with replacement.

    Arguments and errors as :func:`best_length_distribution`.
    """
    return float(expected_best_lengths(_one_shard(probabilities), orders, requests)[0])


def best_length_distributions(demand: Demand, orders: Sequence[Order], requests: int) -> Floats:
    """Return the distribution of every shard's longest kept chain, shape (shards, L + 1), after requests to the system.

    With and without replacement. Raises LayoutError as :func:`best_length_distribution`, and for more requests than records.
    """
    at_least = np.ones((demand.shards, demand.slices + 2))
    at_least[:, 1:-1] = np.clip(_expected(demand, orders, requests, best_at_least), 0.0, 1.0)
    at_least[:, -1] = 0.0
    return np.clip(at_least[:, :-1] - at_least[:, 1:], 0.0, 1.0)


def expected_best_lengths(demand: Demand, orders: Sequence[Order], requests: int) -> Floats:
    """Return the expected length of every shard's longest kept chain, shape (shards,). Errors as the distributions."""
    return np.asarray(_expected(demand, orders, requests, best_at_least).sum(axis=1))


def probability_in_service(demand: Demand, orders: Sequence[Order], requests: int) -> Floats:
    """Return for every slot the probability that its slice lies behind the chain its shard serves, shape (shards, slices).

    Served is the longest kept chain, ties by the first order. A row sums to the expected best length. Raises LayoutError
    as :func:`best_length_distributions`, and beyond 16 slices.
    """
    return np.clip(_expected(demand, orders, requests, in_service), 0.0, 1.0)


def expected_share(
    demand: Demand,
    orders: Sequence[Order],
    requests: int,
    of: Share = "slices",
    *,
    records: ArrayLike | None = None,
) -> float:
    """Return the expected share of the data that is in service (behind the served chains) after ``requests``.

    ``of="slices"``: slices behind served chains, of all m L slices. ``of="records"``: records behind served chains, of
    all N; a record in a served slice is never a deleted one, for the slice is unhit. ``of="retained"``: the same records,
    of the N - requests that are not deleted: how much of what may be used is used (1.0 where none is left to use).

    ``records``: per slot, shape (shards, slices); without replacement those of the demand. With replacement "retained" has
    no answer (how many of the requests are repeats is not said) and is refused.
    Raises LayoutError for that, for records that do not fit, and as :func:`probability_in_service`.
    """
    if of == "slices":
        return float(expected_best_lengths(demand, orders, requests).sum() / demand.weights.size)
    if of not in ("records", "retained"):
        raise LayoutError(f'share of {of!r} is unknown: give "slices", "records" or "retained"')
    if of == "retained" and demand.replacement:
        raise LayoutError(
            'a share of the retained records needs requests without replacement: give Demand.once, or "records"'
        )
    counts = _records(demand, records)
    served = float((probability_in_service(demand, orders, requests) * counts).sum())
    whole = float(counts.sum()) - (requests if of == "retained" else 0)
    return served / whole if whole else 1.0


def _records(demand: Demand, records: ArrayLike | None) -> Floats:
    """Return the records per slot that a share counts."""
    if not demand.replacement:
        if records is not None and not np.array_equal(np.asarray(records), demand.weights):
            raise LayoutError("records are given twice, and differ: without replacement they are the demand's own")
        return demand.weights
    if records is None:
        raise LayoutError("a share of the records needs their numbers: give records, shape (shards, slices)")
    counts = counts_of(records)
    if counts.shape != demand.weights.shape:
        raise LayoutError(
            f"records of shape {counts.shape} do not fit: give one per slot, shape {demand.weights.shape}"
        )
    if counts.sum() == 0:
        raise LayoutError("there are no records to take a share of: give at least one")
    return counts


def _one_shard(probabilities: ArrayLike) -> Demand:
    """Return the demand of one shard; requests may also fall elsewhere."""
    return Demand(probabilities_of(probabilities).reshape(1, -1))


def _expected(demand: Demand, orders: Sequence[Order], requests: int, expand: Expand) -> Floats:
    """Return the expectations of the expanded functions for every shard, shape (shards, functions)."""
    check_requests(requests)
    check_some_orders(orders, demand.slices)
    demand.check(requests)
    expansion = expand(orders)
    distinct, which = np.unique(demand.weights, axis=0, return_inverse=True)
    step = max(1, _BLOCK // max(1, len(expansion.members)))
    parts = [
        demand.unhit(distinct[i : i + step] @ expansion.members.T, requests) @ expansion.coefficients
        for i in range(0, len(distinct), step)
    ]
    return np.asarray(np.concatenate(parts)[which.ravel()])
