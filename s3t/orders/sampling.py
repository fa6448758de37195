"""Sampled orders: conditional on the request probabilities (the paper's other rule), and uniform. Both are baselines."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from s3t.orders.checks import Floats, check_budget, generator, prior_of
from s3t.records import Order

LISTED = 7
"""Up to this many slices all orders are listed and drawn from; beyond, they are drawn one by one until distinct."""
REPEATS = 1000
"""So many repeats in a row, and the orders not drawn yet are taken in lexicographic order."""


def conditional(probabilities: ArrayLike, budget: int, seed: int) -> list[Order]:
    """Return ``budget`` distinct orders, each drawn slice by slice without replacement with weight 1 - p_l.

    An order that was drawn before is drawn again. A slice with p_l = 1 comes last, as long as such orders are left. The
    first b of a larger budget are those of budget b. Source: arXiv 2406.16257, section 3.3 (conditional sampling).

    Raises LayoutError for impossible probabilities or a budget outside 1..slices!.
    """
    p = prior_of(probabilities)
    check_budget(p.size, budget)
    return _distinct(1.0 - np.minimum(p, 1.0), budget, generator(seed, p.size))


def random(slices: int, budget: int, seed: int) -> list[Order]:
    """Return ``budget`` distinct orders, all sets of orders equally likely; the first b are those of budget b.

    Raises LayoutError unless slices >= 1 and 1 <= budget <= slices!.
    """
    check_budget(slices, budget)
    return _distinct(np.ones(slices), budget, generator(seed, slices))


def _distinct(weights: Floats, budget: int, rng: np.random.Generator) -> list[Order]:
    slices = weights.size
    if slices <= LISTED:
        orders = np.array(list(itertools.permutations(range(slices))))
        return [tuple(order) for order in orders[_drawn(_chances(weights, orders), rng)[:budget]].tolist()]
    found: dict[Order, None] = {}
    repeats = 0
    while len(found) < budget and repeats < REPEATS:
        order = tuple(_drawn(weights, rng).tolist())
        repeats = repeats + 1 if order in found else 0
        found[order] = None
    rest = (order for order in itertools.permutations(range(slices)) if order not in found)
    return [*found, *itertools.islice(rest, budget - len(found))]


def _drawn(weights: Floats, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return all indices in the order of successive draws without replacement with chances in proportion to ``weights``.

    The first of independent exponential times of rates w_i is i with probability w_i / sum w, and so on for the rest
    (Efraimidis and Spirakis, Information Processing Letters 97, 2006). Weights of 0 come last, in a random order.
    """
    times, ties = rng.exponential(size=weights.size), rng.random(weights.size)
    with np.errstate(divide="ignore"):
        return np.lexsort((ties, times / weights))


def _chances(weights: Floats, orders: np.ndarray[tuple[int, int], np.dtype[np.intp]]) -> Floats:
    """Return the probability of each order when its slices are drawn without replacement, shape (orders,)."""
    taken = weights[orders]
    left = np.cumsum(taken[:, ::-1], axis=1)[:, ::-1]
    ratio = np.divide(taken, left, out=1.0 / np.arange(weights.size, 0, -1) * np.ones_like(taken), where=left > 0)
    return np.asarray(ratio.prod(axis=1))
