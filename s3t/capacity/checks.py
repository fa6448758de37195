"""Arguments of the capacity functions, checked: one clear LayoutError for what cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.errors import LayoutError
from s3t.records import Order


def probabilities_of(values: ArrayLike) -> NDArray[np.float64]:
    """Return ``values`` as floats. LayoutError if there are none, one is outside 0..1, or they sum to more than 1."""
    p = np.asarray(values, dtype=np.float64)
    if p.size == 0:
        raise LayoutError("no probabilities given: give at least one")
    wrong = p[~((p >= 0.0) & (p <= 1.0))]
    if wrong.size:
        raise LayoutError(f"probability {wrong[0]} is out of range: give 0 to 1")
    if p.sum() > 1.0 + 1e-9:
        raise LayoutError(f"probabilities sum to {p.sum():.6g}: they may sum to 1 at most")
    return p


def check_orders(orders: Sequence[Order], slices: int) -> None:
    """Raise LayoutError unless every order is a permutation of the slices 0..slices-1."""
    for order in orders:
        if sorted(order) != list(range(slices)):
            raise LayoutError(f"order {tuple(order)} is not a permutation of the slices 0..{slices - 1}")


def check_requests(requests: int) -> None:
    """Raise LayoutError for a negative number of requests."""
    if requests < 0:
        raise LayoutError(f"requests={requests} is not possible: give an integer of at least 0")
