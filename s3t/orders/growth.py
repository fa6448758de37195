"""Matching: orders grown together for known request probabilities; the square's first, then ever more below it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from s3t.orders.assignment import square
from s3t.orders.checks import Floats, check_budget, check_horizon, prior_of
from s3t.orders.value import DENSE, Unhit, kept_lengths, powers, worths
from s3t.records import Order

NEAR_TIE = 1e-9
"""Gains whose ratio is closer to 1 than this are equal."""


def matching(
    probabilities: ArrayLike, horizon: int = 100, score: str = "expected_length", budget: int | None = None
) -> list[Order]:
    """Return ``budget`` distinct orders (None: one per slice) chosen for known request probabilities, by matchings.

    One order per slice is grown at once: at each position an assignment of slices to orders maximises the score of the
    extended orders after ``horizon`` requests, a slice already in an order forbidden. Budget = slices is a Latin square.

    ``score``, with c_j the request probability of an order's first j slices, T the horizon:
    "paper" is the sum over all orders of sum_j j (1 - c_j)^T, as in the paper's implementation. Orders are scored one by
    one, so that two of them may hold the same slices in another order, though one request cuts both. The factor j is
    common to all candidates of a position: sum_j (1 - c_j)^T summed over the orders gives the same square.
    "expected_length" (ours) scores the orders together, by the expected length of the best surviving chain, which is
    sum_j (1 - c_j)^T for a single order: equal sets of slices count once. Beyond 16 slices it is taken as "paper".

    Within the square, orders that add most to the expected score of the best surviving chain come first, one after
    the other. Further orders split the rest below a first slice again, by a square of its own; of the next order below
    each first slice, the one that adds most is taken. Budget b gives the first b orders of every larger budget.
    Beyond 16 slices an order's own score decides. Ties go to rotations of the slices, rarest first. Deterministic.

    Raises LayoutError for impossible probabilities, horizon, score, or a budget outside 1..slices!.
    Source: arXiv 2406.16257, section 3.3 and its implementation; docs/DERIVATION.md, "Orders".
    """
    p = prior_of(probabilities)
    budget = p.size if budget is None else budget
    check_budget(p.size, budget)
    check_horizon(horizon)
    by_rank = np.lexsort((np.arange(p.size), p))
    ascending = p[by_rank]
    law = Unhit.after(ascending, horizon) if p.size <= DENSE else None
    grown = _Growth(ascending, horizon, worths(score, p.size), law, together=score == "expected_length").orders()
    return [tuple(by_rank[list(order)].tolist()) for order in itertools.islice(grown, budget)]


@dataclass(frozen=True, eq=False)
class _Growth:
    """The rule for given probabilities ``p``, ascending; ``law`` None: too many slices to take orders together."""

    p: Floats
    horizon: int
    worth: Floats
    law: Unhit | None
    together: bool

    def orders(self) -> Iterator[Order]:
        """Yield all orders, those of the square first."""
        gains = None if self.law is None else _Gains(self.law, self.worth)
        rows = self.rows(tuple(range(self.p.size)), ())
        left = list(rows)
        while left:
            yield left.pop(gains.take(left) if gains else 0)
        below = [self.below((row[0],), row[1:]) for row in rows]
        heads = [next(orders, None) for orders in below]
        used = [0] * len(rows)
        while fair := sorted((used[i], i, order) for i, order in enumerate(heads) if order is not None):
            _, at, order = fair[gains.take([order for *_, order in fair]) if gains else 0]
            used[at] += 1
            heads[at] = next(below[at], None)
            yield order

    def rows(self, items: Order, before: Order) -> list[Order]:
        """Return the square of ``items`` after the slices ``before``, rows of largest score first."""
        rows = square(self.p, items, before, self.horizon, self.law if self.together else None)
        mass = self.p[list(before)].sum() + np.cumsum(self.p[np.asarray(rows)], axis=1)
        logs = powers(mass, self.horizon)
        adds = np.diff(self.worth)[len(before) :]
        scores = np.exp(logs - logs.max()) @ adds if np.isfinite(logs.max()) else np.zeros(len(rows))
        return [rows[i] for i in np.argsort(-scores, kind="stable")]

    def below(self, before: Order, rest: Order) -> Iterator[Order]:
        """Yield all orders that begin with ``before`` but for the one that goes on with ``rest``."""
        if len(rest) < 2:
            return
        others = (row for row in self.rows(tuple(sorted(rest)), before) if row[0] != rest[0])
        rows = [rest, *others]
        yield from ((*before, *row) for row in rows[1:])
        deeper = [self.below((*before, row[0]), row[1:]) for row in rows]
        for turn in itertools.zip_longest(*deeper):
            yield from (order for order in turn if order is not None)


class _Gains:
    """What an order adds to the expected score of the best surviving chain, beside those taken already."""

    def __init__(self, law: Unhit, worth: Floats) -> None:
        self.law, self.worth = law, worth
        self.table = np.zeros(1 << law.slices)

    def take(self, orders: Sequence[Order]) -> int:
        """Take the order that adds most, the first of equals, and return its index."""
        tables = self.worth[kept_lengths(orders)]
        gains = self.law.mean(np.maximum(tables - self.table, 0.0))
        at = int(np.argmax(gains >= gains.max() * (1.0 - NEAR_TIE)))
        np.maximum(self.table, tables[at], out=self.table)
        return at
