"""The paper's formulas beside the exact ones (arXiv 2406.16257, section 4; docs/CAPACITY.md says where and why they differ)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from s3t.capacity.checks import check_requests, check_some_orders
from s3t.capacity.survival import best_length_distribution, survival
from s3t.errors import LayoutError
from s3t.records import Layout, Order


def growth_of_the_paper(shards: int, slices: int, budget: int) -> float:
    """Return m L ln(m B'), B' = min(B, L): what stands in the paper's order of growth O(m L log(m B')).

    Not a deletion rate: constants are left out, and at m B' = 1 it is 0 where the rate is L. LayoutError as a Layout.
    """
    layout = Layout(shards, slices, budget)
    return shards * slices * math.log(shards * min(layout.budget, slices))


def gap_of_the_paper(slices: int, j: int, budget: int, requests: int) -> float:
    """Return zeta (1 - zeta^(B' - 1)), zeta = 1 - (1 - j/L)^r, B' = min(B, L): the paper's gap between S3T and SISA.

    Meant: P(some order keeps its first j slices) - P(one order does) after r uniform requests to the shard. It takes the
    orders as independent. With disjoint prefixes they are that if the number of requests is Poisson; with exactly r of
    them the formula is a lower bound. Where prefixes overlap it may lie on either side. :func:`gap` is exact.
    Raises LayoutError for a budget or j that does not fit the slices, or negative requests.
    """
    layout = Layout(1, slices, budget)
    zeta = 1.0 - survival(slices, j, requests)
    return zeta * (1.0 - zeta ** (min(layout.budget, slices) - 1))


def gap(orders: Sequence[Order], j: int, requests: int) -> float:
    """Return P(some order keeps its first j slices) - P(one order does), after r uniform requests to the shard; exact.

    By inclusion-exclusion over the distinct sets of prefixes. Raises LayoutError as the functions of survival.
    """
    if len(orders) == 0:
        raise LayoutError("no orders given: a shard trains at least one")
    slices = len(orders[0])
    check_some_orders(orders, slices)
    check_requests(requests)
    one = survival(slices, j, requests)
    if j == 0:
        return 0.0
    distribution = best_length_distribution(orders, np.full(slices, 1.0 / slices), requests)
    return float(distribution[j:].sum()) - one


def prefixes_overlap(orders: Sequence[Order], j: int) -> bool:
    """Say whether two distinct sets of j first slices have a slice in common: then the paper's gap is no bound."""
    sets = {frozenset(order[:j]) for order in orders}
    return sum(map(len, sets)) > len(frozenset().union(*sets))
