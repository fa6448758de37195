"""Orders: exhausted for small layouts, and compared with the recursion that docs/DERIVATION.md spells out."""

from __future__ import annotations

import math
import time

import pytest

from s3t.errors import LayoutError
from s3t.orders import cyclic

SMALL = range(1, 7)


def branch(items: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Slow oracle: the recursion of docs/DERIVATION.md, "Orders", word for word."""
    if not items:
        return [()]
    rotations = [items[f:] + items[:f] for f in range(len(items))]
    subs = [branch(rotation[1:]) for rotation in rotations]
    return [(rotations[f][0], *subs[f][j]) for j in range(len(subs[0])) for f in range(len(items))]


@pytest.mark.parametrize("slices", SMALL)
def test_every_budget_agrees_with_the_recursion(slices: int) -> None:
    expected = branch(tuple(range(slices)))
    for budget in range(1, math.factorial(slices) + 1):
        assert cyclic(slices, budget) == expected[:budget]


@pytest.mark.parametrize("slices", SMALL)
def test_every_budget_gives_distinct_permutations_with_the_prefix_property(slices: int) -> None:
    everything = cyclic(slices, math.factorial(slices))
    for budget in range(1, math.factorial(slices) + 1):
        orders = cyclic(slices, budget)
        assert len(set(orders)) == budget
        assert all(sorted(order) == list(range(slices)) for order in orders)
        assert orders == everything[:budget]


@pytest.mark.parametrize("slices", SMALL)
def test_first_slices_number_the_smaller_of_budget_and_slices(slices: int) -> None:
    for budget in range(1, math.factorial(slices) + 1):
        assert len({order[0] for order in cyclic(slices, budget)}) == min(budget, slices)


@pytest.mark.parametrize("slices", SMALL)
def test_prefixes_of_every_length_are_as_many_as_can_be(slices: int) -> None:
    for budget in range(1, math.factorial(slices) + 1):
        orders = cyclic(slices, budget)
        for length in range(1, slices + 1):
            assert len({order[:length] for order in orders}) == min(budget, math.perm(slices, length))


def test_up_to_slices_orders_are_the_rotations() -> None:
    assert cyclic(4, 4) == [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)]


def test_the_first_splits_by_hand() -> None:
    assert cyclic(3, 6) == [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0)]


def test_large_layouts_are_lazy() -> None:
    start = time.perf_counter()
    orders = cyclic(12, 30)
    assert time.perf_counter() - start < 1.0, "30 of 479001600 orders must not enumerate the rest"
    assert len(set(orders)) == 30


@pytest.mark.parametrize(
    ("slices", "budget", "message"),
    [
        (0, 1, r"slices=0 is not possible: give an integer of at least 1"),
        (-3, 1, r"slices=-3 is not possible"),
        (4, 0, r"budget=0 is not possible: give an integer of at least 1"),
        (4, -1, r"budget=-1 is not possible"),
        (3, 7, r"budget=7 exceeds the 6 orders that 3 slices have; give 1\.\.6"),
    ],
)
def test_impossible_layouts_are_refused_with_value_bound_and_remedy(slices: int, budget: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        cyclic(slices, budget)
