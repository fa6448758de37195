"""What E1a costs: replay of the served nodes in the clean room over training them once, in seconds and counted.

The clean room also loads the base model, compares tensors and predicts; "retraining" is its training alone, over the seconds
that the ledger books for the same nodes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.rows import interval
from benchmarks.workbench import Workbench
from verify.evidence import read_evidence
from verify.replay import check_cleanroom
from verify.report import Verdict
from verify.state import derive_state

UNITS = ("record_passes", "layer_passes")
ROWS = 240
"""At most so many training records: the ratio hardly depends on it."""


def test_clean_room(benchmark: Any, bench: Workbench, tmp_path: Path) -> None:
    """Every round trains one run of one order per shard, whose nodes all serve, and replays it in the same process."""
    benchmark.group = "audit: clean room"
    profile = bench.profile
    data, seeds = profile.data[0], iter(profile.seeds)
    dataset = bench.dataset(data).subset(ROWS, 0, 0)
    about: dict[str, Any] = {
        "question": "audit",
        "method": "s3t",
        "budget": 1,
        "shards": profile.shards,
        "slices": profile.slices,
        "data": dataset.name,
        "model": profile.model,
    }
    trained: list[float] = []
    replayed: list[float] = []
    counted: list[dict[str, float]] = []

    def fresh() -> tuple[tuple[Any], dict[str, Any]]:
        seed = next(seeds)
        system = bench.fresh(tmp_path / str(seed), "s3t", 1, data, seed)
        began = time.perf_counter()
        system.fit(dataset.train)
        trained.append(time.perf_counter() - began)
        return (system,), {}

    def replay(system: Any) -> None:
        began = time.perf_counter()
        evidence = read_evidence(tmp_path / str(profile.seeds[len(counted)]))
        (found,) = check_cleanroom(system, system.provenance(), evidence, derive_state(evidence), isolate=False)
        replayed.append(time.perf_counter() - began)
        assert found.verdict is Verdict.HOLDS, found
        counted.append(dict(found.details))

    with bench.answering(metric="clean room / training, seconds", **about):
        benchmark.pedantic(replay, setup=fresh, rounds=len(profile.seeds), iterations=1)
    ratios = [audit / training for audit, training in zip(replayed, trained, strict=True)]
    alone = [details["seconds_ratio"] for details in counted]
    about |= {"unit": "ratio", "n": len(ratios), "kind": "measured"}
    extra = {"training_seconds": trained, "replay_seconds": replayed}
    for metric, values in (("clean room / training, seconds", ratios), ("retraining / training, seconds", alone)):
        mean, low, high = interval(values)
        spread = {"low": low, "high": high, "confidence": None if low is None else 0.95}
        bench.add(metric=metric, value=mean, extra=extra, **spread, **about)
    for unit in UNITS:
        value = max(details[f"{unit}_ratio"] for details in counted)
        bench.add(metric=f"clean room / training, {unit.replace('_', ' ')}", value=value, **about)
        assert value <= 1.0
