"""The best orders as families of sets, one per length: a bound, and a search that proves an optimum for few slices.

B orders are B maximal chains of sets of slices, one set of each size. Only the families of their j-sets matter: with F_j
the family of size j, the expected best length is the sum over j of P(some set of F_j is unhit). Given families are those
of at most B chains exactly if consecutive ones can be linked, which Dilworth's theorem decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from s3t.orders.value import Unhit
from s3t.records import Order

PROVABLE = 6
"""Most slices for which families are searched; the largest level of 7 slices has 2^35 of them."""
STEPS = 5_000
"""Families tried before the search gives up."""
EQUAL = 1e-9
"""Values whose ratio is closer to 1 than this are equal."""

Family = tuple[int, ...]


def sets_of_size(slices: int, size: int) -> list[int]:
    """Return all sets of ``size`` slices as bit masks, ascending."""
    return [mask for mask in range(1 << slices) if mask.bit_count() == size]


def chains_through(families: Sequence[Family], slices: int) -> list[Order]:
    """Return the fewest orders whose prefixes of length 1, 2, ... go through all sets of ``families[0]``, ``[1]``, ...

    All prefixes up to ``len(families)`` stay in the families; the rest of an order ascends. Empty list if some set has
    no subset in the family before or no superset in the one behind. By Dilworth's theorem a smallest cover by chains is a
    largest matching of sets with larger ones that can be reached through the families.
    """
    sets = [one for family in families for one in family]
    level = {one: i for i, family in enumerate(families) for one in family}
    up: dict[int, list[int]] = {one: [] for one in sets}
    for lower, upper in itertools.pairwise(families):
        for one in lower:
            up[one] = [other for other in upper if one & other == one]
        if not all(up[one] for one in lower) or any(not any(o & u == o for o in lower) for u in upper):
            return []
    above: dict[int, dict[int, int]] = {}  # reachable set -> the first step towards it
    for one in reversed(sets):
        reach = {step: step for step in up[one]}
        for step in up[one]:
            reach |= {far: step for far in above[step] if far not in reach}
        above[one] = reach
    number = {one: i for i, one in enumerate(sets)}
    pairs = np.array([(number[one], number[far]) for one in sets for far in above[one]], dtype=np.int64).reshape(-1, 2)
    graph = csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(sets), len(sets)))
    partner = maximum_bipartite_matching(graph, perm_type="column")
    follows = {sets[i]: sets[j] for i, j in enumerate(partner) if j >= 0}
    down = {u: next(o for o in sets if level[o] == level[u] - 1 and o & u == o) for u in sets if level[u]}
    return [_order(start, follows, above, down, slices) for start in sets if start not in set(follows.values())]


def _order(
    start: int, follows: dict[int, int], above: dict[int, dict[int, int]], down: dict[int, int], slices: int
) -> Order:
    path = [start]
    while path[0] in down:
        path.insert(0, down[path[0]])
    while path[-1] in follows or above[path[-1]]:
        goal = follows.get(path[-1])
        while goal is not None and path[-1] != goal:
            path.append(above[path[-1]][goal])
        if goal is None:
            path.append(next(iter(above[path[-1]].values())))
    last = [0, *path]
    head = [(b ^ a).bit_length() - 1 for a, b in itertools.pairwise(last)]
    return (*head, *(item for item in range(slices) if item not in head))


@dataclass(eq=False)
class FamilySearch:
    """Depth-first search over the families of every size, best first, for one law and budget.

    ``floor``: a value that is reached already; only families whose bound is above it are tried.
    """

    law: Unhit
    budget: int
    floor: float
    steps: int = STEPS
    found: list[Order] = field(default_factory=list)
    _levels: list[tuple[list[int], NDArray[np.int64], NDArray[np.float64]]] = field(default_factory=list)
    _most: list[float] = field(default_factory=list)

    def run(self) -> bool:
        """Search; ``found`` is then a better set of orders, if there is one. Return whether the search was complete."""
        slices = self.law.slices
        self._levels = [self._level(size) for size in range(1, slices)]
        everything = float(self.law.chances[-1])
        best = [float(values[0]) for *_, values in self._levels]
        self._most = [sum(best[i:]) + everything for i in range(slices)]
        return self._descend([], 0.0)

    def _level(self, size: int) -> tuple[list[int], NDArray[np.int64], NDArray[np.float64]]:
        """Return the sets of a size, and all families of at most ``budget`` of them as bit masks with P(some is unhit)."""
        sets = sets_of_size(self.law.slices, size)
        families = np.arange(1, 1 << len(sets), dtype=np.int64)
        families = families[np.bitwise_count(families) <= self.budget]
        values = np.zeros(families.size)
        for unhit, chance in enumerate(self.law.chances):
            inside = sum(1 << i for i, one in enumerate(sets) if one & unhit == one)
            if inside:
                values += chance * ((families & inside) != 0)
        order = np.argsort(-values, kind="stable")
        return sets, families[order], values[order]

    def _descend(self, above: list[Family], value: float) -> bool:
        depth = len(above)
        if depth == len(self._levels):
            orders = chains_through(above, self.law.slices)
            total = value + float(self.law.chances[-1])
            if orders and len(orders) <= self.budget and total > self.floor * (1.0 + EQUAL):
                self.floor, self.found = total, orders
            return True
        sets, families, values = self._levels[depth]
        can = (value + values + self._most[depth + 1]) > self.floor * (1.0 + EQUAL)
        families, values = families[can], values[can]
        if depth:
            fits = _linked(families, above[-1], sets)
            families, values = families[fits], values[fits]
        for family, adds in zip(families.tolist(), values.tolist(), strict=True):
            if value + adds + self._most[depth + 1] <= self.floor * (1.0 + EQUAL):
                break
            if self.steps <= 0:
                return False
            self.steps -= 1
            chosen: Family = tuple(one for i, one in enumerate(sets) if family >> i & 1)
            if depth and len(chains_through([*above, chosen], self.law.slices)) not in range(1, self.budget + 1):
                continue
            if not self._descend([*above, chosen], value + adds):
                return False
        return True


def _linked(families: NDArray[np.int64], below: Family, sets: Sequence[int]) -> NDArray[np.bool_]:
    """Return which families have a superset of every set of ``below``, and no set that has no subset there."""
    over = [sum(1 << i for i, one in enumerate(sets) if low & one == low) for low in below]
    allowed = 0
    for some in over:
        allowed |= some
    fits = (families & ~np.int64(allowed)) == 0
    for some in over:
        fits &= (families & some) != 0
    return np.asarray(fits)
