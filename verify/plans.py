"""Plans by method name, from docs/DERIVATION.md ("Plans", "Analytic head"), and the plan that a run declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from s3t.errors import RunError
from verify.derive import Prefix, cyclic

LAZY = ("s3t", "sequential", "sisa-lora-lazy", "sisa-full-lazy")
EAGER = ("sisa-lora", "sisa-full", "retrain-lora", "retrain-full")
METHODS = LAZY + EAGER
ANALYTIC = "analytic"
"""The method whose plan is an analytic head and nothing else: no stages, so no nodes, and nothing to train."""

Pooling = Literal["mean", "first", "last", "max"]
Form = Literal["ridge", "balanced", "prototypes"]
ENSEMBLING = {"weights": ("equal", "length", "square"), "pool": ("linear", "logarithmic")}
"""How what serves is weighed and brought together; the first is so where nothing is declared."""


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
class Head:
    """An analytic head as declared: whose features it reads, how they are quantised (``step``), how it is solved."""

    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    random: int
    step: float
    form: str
    ridge: float
    temperature: float

    def features(self, layers: int, hidden: int) -> int:
        """Return how many features a record has on a base model of ``layers`` layers of ``hidden`` features."""
        return (len(self.layers) or layers) * len(self.poolings) * hidden + self.random


@dataclass(frozen=True)
class Plan:
    """Layout, orders (the same for every shard), one stage per slice, and whether deletions are made good at once.

    ``head``: the analytic head that serves beside the chains, if any, and ``share``, what it weighs there. ``weights``: of
    chains among one another; ``pool``: how the head's probabilities and theirs become one.
    """

    method: str
    shards: int
    slices: int
    budget: int
    orders: tuple[Prefix, ...]
    stages: tuple[Stage, ...]
    eager: bool
    design: Design = PAPER
    head: Head | None = None
    share: float = 0.0
    weights: str = "equal"
    pool: str = "linear"

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
            *_head(raw, run),
            *(raw.get(name, known[0]) for name, known in ENSEMBLING.items()),
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


def _head(raw: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[Head | None, float]:
    """Return the analytic head and its share; both are declared or neither is."""
    if ("head" in raw) != ("share" in raw):
        raise ValueError("it has a head or a share, and not both")
    if "head" not in raw:
        return None, 0.0
    told = dict(raw["head"])
    if set(told) != set(Head.__dataclass_fields__):
        raise ValueError(f"its head has {sorted(told)}; it must have {sorted(Head.__dataclass_fields__)}")
    head = Head(
        tuple(int(layer) for layer in told["layers"]),
        tuple(str(pooling) for pooling in told["poolings"]),
        int(told["random"]),
        float(told["step"]),
        str(told["form"]),
        float(told["ridge"]),
        float(told["temperature"]),
    )
    share = float(raw["share"])
    if fault := _head_fault(head, share, int(run["model"]["layers"])):
        raise ValueError(fault)
    return head, share


def _head_fault(head: Head, share: float, layers: int) -> str:
    """Return what is impossible about an analytic head on a base model of ``layers`` layers, or nothing."""
    if not 0 < share <= 1:
        return f"the head's share is {share}; it is above 0 and at most 1"
    if len(set(head.layers)) != len(head.layers) or not set(head.layers) <= set(range(layers)):
        return f"the head reads layers {list(head.layers)}; the base model has {layers}, each read once"
    if not head.poolings or len(set(head.poolings)) != len(head.poolings):
        return f"the head's poolings are {list(head.poolings)}; it has at least one, each once"
    if not set(head.poolings) <= set(get_args(Pooling)) or head.form not in get_args(Form):
        return f"the head's poolings {list(head.poolings)} or form {head.form!r} are unknown"
    if head.random < 0 or not all(0 < number < math.inf for number in (head.step, head.ridge, head.temperature)):
        return "a number of the head is not positive"
    if math.frexp(head.step)[0] != 0.5:
        return f"the head's step is {head.step}; it is a power of two"
    return ""


def _fault(plan: Plan) -> str:
    if min(plan.shards, plan.slices, plan.budget) < 1:
        return f"shards={plan.shards}, slices={plan.slices}, budget={plan.budget}; all are at least 1"
    if plan.method == ANALYTIC:
        if plan.stages or plan.head is None:
            return f"{ANALYTIC} with {len(plan.stages)} stages; it has none, and a head"
    elif len(plan.stages) != plan.slices:
        return f"{len(plan.stages)} stages for {plan.slices} slices; there is one per slice"
    if any(stage.kind not in ("lora", "full") or not stage.epochs > 0 for stage in plan.stages):
        return "a stage is of unknown kind or has no epochs"
    for order in plan.orders:
        if sorted(order) != list(range(plan.slices)):
            return f"order {list(order)} is no permutation of 0..{plan.slices - 1}"
    for name, known in ENSEMBLING.items():
        if getattr(plan, name) not in known:
            return f"{name} {getattr(plan, name)!r} is unknown; known are {', '.join(known)}"
    if len(set(plan.orders)) != len(plan.orders) or len(plan.orders) != plan.budget:
        return f"{len(set(plan.orders))} distinct orders for budget={plan.budget}"
    if plan.design != PAPER and plan.method != "s3t":
        return f"{plan.method} declares a design ({plan.design}); only s3t has one"
    return ""


def documented_plan(
    method: str, *, shards: int, slices: int, budget: int, layers: int, epochs: float, design: Design = PAPER
) -> Plan | None:
    """Return the plan that the table gives for ``method`` on a base model of ``layers`` layers; None if it has none.

    ``design``: what is declared of S3T's stages. A head is the run's own choice: what the table gives is without one.
    """
    if method == ANALYTIC:
        return Plan(method, 1, 1, 1, cyclic(1, 1), (), eager=False, share=1.0)
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
    if documented.share and declared.share != documented.share:
        faults.append(f"the head's share is {declared.share}, the method has {documented.share}")
    for i, (found, wanted) in enumerate(zip(declared.stages, documented.stages, strict=False)):
        same_layers = found.layers == wanted.layers or (wanted.kind == "full" and not found.layers)
        others = [(s.adapter, s.kind, s.epochs, s.fresh_head) for s in (found, wanted)]
        if others[0] != others[1] or not same_layers:
            faults.append(f"stage {i} is {found}, the method has {wanted}")
    return faults
