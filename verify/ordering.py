"""The orders that a declared rule chooses. The rules look at no record; they are shared with training, as the kernel is."""

from __future__ import annotations

from typing import Any

from s3t.errors import LayoutError
from s3t.orders import Rule
from verify.derive import Prefix


def chosen(rule: Any, slices: int, budget: int) -> tuple[Prefix, ...]:
    """Return the orders of ``rule``, as run.json declares it; none if it is no rule that can choose them."""
    try:
        return Rule.from_json(rule).orders(slices, budget)
    except (LayoutError, TypeError, KeyError, AttributeError):
        return ()
