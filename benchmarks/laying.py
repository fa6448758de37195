"""Layouts of the blocks, as they are trained: what makes them equal to the paper's, and what each of them gives and costs.

Work is layer passes as the reference engine counts them (:class:`s3t.contract.Cost`), whichever engine trained, so that what is
equal is equal for all; the fast engine spares a part of them, most where the first blocks lie high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baselines.methods import make_plan
from benchmarks.blocks import EFFORT, LAYOUTS, STORAGE
from benchmarks.design import by_length
from benchmarks.workbench import Workbench, describe
from s3t import runs
from s3t.design import Design
from s3t.graph import Node
from s3t.plan import Plan, shared_rank
from s3t.planner.work import upfront
from s3t.records import Layout, Recipe
from s3t.store import ADAPTER
from s3t.system import System


@dataclass(frozen=True)
class Case:
    """What is trained: a layout of the blocks by its ``name``, a method with a ``design`` if it is S3T's, and its recipe."""

    name: str
    method: str
    design: Design | None
    recipe: Recipe

    def plan(self, layout: Layout, layers: int) -> Plan:
        """Return the plan for a model of so many ``layers``."""
        return make_plan(self.method, layout, self.recipe, layers, design=self.design)


def cases(recipe_of: Callable[[str], Recipe], layout: Layout, layers: int) -> list[Case]:
    """Return every layout with its method's own recipe, and where it differs from the paper's in that, two more of it.

    At equal storage: with the rank that :func:`s3t.plan.shared_rank` gives. At equal work: with the epochs that take as many
    layer passes as the paper's blocks (:func:`s3t.planner.work.upfront`, slices of equal size).
    """
    found: list[Case] = []
    for name, (method, design) in LAYOUTS.items():
        case = Case(name, method, design, recipe_of(method))
        found.append(case)
        paper, plan = found[0].plan(layout, layers), case.plan(layout, layers)
        if _stored(plan) != _stored(paper):
            equal = shared_rank(case.recipe, plan, layers)
            found.append(replace(case, name=name + STORAGE, recipe=equal))
        if (work := _work(plan, layers)) != _work(paper, layers):
            epochs = case.recipe.epochs * _work(paper, layers) / work
            found.append(replace(case, name=name + EFFORT, recipe=replace(case.recipe, epochs=epochs)))
    return found


@dataclass(frozen=True)
class Counted:
    """Of all nodes of a run: ``layer_passes`` as the reference engine counts them; ``per_deletion``: those of the nodes that
    the deletion of one record drops, mean over all records, as they were trained; ``adapters``: bytes of adapters' tensors.
    """

    record_passes: int
    layer_passes: int
    per_deletion: float
    adapters: int


@dataclass(frozen=True)
class Laid:
    """Test accuracy (share) by length of chain from 1 to the slices, mean over the orders; what was ``counted``; and ``spent``,
    the layer passes that the engine made, with its caches.
    """

    by_length: tuple[float, ...]
    counted: Counted
    spent: int


def count(folder: Path, layers: int) -> Counted:
    """Count the nodes of the run in ``folder``, of which nothing was deleted, on a base model of so many ``layers``."""
    record_passes, layer_passes, per_deletion, adapters = 0, 0, 0.0, 0
    with closing(runs.open_run(folder)) as run:
        sizes = run.records.counts()
        for entry in run.ledger.entries("train"):
            node = Node(entry.body["shard"], tuple(entry.body["prefix"]))
            stage = run.config.plan.stages[len(node.prefix) - 1]
            passes = entry.body["cost"]["record_passes"]
            both = passes * (2 * layers - min(stage.layers))
            record_passes, layer_passes = record_passes + passes, layer_passes + both
            per_deletion += both * sum(size for slot, size in sizes.items() if node.touches({slot}))
            name = ADAPTER[stage.kind]
            tensors = run.nodes.tensors(entry.body["key"], name, entry.body["files"][name])
            adapters += sum(tensor.nbytes for tensor in tensors.values())
        return Counted(record_passes, layer_passes, per_deletion / sum(sizes.values()), adapters)


def lay(bench: Workbench, folder: Path, case: Case, budgets: Sequence[int], data: str, seed: int) -> dict[int, Laid]:
    """Train ``case`` in ``folder`` with one order, grow it to each of ``budgets`` in turn (ascending), and return what it is
    worth at each. Accuracy is that of chains of one order in every shard, for each of the orders."""
    dataset, found = bench.dataset(data), dict[int, Laid]()
    how: dict[str, Any] = {"engine": bench.mode.engine, "precision": bench.mode.precision, "design": case.design}
    layout = bench.layout(case.method, 1)
    with closing(describe(folder, case.method, layout, case.recipe, bench.backbone, dataset, seed, **how)) as system:
        system.fit(dataset.train)
    for budget in budgets:
        with closing(System.open(folder, bench.backbone)) as system:
            system.extend(budget)
            spent = system.cost().layer_passes
        rule = case.recipe.ensemble
        curves = [by_length(folder, bench.backbone, dataset.test, [rule], order)[rule] for order in range(budget)]
        mean = tuple(sum(values) / budget for values in zip(*curves, strict=True))
        found[budget] = Laid(mean, count(folder, bench.backbone.layers), spent)
    return found


def _stored(plan: Plan) -> int:
    return sum(len(stage.layers) for stage in plan.stages)


def _work(plan: Plan, layers: int) -> float:
    return upfront(plan, plan.layout.shards * plan.layout.slices, layers).layer_passes
