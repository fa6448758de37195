"""The paper's evaluation as declared cases: run where the machine and the network allow it, otherwise rows that say why not.

``pytest --benchmark --profile paper`` runs these alone. Capacity, selection of sequences and storage need no model and are run
everywhere; models are trained on a CUDA device that has the memory, with data and weights from the hub or its cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import GROWN, ROBERTA, SHAPES, SHARDS, SLICES, VIT, Grown, Tuned, stored_bytes, tuned
from benchmarks.rows import interval
from benchmarks.selection import FAMILIES, RULES, shares_of_the_optimum
from benchmarks.workbench import Workbench
from s3t.capacity import Demand, deletion_rate, requests_to_dead, simulate
from s3t.graph import nodes
from s3t.orders import cyclic
from s3t.plan import s3t_plan
from s3t.records import Layout

CASES = list(tuned())
NO_DEVICE = "no CUDA device"
BYTES_PER_WEIGHT = 12
"""Of memory while training: weights twice (float32, and lean in bfloat16) and what is computed."""


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_tuned(request: pytest.FixtureRequest, bench: Workbench, case: Tuned, tmp_path: Path) -> None:
    about: dict[str, Any] = {"question": "accuracy", "metric": f"{case.study}, official metric", "unit": "share"}
    about |= {"data": case.data, "model": case.model, "kind": "measured", "deletions": 0}
    sizes = {method: _layout(case, method) for method in case.methods}
    if reason := lacking(case):
        for method, layout in sizes.items():
            bench.add(**about, **_sized(method, layout), value=None, n=0, status="not-run", reason=reason)
        return
    benchmark = request.getfixturevalue("benchmark")
    benchmark.group = f"paper: {case.study}"
    with bench.answering(**about, **_sized("s3t", case.layout)):
        found = benchmark.pedantic(train, args=(case, tmp_path), rounds=1, iterations=1)
    for method, deletions, metric, value, count in found:
        extra = {"metric": metric, "recipe": case.recipe_of(method).to_json(), "differs": case.differs}
        at = about | {"deletions": deletions}
        bench.add(**at, **_sized(method, sizes[method]), value=value, n=count, seed=0, extra=extra)


def lacking(case: Tuned) -> str:
    """Say why a case cannot be run here, or nothing."""
    import torch

    if not torch.cuda.is_available():
        return f"{NO_DEVICE}; {case.model} for {case.recipe.epochs:g} epochs a stage is days on a CPU"
    wanted, there = BYTES_PER_WEIGHT * case.weights, torch.cuda.get_device_properties(0).total_memory
    return f"{wanted / 1e9:.0f} GB of device memory wanted, {there / 1e9:.0f} are there" if wanted > there else ""


def train(case: Tuned, folder: Path) -> list[tuple[str, int, str, float, int]]:
    """Train every method of a case and delete; return (method, deletions, metric, value, test records) in order."""
    from benchmarks.life import stream
    from benchmarks.workbench import describe
    from s3t import data
    from s3t.answers import model_name
    from s3t.backbone import load
    from s3t.data.tasks import metrics_of
    from s3t.errors import OfflineError
    from s3t.metrics import evaluate

    dataset = data.load(case.data)
    backbone = load(model_name(case.model, dataset.classes))
    engine = "reference" if backbone.predicts_text else "fast"
    official, out = metrics_of(dataset.name, dataset.classes)[0], []
    for method in case.methods:
        mode: dict[str, Any] = {"engine": engine, "precision": "auto"}
        system = describe(
            folder / method, method, _layout(case, method), case.recipe_of(method), backbone, dataset, 0,
            case.design if method == "s3t" else None, **mode,
        )  # fmt: skip
        try:
            system.fit(dataset.train)
            done, ids = 0, stream([record.id for record in dataset.train], case.deletes[-1], 0)
            for deletions in case.deletes:
                if deletions > done:
                    system.delete(ids[done:deletions])
                    done = deletions
                try:
                    scores = system.predict([record.inputs for record in dataset.test])
                    value = evaluate([official], scores, dataset.test, dataset.classes)[official]
                except OfflineError:
                    value = 0.0
                out.append((method, deletions, official, value, len(dataset.test)))
        finally:
            system.close()
    return out


@pytest.mark.parametrize("grown", GROWN, ids=lambda grown: grown.by)
def test_deletion_capacity(benchmark: Any, bench: Workbench, grown: Grown) -> None:
    """Expected uniform requests until no shard is live: the formula, any orders exactly, simulated, and SISA's beside it."""
    benchmark.group = "paper: deletion capacity"
    about: dict[str, Any] = {
        "question": "capacity",
        "metric": f"requests until dead, by {grown.by}",
        "unit": "requests",
    }

    def whole() -> list[Any]:
        return [
            simulate(Demand.uniform(layout.shards, layout.slices), cyclic(layout.slices, layout.budget),
                     trials=bench.profile.trials, seed=0)
            for layout in grown.layouts
        ]  # fmt: skip

    for layout, found in zip(grown.layouts, benchmark.pedantic(whole, rounds=1, iterations=1), strict=True):
        demand, orders = Demand.uniform(layout.shards, layout.slices), cyclic(layout.slices, layout.budget)
        exact, (low, high) = requests_to_dead(demand, orders), found.last.interval()
        sized = _sized("s3t", layout)
        bench.add(**about, **sized, value=exact, n=1, kind="derived")
        told = {"low": low, "high": high, "confidence": 0.95, "n": found.trials, "seed": 0}
        bench.add(**about, **sized, value=found.last.mean, kind="simulated", **told)
        sisa = deletion_rate(layout.shards, layout.slices, 1)
        one = _sized("sisa-lora-lazy", Layout(layout.shards, layout.slices, 1))
        bench.add(**about, **one, value=sisa, n=1, kind="derived", extra={"beside_budget": layout.budget})
        assert abs(found.last.deviation(exact)) < 5
        assert exact >= sisa * (1 - 1e-9)


@pytest.mark.parametrize("prior", FAMILIES)
def test_selection_of_sequences(benchmark: Any, bench: Workbench, prior: str) -> None:
    """What each rule, the paper's cyclic rotation and matching among them, keeps of the best orders' expected length."""
    benchmark.group = "paper: selection of sequences"
    horizon, draws = 2 * SLICES, 5
    about: dict[str, Any] = {
        "question": "orders",
        "metric": "share of the optimum, 4 slices",
        "unit": "share",
        "shards": 1,
    }
    shares = benchmark.pedantic(
        lambda: {b: shares_of_the_optimum(prior, SLICES, b, horizon, draws) for b in (1, 2, 3, 4)},
        rounds=1,
        iterations=1,
    )
    for budget, (by_rule, proven) in shares.items():
        for rule in RULES:
            mean, low, high = interval(by_rule[rule])
            extra = {"rule": rule, "prior": prior, "horizon": horizon, "proven": proven, "least": min(by_rule[rule])}
            told = {"low": low, "high": high, "confidence": None if low is None else 0.95, "n": len(by_rule[rule])}
            sized = {"method": "s3t", "slices": SLICES, "budget": budget}
            bench.add(**about, **sized, value=mean, kind="derived", extra=extra, **told)
    assert all(
        0 < share <= 1 + 1e-9 for by_rule, _ in shares.values() for values in by_rule.values() for share in values
    )


@pytest.mark.parametrize("model", SHAPES)
def test_storage(benchmark: Any, bench: Workbench, model: str) -> None:
    """Bytes of all trained tensors as the budget grows, orders with a common prefix sharing its nodes."""
    benchmark.group = "paper: storage"
    layers, recipe = SHAPES[model][0], ROBERTA if "roberta" in model else VIT
    layouts = next(grown.layouts for grown in GROWN if grown.by == "budget")

    def count() -> list[int]:
        return [len(nodes(s3t_plan(layout, recipe, layers))) for layout in layouts]

    for layout, number in zip(layouts, benchmark.pedantic(count, rounds=1, iterations=1), strict=True):
        value = stored_bytes(model, layout, recipe, number)
        about: dict[str, Any] = {
            "question": "storage",
            "metric": "bytes stored, by formula",
            "unit": "bytes",
            "kind": "derived",
        }
        bench.add(**about, **_sized("s3t", layout), value=value, n=1, model=model, extra={"nodes": number})
        assert number <= layout.shards * layout.slices * layout.budget
    assert layouts[0].shards == SHARDS


def _layout(case: Tuned, method: str) -> Layout:
    from baselines.methods import UNDIVIDED

    if method in UNDIVIDED:
        return Layout(1, 1, 1)
    return case.layout if method == "s3t" else Layout(case.layout.shards, case.layout.slices, 1)


def _sized(method: str, layout: Layout) -> dict[str, Any]:
    return {"method": method, "budget": layout.budget, "shards": layout.shards, "slices": layout.slices}
