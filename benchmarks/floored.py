"""Lives of chains with an analytic head beside them, and what each said of the test records.

The head does not depend on the chains, so one life of a system holds the answers of its chains alone, of the head alone, and of
both, weighed and brought together in any way (:mod:`s3t.ensembling`): the very scores that systems with these plans serve.
So a life is played once, and can be kept in a file (``--lives DIR``), from which later sessions take it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.methods import make_plan
from benchmarks.floors import FLOOR, HEAD, SHARE, Kind, Life, Mixture, Served
from benchmarks.life import stream
from benchmarks.workbench import Workbench, slot_key
from s3t.analytic.head import AnalyticHead
from s3t.analytic.store import FEATURES
from s3t.contract import Cost
from s3t.ensembling import Outputs, among, answer
from s3t.errors import DataError, OfflineError
from s3t.plan import Plan
from s3t.records import Dataset, Recipe
from s3t.system import System


@dataclass(frozen=True)
class Played:
    """A life: its plan and recipe, (deletions, what each part said of the test records then) for each point, what the fit cost,
    and the bytes of nodes and of features in the run's folder after it."""

    plan: Plan
    recipe: Recipe
    points: tuple[tuple[int, Outputs], ...]
    cost: Cost
    nodes: int
    features: int


def described(bench: Workbench, kind: Kind, head: AnalyticHead) -> tuple[Plan, Recipe]:
    """Return the plan and the recipe of ``kind`` with ``head`` beside it."""
    recipe = kind.recipe(bench.profile.recipe(kind.method))
    layout = bench.layout(kind.method, kind.budget)
    plan = make_plan(kind.method, layout, recipe, bench.backbone.layers, design=kind.design, head=head, share=SHARE)
    return plan, recipe


def play(bench: Workbench, kind: Kind, data: Dataset, head: AnalyticHead, seed: int, folder: Path) -> Played:
    """Train the chains with ``head`` beside them, and delete half of the training records, uniformly at random."""
    plan, recipe = described(bench, kind, head)
    how: dict[str, Any] = {"engine": bench.mode.engine, "precision": bench.mode.precision, "seed": seed}
    system = System.create(
        folder, plan, recipe, model=bench.backbone, classes=data.classes, key=slot_key(seed), allow_empty=True, **how
    )
    with closing(system):
        cost = system.fit(data.train)
        nodes = sum(path.stat().st_size for path in (folder / "nodes").rglob("*") if path.is_file())
        requests = stream([record.id for record in data.train], len(data.train) // 2, seed)
        asked, points = [record.inputs for record in data.test], []
        features = system.served().features(asked)
        for done, upto in _steps(len(requests)):
            if upto > done:
                system.delete(requests[done:upto])
            outputs, _ = system.served().outputs(asked, features)
            if outputs.head is None:
                raise OfflineError("no analytic head serves; half of the records are retained")
            points.append((upto, outputs))
        return Played(plan, recipe, tuple(points), cost, nodes, (folder / FEATURES).stat().st_size)


def keep(played: Played, file: Path, about: Mapping[str, Any]) -> None:
    """Write a life to ``file`` (.npz), with ``about``, what has to be the same for who takes it."""
    arrays, points = dict[str, NDArray[Any]](), list[dict[str, Any]]()
    for at, (deletions, outputs) in enumerate(played.points):
        points.append({"deletions": deletions, "lengths": {str(s): n for s, n in outputs.lengths.items()}})
        arrays |= {f"{at}-{shard}": logits for shard, logits in outputs.chains.items()}
        assert outputs.head is not None
        arrays[f"{at}-head"] = outputs.head
    told: dict[str, Any] = {"about": dict(about), "points": points, "cost": vars(played.cost)}
    told |= {"nodes": played.nodes, "features": played.features}
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(".half.npz")
    np.savez_compressed(half, told=np.array(json.dumps(told)), **arrays)  # type: ignore[arg-type]
    half.replace(file)


def kept(file: Path, plan: Plan, recipe: Recipe, about: Mapping[str, Any]) -> Played:
    """Return the life that ``file`` holds. DataError if it is one of something else than ``about``."""
    with np.load(file, allow_pickle=False) as found:
        told = json.loads(str(found["told"]))
        odd = [name for name, value in json.loads(json.dumps(about)).items() if told["about"].get(name) != value]
        if odd:
            raise DataError(f"{file} holds a life with another {', '.join(odd)}; remove it, or give another --lives")
        points = []
        for at, point in enumerate(told["points"]):
            lengths = {int(shard): n for shard, n in point["lengths"].items()}
            chains = {shard: found[f"{at}-{shard}"] for shard in lengths}
            points.append((point["deletions"], Outputs(chains, lengths, found[f"{at}-head"])))
        return Played(plan, recipe, tuple(points), Cost(**told["cost"]), told["nodes"], told["features"])


def _steps(most: int) -> Iterator[tuple[int, int]]:
    """Yield (deleted before, deleted then): none, and shares of ``most`` that double, dense where chains die."""
    before = 0
    for share in (0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1):
        upto = round(share * most)
        if upto > before or not share:
            yield before, upto
            before = upto


def judged(played: Played, kind: Kind, labels: Sequence[int | float]) -> Life:
    """Return the life's accuracy by each of the kind's mixtures: a head alone is one system, whatever chains it was beside."""
    points = []
    for deletions, outputs in played.points:
        found: dict[tuple[str, Mixture], float] = {
            (HEAD, Mixture(1.0)): _accuracy(played, outputs, labels, Mixture(1.0))
        }
        for mixture in kind.mixtures:
            name = kind.name + FLOOR * bool(mixture.share)
            found[name, mixture] = _accuracy(played, outputs, labels, mixture)
        points.append(Served(deletions, found, len(outputs.chains) / played.plan.layout.shards))
    return Life(tuple(points), played.cost, played.nodes, played.features)


def _accuracy(played: Played, outputs: Outputs, labels: Sequence[int | float], mixture: Mixture) -> float:
    """Return the share of rightly answered records; chains that are offline, and have no head, answer none."""
    if mixture.share == 1:
        scores = answer(replace(outputs, chains={}, lengths={}), played.plan, played.recipe.ensemble, {})
    elif not mixture.share and not outputs.chains:
        return 0.0
    else:
        plan = replace(played.plan, weights=mixture.weights, pool=mixture.pool, share=mixture.share or SHARE)
        seen = outputs if mixture.share else replace(outputs, head=None)
        scores = answer(seen, plan, played.recipe.ensemble, among(plan, outputs.lengths))
    return float((scores.argmax(axis=1) == np.array(labels)).mean())
