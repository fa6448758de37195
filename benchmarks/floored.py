"""Lives of chains with an analytic head beside them.

The head does not depend on the chains, so one life of a system gives the answers of its chains alone, of the head alone, and of
both mixed in any way (:mod:`s3t.analytic.mixing`): the very scores that systems with these plans serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from baselines.methods import make_plan
from benchmarks.floors import FLOOR, HEAD, SHARE, SHARES, Kind, Life, Served
from benchmarks.life import stream
from benchmarks.workbench import Workbench, slot_key
from s3t.analytic.head import AnalyticHead
from s3t.analytic.mixing import mixed
from s3t.analytic.store import FEATURES
from s3t.errors import OfflineError
from s3t.records import Dataset
from s3t.system import System


def live(bench: Workbench, kind: Kind, data: Dataset, head: AnalyticHead, seed: int, folder: Path) -> Life:
    """Train the chains with ``head`` beside them, and delete half of the training records, uniformly at random."""
    profile, backbone = bench.profile, bench.backbone
    recipe = profile.recipe(kind.method)
    recipe = replace(recipe, rank=max(1, round(recipe.rank * kind.ranks)))
    layout = bench.layout(kind.method, kind.budget)
    plan = make_plan(kind.method, layout, recipe, backbone.layers, design=kind.design, head=head, share=SHARE)
    how: dict[str, Any] = {"engine": bench.mode.engine, "precision": bench.mode.precision, "seed": seed}
    system = System.create(
        folder, plan, recipe, model=backbone, classes=data.classes, key=slot_key(seed), allow_empty=True, **how
    )
    with closing(system):
        cost = system.fit(data.train)
        requests = stream([record.id for record in data.train], len(data.train) // 2, seed)
        points = []
        for done, upto in _steps(len(requests)):
            if upto > done:
                system.delete(requests[done:upto])
            points.append(_point(system, kind, data, upto))
        return Life(tuple(points), cost, cost.bytes, (folder / FEATURES).stat().st_size)


def _steps(most: int) -> Iterator[tuple[int, int]]:
    """Yield (deleted before, deleted then): none, and about the square roots' way up to ``most``, dense where chains die."""
    before = 0
    for share in (0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1):
        upto = round(share * most)
        if upto > before or not share:
            yield before, upto
            before = upto


def _point(system: System, kind: Kind, data: Dataset, deletions: int) -> Served:
    wanted = np.array([record.label for record in data.test])
    chains, head = system.served().parts([record.inputs for record in data.test])
    if head is None:
        raise OfflineError("no analytic head serves; half of the records are retained")
    ensemble, found = system.config.recipe.ensemble, {}

    def right(scores: Any) -> float:
        return float((scores.argmax(axis=1) == wanted).mean())

    found[HEAD, 1.0] = right(head)
    found[kind.name, 0.0] = 0.0 if chains is None else right(chains)
    for share in SHARES:
        plan = replace(system.config.plan, share=share)
        found[kind.name + FLOOR, share] = right(mixed(chains, head, plan, ensemble))
    status = system.status()
    return Served(deletions, found, len(status.live) / status.layout.shards)
