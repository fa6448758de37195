"""Methods by name, as the functions of capacity see them: a layout, its orders, and when deletions retrain."""

from __future__ import annotations

from dataclasses import dataclass

from s3t.errors import LayoutError, did_you_mean
from s3t.orders import cyclic
from s3t.records import Layout, Order

LAZY = ("s3t", "sequential", "sisa-lora-lazy", "sisa-full-lazy")
"""Methods that serve what survives until a refresh."""
EAGER = ("sisa-lora", "sisa-full", "retrain-lora", "retrain-full")
"""Methods that retrain within every deletion."""
UNDIVIDED = ("retrain-lora", "retrain-full")
"""Methods with one model of all data: one shard of one slice."""


@dataclass(frozen=True)
class MethodView:
    """A method as data: ``layout`` and ``orders`` of every shard. ``eager``: it retrains within each deletion.

    An eager system is never dead: every request is a rebuild, at once. Its capacity in the sense of these functions is
    that of the same system if it did not retrain: how many requests it would bear between rebuilds if they were put off.
    """

    method: str
    layout: Layout
    orders: tuple[Order, ...]
    eager: bool


def view_of(method: str, layout: Layout) -> MethodView:
    """Return ``method`` with cyclic orders; full retraining pays no heed to ``layout``.

    A method with one order, as SISA was published, has budget 1. Raises LayoutError for an unknown method.
    """
    if method not in LAZY + EAGER:
        hint = did_you_mean(method, LAZY + EAGER)
        raise LayoutError(f"method {method!r} is unknown{hint}; known are {', '.join(LAZY + EAGER)}")
    own = Layout(1, 1, 1) if method in UNDIVIDED else layout
    return MethodView(method, own, tuple(cyclic(own.slices, own.budget)), method in EAGER)
