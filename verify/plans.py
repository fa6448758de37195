"""Plans by method name, from the table of docs/DERIVATION.md ("Plans"), and the plan that a run declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from s3t.errors import RunError
from verify.derive import Prefix, cyclic

LAZY = ("s3t", "sequential", "sisa-lora-lazy", "sisa-full-lazy")
EAGER = ("sisa-lora", "sisa-full", "retrain-lora", "retrain-full")
METHODS = LAZY + EAGER


@dataclass(frozen=True)
class Stage:
    """What one stage trains: the adapter, its layers (indices from the input side) and the number of epochs."""

    adapter: str
    kind: Literal["lora", "full"]
    layers: tuple[int, ...]
    epochs: float
    fresh_head: bool = False


@dataclass(frozen=True)
class Design:
    """How S3T's stages were chosen: ``sizes`` (layers per block; None: n // L for all), ``bottom_up``, and so on."""

    sizes: tuple[int, ...] | None = None
    bottom_up: bool = False
    cumulative: bool = True
    fresh_head: bool = False
    stacked: bool = False


PAPER = Design()
"""What is so where nothing is declared."""


@dataclass(frozen=True)
class Plan:
    """Layout, orders (the same for every shard), one stage per slice, and whether deletions are made good at once."""

    method: str
    shards: int
    slices: int
    budget: int
    orders: tuple[Prefix, ...]
    stages: tuple[Stage, ...]
    eager: bool
    design: Design = PAPER

    def pieces(self, prefix: Prefix) -> Prefix:
        """Return the slices whose rows a node reads: all of its prefix, or the last alone."""
        return prefix if self.design.cumulative else prefix[-1:]


def declared_plan(run: Mapping[str, Any]) -> Plan:
    """Return the plan in run.json. Raises RunError if it cannot be one."""
    try:
        raw = run["plan"]
        layout = raw["layout"]
        stages = tuple(
            Stage(
                str(s["adapter"]),
                s["kind"],
                tuple(int(i) for i in s["layers"]),
                float(s["epochs"]),
                bool(s.get("fresh_head", False)),
            )
            for s in raw["stages"]
        )
        orders = tuple(tuple(int(i) for i in order) for order in raw["orders"])
        plan = Plan(
            str(raw["method"]),
            int(layout["shards"]),
            int(layout["slices"]),
            int(layout["budget"]),
            orders,
            stages,
            bool(raw["eager"]),
            _design(raw.get("design", {}), cumulative=bool(raw["cumulative"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"run.json has no readable plan ({type(error).__name__}: {error})") from error
    fault = _fault(plan)
    if fault:
        raise RunError(f"run.json has an impossible plan: {fault}")
    return plan


def _design(raw: Mapping[str, Any], *, cumulative: bool) -> Design:
    if unknown := sorted(set(raw) - {"block_layers", "bottom_up", "fresh_head", "stacked"}):
        raise ValueError(f"its design has unknown {unknown}")
    sizes = tuple(int(size) for size in raw["block_layers"]) if "block_layers" in raw else None
    bottom_up, fresh, stacked = (bool(raw.get(name, False)) for name in ("bottom_up", "fresh_head", "stacked"))
    return Design(sizes, bottom_up, cumulative, fresh, stacked)


def _fault(plan: Plan) -> str:
    if min(plan.shards, plan.slices, plan.budget) < 1:
        return f"shards={plan.shards}, slices={plan.slices}, budget={plan.budget}; all are at least 1"
    if len(plan.stages) != plan.slices:
        return f"{len(plan.stages)} stages for {plan.slices} slices; there is one per slice"
    if any(stage.kind not in ("lora", "full") or not stage.epochs > 0 for stage in plan.stages):
        return "a stage is of unknown kind or has no epochs"
    for order in plan.orders:
        if sorted(order) != list(range(plan.slices)):
            return f"order {list(order)} is no permutation of 0..{plan.slices - 1}"
    if len(set(plan.orders)) != len(plan.orders) or len(plan.orders) != plan.budget:
        return f"{len(set(plan.orders))} distinct orders for budget={plan.budget}"
    if plan.design != PAPER and plan.method != "s3t":
        return f"{plan.method} declares a design ({plan.design}); only s3t has one"
    return ""


def documented_plan(
    method: str, *, shards: int, slices: int, budget: int, layers: int, epochs: float, design: Design = PAPER
) -> Plan | None:
    """Return the plan that the table gives for ``method`` on a base model of ``layers`` layers; None if it has none.

    ``design``: what is declared of S3T's stages.
    """
    if method not in METHODS:
        return None
    if method.startswith("retrain-"):
        shards = slices = budget = 1
    each = 2 * epochs / (slices + 1) if method.startswith("sisa-") else epochs
    everything = tuple(range(layers))
    if method == "s3t":
        blocks = _blocks(layers, slices, design)
        if blocks is None:
            return None
        stages = tuple(
            Stage(f"block-{i:02d}", "lora", block, each, design.fresh_head and i > 0) for i, block in enumerate(blocks)
        )
    elif method.endswith("-full") or "-full-" in method:
        stages = (Stage("full", "full", everything, each),) * slices
    else:
        stages = (Stage("all", "lora", everything, each),) * slices
    return Plan(method, shards, slices, budget, cyclic(slices, budget), stages, method in EAGER, design)


def _blocks(layers: int, slices: int, design: Design) -> list[tuple[int, ...]] | None:
    """Return the layers of each block, dealt out one block after the other; None if they do not fit."""
    if design.stacked:
        return [tuple(range(layers))] * slices if design.sizes is None and not design.bottom_up else None
    sizes = (layers // slices,) * slices if design.sizes is None else design.sizes
    if len(sizes) != slices or min(sizes) < 1 or sum(sizes) > layers:
        return None
    adapted = list(range(layers - sum(sizes), layers))
    blocks = []
    for size in sizes:
        block = adapted[:size] if design.bottom_up else adapted[-size:]
        adapted = adapted[size:] if design.bottom_up else adapted[:-size]
        blocks.append(tuple(block))
    return blocks


def plan_faults(declared: Plan, documented: Plan) -> list[str]:
    """Return in words how the declared plan departs from the documented one, orders aside."""
    faults = []
    for name in ("shards", "slices", "budget", "eager"):
        if getattr(declared, name) != getattr(documented, name):
            faults.append(f"{name} is {getattr(declared, name)}, the method has {getattr(documented, name)}")
    for i, (found, wanted) in enumerate(zip(declared.stages, documented.stages, strict=False)):
        same_layers = found.layers == wanted.layers or (wanted.kind == "full" and not found.layers)
        others = [(s.adapter, s.kind, s.epochs, s.fresh_head) for s in (found, wanted)]
        if others[0] != others[1] or not same_layers:
            faults.append(f"stage {i} is {found}, the method has {wanted}")
    return faults
