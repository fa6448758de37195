"""Deletion rate: how many requests a system bears until no shard is live, in closed form and by quadrature.

Source: arXiv 2406.16257, section 4 (orders of growth); the closed form and the integral for arbitrary request probabilities
are our sharpening of them.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad

from s3t.capacity.checks import probabilities_of
from s3t.errors import LayoutError
from s3t.records import Layout


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
    q = probabilities_of(first_slice_probabilities).ravel()
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
