"""The features of a run's records: made once each, at the fit, and again where a refresh finds them missing or damaged."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from s3t.analytic.features import Reader
from s3t.analytic.lacking import lacking
from s3t.backbone import Backbone
from s3t.contract import Cost, Progress
from s3t.observing import ObservedRows
from s3t.runs import Run


def make_features(
    run: Run, backbone: Backbone, door: ObservedRows, environment: dict[str, Any], progress: Progress | None
) -> Cost:
    """Make the features that retained records lack, and put on record that all are there; only under the build lock.

    An interrupted call is continued by the next. If anything is missing, so is what was made in another environment
    (DERIVATION, "Analytic head"): all of it is of one.
    """
    assert run.config.plan.head is not None and run.features is not None
    began, reader = time.perf_counter(), Reader(backbone, run.config.plan.head, run.config.seed)
    slots, done = run.config.plan.layout.slots(), 0
    with door.observing():
        last = run.ledger.last("head")
        there = environment if last is None else last.body["environment"]
        wanted = list(lacking(run, door.each(slots), there))
        if last is not None and not wanted:
            return Cost()
        if there != environment:
            wanted = list(lacking(run, door.each(slots), environment))
        for marker in wanted:
            if progress and done % 16 == 0:
                progress(done, len(wanted), "features")
            row = run.records.row(marker)
            if row is None:
                continue  # deleted meanwhile
            (encoded,) = backbone.encode([row.record.inputs], run.config.recipe.max_length)
            features = reader.read([encoded])[0].astype("<i2").tobytes()
            with run.records.erasing():  # a deletion that is under way has erased the row, or will erase these too
                if run.records.row(marker) is not None:
                    run.features.write(run.records.number(marker), row.commitment, environment, features)
                    done += 1
    run.features.sync()
    if progress:
        progress(len(wanted), len(wanted), "features")
    cost = Cost(forward_passes=done, bytes=done * 2 * reader.size, seconds=time.perf_counter() - began)
    body = {"features": reader.size, "rows": sum(1 for _ in run.records.each_id("train"))}
    run.ledger.append("head", {**body, "environment": environment, "cost": asdict(cost)})
    return cost
