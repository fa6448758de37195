"""The set of orders that maximises what is served: the expected length of the best surviving chain. Ours, not the paper's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.errors import LayoutError
from s3t.orders.checks import check_budget, check_horizon, generator, prior_of
from s3t.orders.growth import matching
from s3t.orders.rotations import cyclic
from s3t.orders.value import Unhit, expected_best, kept_lengths
from s3t.records import Order

MOST = 12
"""Most slices; the search looks at 2^slices sets per order tried."""
LISTED = 6
"""Up to this many slices every order is tried in the place of another; beyond, those that differ by moving one slice or
exchanging two."""
BETTER = 1e-9
"""A step of the search must add more than this share."""


@dataclass(frozen=True)
class Choice:
    """Chosen orders, the expected length of their best surviving chain, and whether no set of as many is better.

    Proven means that no other set's value is larger by more than a billionth of it.
    """

    orders: tuple[Order, ...]
    value: float
    proven: bool


def best(probabilities: ArrayLike, budget: int, horizon: int, seed: int = 0, starts: int = 4) -> list[Order]:
    """Return the orders of :func:`choose`."""
    return list(choose(probabilities, budget, horizon, seed, starts).orders)


def choose(probabilities: ArrayLike, budget: int, horizon: int, seed: int = 0, starts: int = 4) -> Choice:
    """Return the ``budget`` orders that maximise the expected length of the best chain kept after ``horizon`` requests.

    Proven for budget 1 (slices from the rarest on: each prefix has the least probability of its length); for a budget of
    at least C(L, L // 2), the width of the lattice of subsets, whose chains cover all sets so that the best chain is all
    of the unhit slices; and up to 6 slices by a search over the families of prefixes, unless it takes too many steps.
    Otherwise the best of ``starts`` local searches, the first from :func:`matching`, with the exact value.

    Budget b need not be contained in a larger budget. Deterministic given ``seed``. Raises LayoutError for impossible
    probabilities, horizon, budget or starts, and for more than 12 slices.
    """
    p = prior_of(probabilities)
    check_budget(p.size, budget)
    check_horizon(horizon)
    if p.size > MOST:
        raise LayoutError(f"slices={p.size} are too many to choose the best orders: at most {MOST}; use matching")
    if starts < 1:
        raise LayoutError(f"starts={starts} is not possible: give an integer of at least 1")
    by_rank = np.lexsort((np.arange(p.size), p))
    found, proven = _chosen(p[by_rank], budget, horizon, seed, starts)
    orders = tuple(tuple(by_rank[list(order)].tolist()) for order in found)
    return Choice(orders, expected_best(orders, p, horizon), proven)


def _chosen(p: NDArray[np.float64], budget: int, horizon: int, seed: int, starts: int) -> tuple[list[Order], bool]:
    """Return the orders for ascending probabilities, and whether they are proven."""
    from s3t.orders.levels import PROVABLE, FamilySearch, chains_through, sets_of_size

    slices = p.size
    if budget == 1:
        return [tuple(range(slices))], True
    if budget >= math.comb(slices, slices // 2):
        lattice = [tuple(sets_of_size(slices, size)) for size in range(1, slices)]
        return _filled(chains_through(lattice, slices), slices, budget), True
    law = Unhit.after(p, horizon)
    rng = generator(seed, slices, budget, horizon)
    found, value = _climbed(matching(p, horizon, "expected_length", budget), law)
    for _ in range(starts - 1):
        drawn = dict.fromkeys(tuple(rng.permutation(slices).tolist()) for _ in range(budget))
        other, worth = _climbed(_filled(list(drawn), slices, budget), law)
        if worth > value * (1.0 + BETTER):
            found, value = other, worth
    if slices > PROVABLE:
        return found, False
    search = FamilySearch(law, budget, value)
    proven = search.run()
    return _filled(search.found, slices, budget) if search.found else found, proven


def _filled(orders: Sequence[Order], slices: int, budget: int) -> list[Order]:
    """Return ``orders`` and the first cyclic ones that are not among them, ``budget`` in all."""
    known = set(orders)
    more = (order for order in cyclic(slices, min(2 * budget, math.factorial(slices))) if order not in known)
    return [*orders, *itertools.islice(more, budget - len(orders))]


def _climbed(orders: Sequence[Order], law: Unhit) -> tuple[list[Order], float]:
    """Replace one order at a time by the best of its neighbours until none is better; return the orders and their value."""
    found = list(orders)
    tables = kept_lengths(found)
    value = float(law.mean(tables.max(axis=0)))
    listed = list(itertools.permutations(range(law.slices))) if law.slices <= LISTED else None
    everyones = None if listed is None else kept_lengths(listed)
    unchanged = 0
    for at in itertools.cycle(range(len(found))):
        others = np.delete(tables, at, axis=0).max(axis=0)
        near = _neighbours(found[at]) if listed is None else listed
        theirs = kept_lengths(near) if everyones is None else everyones
        values = law.mean(np.maximum(others, theirs))
        to = int(values.argmax())
        unchanged += 1
        if values[to] > value * (1.0 + BETTER):
            found[at], tables[at], value, unchanged = near[to], theirs[to], float(values[to]), 0
        if unchanged == len(found):
            return found, value
    raise AssertionError("a cycle does not end")


def _neighbours(order: Order) -> list[Order]:
    """Return the orders that differ by exchanging two slices or by moving one, without repeats."""
    near: dict[Order, None] = {}
    for i, j in itertools.combinations(range(len(order)), 2):
        swapped = list(order)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        up, down = list(order), list(order)
        up.insert(j, up.pop(i))
        down.insert(i, down.pop(j))
        near |= dict.fromkeys((tuple(swapped), tuple(up), tuple(down)))
    return list(near)
