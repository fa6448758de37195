"""Every method by name: the table behind ``s3t train --method`` and the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from baselines.plans import analytic, retrain, sequential, sisa
from s3t.analytic.head import AnalyticHead
from s3t.design import Design
from s3t.errors import LayoutError, did_you_mean
from s3t.orders import Rule
from s3t.plan import MakePlan, Plan, s3t_plan
from s3t.records import Layout, Recipe


def _retrain_lora(layout: Layout, recipe: Recipe, layers: int) -> Plan:
    return retrain(recipe, layers, kind="lora")


def _analytic(layout: Layout, recipe: Recipe, layers: int) -> Plan:
    return analytic()


def _retrain_full(layout: Layout, recipe: Recipe, layers: int) -> Plan:
    return retrain(recipe, layers, kind="full")


METHODS: Mapping[str, MakePlan] = MappingProxyType(
    {
        "s3t": s3t_plan,
        "sequential": sequential,
        "sisa-lora": partial(sisa, kind="lora", eager=True),
        "sisa-lora-lazy": partial(sisa, kind="lora", eager=False),
        "sisa-full": partial(sisa, kind="full", eager=True),
        "sisa-full-lazy": partial(sisa, kind="full", eager=False),
        "retrain-lora": _retrain_lora,
        "retrain-full": _retrain_full,
        "analytic": _analytic,
    }
)
"""The constructor of each method's plan, by the plan's own ``method``."""

UNDIVIDED = ("retrain-lora", "retrain-full", "analytic")
"""Methods with one model on all data: their layout is always one shard of one slice."""


def find(method: str) -> MakePlan:
    """Return the constructor of a method's plan. LayoutError for an unknown method, with the closest known one."""
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise LayoutError(f"method {method!r} is unknown{hint}; known are {', '.join(METHODS)}")
    return METHODS[method]


def make_plan(
    method: str,
    layout: Layout,
    recipe: Recipe,
    layers: int,
    rule: Rule | None = None,
    design: Design | None = None,
    head: AnalyticHead | None = None,
    share: float | None = None,
    weights: str = "equal",
    pool: str = "linear",
) -> Plan:
    """Return the plan of ``method`` for a model of ``layers`` layers; undivided methods pay no heed to ``layout``.

    ``rule``: how the orders are chosen, cyclic if None. ``design``: how S3T's blocks lie, as in the paper if None. ``head``:
    an analytic head, beside the chains with weight ``share``, or what method ``analytic`` consists of. ``weights``,
    ``pool``: how what serves is weighed and brought together (:class:`s3t.plan.Plan`). Raises LayoutError for an unknown
    method, for a layout or a design that the model cannot carry, for a design of another method than S3T, for a rule that
    does not fit the slices, and for weights or a pool that the plan cannot have.
    """
    make = find(method)
    if design is not None and method != "s3t":
        raise LayoutError(f"{method} has no blocks to lay out ({design or 'a design'}): that is for s3t; leave it out")
    plan = make(layout, recipe, layers) if design is None else s3t_plan(layout, recipe, layers, design)
    plan = plan if rule is None else plan.ordered_by(rule)
    if method == "analytic":
        if share is not None:
            raise LayoutError(f"share={share!r}: method analytic has no chains beside its head; leave it out")
        return replace(analytic(head), weights=weights, pool=pool)
    if head is not None and share is None:
        raise LayoutError(f"method {method} has an analytic head beside its chains if its share is given, as 0.5")
    if share is not None:
        plan = plan.with_head(head or AnalyticHead(), share)
    return replace(plan, weights=weights, pool=pool)
