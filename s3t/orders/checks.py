"""Arguments of the order rules, checked: one clear LayoutError for what cannot be."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.errors import LayoutError

Floats = NDArray[np.float64]


def prior_of(probabilities: ArrayLike) -> Floats:
    """Return the request probability of each slice as floats, shape (slices,).

    LayoutError if there are none, they are no list of numbers, one is outside 0..1, or they sum to more than 1.
    """
    try:
        p = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LayoutError("the probabilities are no list of numbers: give one number per slice") from error
    if p.ndim != 1 or p.size == 0:
        raise LayoutError(f"probabilities of shape {p.shape} do not fit: give one number per slice, at least one")
    return in_range(p)


def in_range(p: Floats) -> Floats:
    """Return ``p``, any shape. LayoutError if one is outside 0..1, or they sum to more than 1."""
    wrong = p[~((p >= 0.0) & (p <= 1.0))]
    if wrong.size:
        raise LayoutError(f"probability {wrong[0]} is out of range: give 0 to 1")
    if p.sum() > 1.0 + 1e-9:
        raise LayoutError(f"probabilities sum to {p.sum():.6g}: they may sum to 1 at most")
    return p


def check_budget(slices: int, budget: int) -> None:
    """Raise LayoutError unless slices >= 1 and 1 <= budget <= slices!, both whole numbers."""
    for name, value in (("slices", slices), ("budget", budget)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise LayoutError(f"{name}={value} is not possible: give an integer of at least 1")
    if slices <= 20 and budget > math.factorial(slices):
        raise LayoutError(
            f"budget={budget} exceeds the {math.factorial(slices)} orders that {slices} slices have; "
            f"give 1..{math.factorial(slices)}"
        )


def check_horizon(horizon: int) -> None:
    """Raise LayoutError unless ``horizon``, a number of requests, is a whole number of at least 0."""
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 0:
        raise LayoutError(f"horizon={horizon} is not possible: give an integer of at least 0")


def generator(seed: int, *more: int) -> np.random.Generator:
    """Return the generator for a seed, any whole number, and what else its stream belongs to."""
    return np.random.default_rng([seed % 2**64, *more])
