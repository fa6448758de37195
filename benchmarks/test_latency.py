"""Latency of one durable deletion on a trained run: ledger, erased row, erased nodes, switched chains."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.life import stream
from benchmarks.workbench import Workbench


def test_one_deletion(benchmark: Any, bench: Workbench) -> None:
    """Every round deletes one record from a fresh copy of the same trained run whose chains are in memory."""
    benchmark.group = "latency: one deletion"
    profile = bench.profile
    data, seed = profile.data[0], profile.seeds[0]
    budget = max(b for method, b in profile.cases if method == "s3t")
    dataset = bench.dataset(data)
    requests = iter(stream([record.id for record in dataset.train], profile.rounds, seed + 1))
    about: dict[str, Any] = {
        "question": "latency",
        "method": "s3t",
        "budget": budget,
        "shards": profile.shards,
        "slices": profile.slices,
        "data": dataset.name,
        "model": profile.model,
        "seed": seed,
        "unit": "s",
        "kind": "measured",
    }

    def fresh() -> tuple[tuple[Any, list[str]], dict[str, Any]]:
        system = bench.trained("s3t", budget, data, seed)
        system.predict([dataset.test[0].inputs])
        return (system, [next(requests)]), {}

    def delete(system: Any, ids: list[str]) -> None:
        assert system.delete(ids).deleted == tuple(ids)

    with bench.answering(metric="delete p50", **{k: v for k, v in about.items() if k not in ("unit", "kind")}):
        benchmark.pedantic(delete, setup=fresh, rounds=profile.rounds, iterations=1)
    times = sorted(benchmark.stats.stats.data)
    ranks = {"delete p50": statistics.median(times), "delete max": times[-1]}
    for metric, value in ranks.items():
        bench.add(metric=metric, value=value, n=len(times), **about)
