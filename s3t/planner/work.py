"""The work of a plan, counted: nodes, layer passes and bytes, up front, per deletion and per rebuild. Pure, no torch.

A node of ``i`` slices reads their records (its last slice alone if the plan is not cumulative) once per epoch; every record
pass costs the model's layers forward and those above the lowest trained one backward (SPEC section 4, as the kernel counts
them). Slices are taken as equal, so counts are means over random partitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s3t.capacity.demand import Demand
from s3t.errors import LayoutError
from s3t.plan import Plan, Stage
from s3t.records import Order


@dataclass(frozen=True)
class Work:
    """Counts, additive. ``layer_passes``: records times layers forward plus backward; ``lora_layers``: layers' adapters
    stored, and ``full_models``: whole models stored."""

    nodes: float = 0.0
    record_passes: float = 0.0
    layer_passes: float = 0.0
    lora_layers: float = 0.0
    full_models: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.nodes + other.nodes,
            self.record_passes + other.record_passes,
            self.layer_passes + other.layer_passes,
            self.lora_layers + other.lora_layers,
            self.full_models + other.full_models,
        )

    def __mul__(self, factor: float) -> Work:
        return Work(
            self.nodes * factor,
            self.record_passes * factor,
            self.layer_passes * factor,
            self.lora_layers * factor,
            self.full_models * factor,
        )


def upfront(plan: Plan, records: float, layers: int) -> Work:
    """Return what training ``plan`` on ``records`` records costs, for a model of ``layers`` layers.

    Orders with a common prefix share its node. Raises LayoutError for less than one record per slice.
    """
    nodes = [_node(plan, len(prefix), records, layers) for prefix in _prefixes(plan)]
    return sum(nodes, Work()) * plan.layout.shards


def after_requests(plan: Plan, demand: Demand, requests: float, records: float, layers: int) -> Work:
    """Return the expected work of one rebuild after ``requests`` requests: sum over nodes of P(prefix hit) * its work.

    Exact for equal slices, up to the records that the deletions took away themselves, which are not subtracted. With
    ``requests`` 1 it is what an eager method, which rebuilds at once, spends on a deletion.
    """
    prefixes = _prefixes(plan)
    weights = np.array([demand.weights[:, list(prefix)].sum(axis=1) for prefix in prefixes])
    hits = (1.0 - demand.unhit(weights, requests)).sum(axis=1)
    nodes = [_node(plan, len(prefix), records, layers) * float(hit) for prefix, hit in zip(prefixes, hits, strict=True)]
    return sum(nodes, Work())


def _prefixes(plan: Plan) -> list[Order]:
    return sorted({order[:i] for order in plan.orders for i in range(1, len(order) + 1)})


def _node(plan: Plan, length: int, records: float, layers: int) -> Work:
    slots = plan.layout.shards * plan.layout.slices
    if records < slots:
        raise LayoutError(f"{records:g} records do not fill {slots} slices; give fewer shards or slices")
    stage = plan.stages[length - 1]
    passes = stage.epochs * records / slots * (length if plan.cumulative else 1)
    both = layers + layers - min(stage.layers)
    lora, full = _stored(stage)
    return Work(1.0, passes, passes * both, lora, full)


def _stored(stage: Stage) -> tuple[float, float]:
    return (float(len(stage.layers)), 0.0) if stage.kind == "lora" else (0.0, 1.0)
