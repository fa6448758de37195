"""What survives: how much of an order, and of the best chain, is unhit after some requests (arXiv 2406.16257, section 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from s3t.capacity.checks import check_orders, check_requests, probabilities_of
from s3t.errors import LayoutError
from s3t.records import Layout, Order


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
    kept = np.clip(1.0 - np.cumsum(p[list(order)]), 0.0, 1.0)
    return float((kept**requests).sum())
