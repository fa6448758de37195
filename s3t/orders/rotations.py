"""Cyclic orders: rotations, split again below each first slice (docs/DERIVATION.md, "Orders")."""

from __future__ import annotations

from s3t.orders.checks import check_budget
from s3t.records import Order


def cyclic(slices: int, budget: int) -> list[Order]:
    """Return ``budget`` distinct orders of ``slices`` slices (0..slices-1), with prefixes as diverse as possible.

    Up to ``slices`` orders these are the rotations of 0..slices-1; beyond, the orders are split again below each first
    slice by rotating the rest, and so on; ``budget == slices!`` gives every permutation. ``cyclic(slices, b)`` is the
    first b of ``cyclic(slices, budget)``, so a run can be extended without losing what is trained.

    Raises LayoutError unless slices >= 1 and 1 <= budget <= slices!. Work grows with budget * slices^2, never slices!.
    Source: arXiv 2406.16257, section 3.2 (cyclic rotations, iterated); docs/DERIVATION.md, "Orders".
    """
    check_budget(slices, budget)
    return [_order_at(index, slices) for index in range(budget)]


def _order_at(index: int, slices: int) -> Order:
    """Return the ``index``-th order: its digits in the bases slices, slices - 1, ... are the rotations taken."""
    items = tuple(range(slices))
    order: list[int] = []
    while items:
        index, rotation = divmod(index, len(items))
        first, *rest = items[rotation:] + items[:rotation]
        order.append(first)
        items = tuple(rest)
    return tuple(order)
