"""Deletions and starts by the number of records and of requests before them; and what SISA spends instead.

The nodes of the large runs are those of a small one on the tiny model (:mod:`benchmarks.aged`), so their files are small;
the comparison with SISA is on the profile's own model and data.
"""

from __future__ import annotations

import math
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from baselines.methods import make_plan
from benchmarks import aged
from benchmarks.life import stream
from benchmarks.rows import interval
from benchmarks.timings import bounds, exponent, quantile
from benchmarks.workbench import Workbench
from s3t import requests
from s3t.capacity.demand import Demand
from s3t.contract import Cost
from s3t.planner.work import after_requests
from s3t.records import Layout
from s3t.system import System


@dataclass(frozen=True)
class Sizes:
    """Numbers of records at the fewest requests, of requests at the fewest records, both at their most; and of timings."""

    records: tuple[int, ...]
    requests: tuple[int, ...]
    deletions: int
    starts: int
    pairs: int

    def cases(self) -> list[tuple[int, int]]:
        """Return all (records, requests) that are measured."""
        few, most = (self.records[0], self.requests[0]), (self.records[-1], self.requests[-1])
        cases = [(count, few[1]) for count in self.records] + [(few[0], count) for count in self.requests]
        return list(dict.fromkeys([*cases, most]))


_QUICK = Sizes((10**3, 10**5), (10**2, 10**4), 60, 5, 3)
SIZES = {
    "smoke": Sizes((10**3, 10**4), (10**2, 10**3), 10, 2, 2),
    "quick": _QUICK,
    "health": _QUICK,
    "full": Sizes((10**3, 10**4, 10**5, 10**6), (10**2, 10**3, 10**4, 10**5, 10**6), 300, 9, 10),
}


def test_deletion_by_size(benchmark: Any, bench: Workbench, tmp_path: Path) -> None:
    """Every case is a run of its own; the same number of deletions of records drawn at random, nodes lent anew each time."""
    benchmark.group = "deletion: by records and requests"
    sizes, layout = SIZES[bench.profile.name], _layout(bench)
    about = _about(layout) | {"model": "tiny", "data": "made"}
    donor = aged.make_donor(tmp_path / "donor", layout, bench.tiny)
    points: dict[tuple[int, int], dict[str, list[float]]] = {}

    def measure() -> None:
        for records, before in sizes.cases():
            path = tmp_path / f"run-{records}-{before}"
            points[records, before] = _case(bench, donor, path, records, before, sizes, about)
            shutil.rmtree(path)

    with bench.answering(question="deletion", metric="deletion p50", **about):
        benchmark.pedantic(measure, rounds=1, iterations=1)
    few = (sizes.records[0], sizes.requests[0])
    for metric in ("switch", "deletion", "start"):
        by_records = [(count, points[count, few[1]][metric]) for count in sizes.records]
        by_requests = [(count, points[few[0], count][metric]) for count in sizes.requests]
        for of, series in (("records", by_records), ("requests", by_requests)):
            value, low, high = exponent(series)
            bench.add(
                question="deletion", metric=f"growth of {metric} with {of}", unit="exponent", value=value, low=low,
                high=high, confidence=0.95, n=sum(len(times) for _, times in series), kind="derived",
                extra={"from": series[0][0], "to": series[-1][0], "p50": [statistics.median(t) for _, t in series]},
                **about,
            )  # fmt: skip


def test_deletion_against_sisa(benchmark: Any, bench: Workbench) -> None:
    """The same deletions, each on a fresh copy of the trained run: S3T lazily, SISA eagerly, which retrains within it."""
    benchmark.group = "deletion: against SISA"
    profile, data = bench.profile, bench.profile.data[0]
    dataset, seed, pairs = bench.dataset(data), profile.seeds[0], SIZES[profile.name].pairs
    victims = stream([record.id for record in dataset.train], pairs, seed + 7)
    budgets = {"s3t": max(b for method, b in profile.cases if method == "s3t"), "sisa-lora": 1}
    costs: dict[str, list[Cost]] = {method: [] for method in budgets}
    upfront: dict[str, Cost] = {}

    def measure() -> None:
        for victim in victims:
            for method, budget in budgets.items():
                system = bench.trained(method, budget, data, seed)
                upfront.setdefault(method, system.cost())
                receipt = system.delete([victim])
                assert receipt.deleted == (victim,)
                costs[method].append(receipt.cost)
                system.close()

    common = {"question": "deletion", "data": dataset.name, "model": profile.model, "seed": seed}
    with bench.answering(metric="layer passes per deletion", **_about(_layout(bench)), **common):
        benchmark.pedantic(measure, rounds=1, iterations=1)
    for method, budget in budgets.items():
        about = common | _about(bench.layout(method, budget), method)
        _add_mean(
            bench, "layer passes per deletion", "records x layers", [c.layer_passes for c in costs[method]], about
        )
        _add_mean(bench, "seconds per deletion", "s", [c.seconds for c in costs[method]], about)
        for metric, unit, value in (
            ("layer passes up front", "records x layers", upfront[method].layer_passes),
            ("seconds up front", "s", upfront[method].seconds),
        ):
            bench.add(metric=metric, unit=unit, value=value, n=1, kind="measured", **about)
    sisa = common | _about(bench.layout("sisa-lora", 1), "sisa-lora")
    expected = _expected(bench, len(dataset.train))
    bench.add(metric="layer passes per deletion", unit="records x layers", value=expected, n=1, kind="derived", **sisa)
    ratios = [eager.seconds / lazy.seconds for eager, lazy in zip(costs["sisa-lora"], costs["s3t"], strict=True)]
    mean, low, high = interval([math.log(ratio) for ratio in ratios])
    bench.add(
        metric="seconds per deletion, SISA over S3T", unit="ratio", value=math.exp(mean), n=len(ratios), kind="measured",
        low=low and math.exp(low), high=high and math.exp(high), confidence=0.95, **common,
        **_about(bench.layout("s3t", budgets["s3t"])),
    )  # fmt: skip
    assert all(cost.layer_passes == cost.optimizer_steps == cost.forward_passes == 0 for cost in costs["s3t"])
    assert all(cost.layer_passes > 0 for cost in costs["sisa-lora"])


def _layout(bench: Workbench) -> Layout:
    return Layout(bench.profile.shards, bench.profile.slices, bench.profile.slices)


def _about(layout: Layout, method: str = "s3t") -> dict[str, Any]:
    return {"method": method, "budget": layout.budget, "shards": layout.shards, "slices": layout.slices}


def _case(
    bench: Workbench, donor: aged.Donor, path: Path, records: int, before: int, sizes: Sizes, about: dict[str, Any]
) -> dict[str, list[float]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        made = pool.submit(aged.ingest, path, donor.config, records).result()
    gone = aged.age(path, before)
    times = _deletions(donor, path, range(gone, records), sizes.deletions, bench)
    opened = []
    for _ in range(sizes.starts):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            opened.append(pool.submit(aged.start, path).result())
    times["start"] = [taken.seconds for taken, _ in opened]
    times["status"] = [seconds for _, seconds in opened]
    times["one fsync"], times["one removal of a file"] = aged.disk(path.parent, 60)
    times["status command"] = [_command(path) for _ in range(sizes.starts)]
    extra = {"records": records, "requests": before, "ledger": _entries(path), "fabricated": "records, requests, nodes"}
    for metric, values in times.items():
        quantiles = {"p50": statistics.median(values)} | ({"p99": quantile(values, 0.99)} if len(values) > 50 else {})
        for rank, value in quantiles.items():
            low, high = bounds(values) if rank == "p50" else (None, None)
            spread = {"fastest": min(values), "slowest": max(values), "p90": quantile(values, 0.9)}
            bench.add(
                question="deletion", metric=f"{metric} {rank}", unit="s", value=value, low=low, high=high,
                confidence=None if low is None else 0.95, n=len(values), kind="measured", extra=extra | spread, **about,
            )  # fmt: skip
    files = sum((path / name).stat().st_size for name in ("records.bin", "records.sqlite", "commitments"))
    for metric, unit, value in (
        ("ingestion", "s", made.seconds),
        ("ingestion, peak memory grown", "bytes", made.grown),
        ("start, peak memory grown", "bytes", statistics.median(taken.grown for taken, _ in opened)),
        ("bytes stored per record", "bytes", files / records),
    ):
        n = len(opened) if metric.startswith("start") else 1
        bench.add(
            question="deletion", metric=metric, unit=unit, value=value, n=n, kind="measured", extra=extra, **about
        )
    return times


def _deletions(donor: aged.Donor, path: Path, left: range, count: int, bench: Workbench) -> dict[str, list[float]]:
    """Return seconds of ``count`` durable deletions, and of the switch in memory within each; all chains serve before it."""
    system = System.open(path, bench.tiny)
    run, facts = system._opened()
    durable = []
    with _switches(system) as switches:
        for index in random.Random(f"s3t deletions {len(left)}").sample(left, min(count, len(left))):
            donor.lend(run, facts)
            system.predict([{"text": "is it so"}])
            assert len(system.status().live) == donor.config.plan.layout.shards
            started = time.perf_counter()
            receipt = system.delete([aged.name(index)])
            durable.append(time.perf_counter() - started)
            assert receipt.deleted and receipt.nodes_dropped
    donor.lend(run, facts)
    system.close()
    return {"switch": switches, "deletion": durable}


@contextmanager
def _switches(system: System) -> Iterator[list[float]]:
    """Collect the seconds from a request's being durable to the beginning of the erasures, which follow the switch."""
    ledger, erase, append = system._opened()[0].ledger, requests.erase, system._opened()[0].ledger.append_request
    found: list[float] = []
    durable = [0.0]

    def appended(*given: Any) -> int:
        seq = append(*given)
        durable[0] = time.perf_counter()
        return seq

    def erasing(*given: Any) -> None:
        found.append(time.perf_counter() - durable[0])
        erase(*given)

    with patch.object(ledger, "append_request", appended), patch.object(requests, "erase", erasing):
        yield found


def _command(path: Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "s3t", "status", str(path)], check=True, capture_output=True)
    return time.perf_counter() - started


def _entries(path: Path) -> int:
    system = System.open(path)
    entries = system._opened()[0].ledger.head()
    system.close()
    return entries


def _expected(bench: Workbench, records: int) -> float:
    """Return the layer passes that SISA is expected to spend on a deletion: nodes whose slice is hit, from there on."""
    layout = bench.layout("sisa-lora", 1)
    plan = make_plan("sisa-lora", layout, bench.profile.recipe("sisa-lora"), bench.backbone.layers)
    demand = Demand.uniform(layout.shards, layout.slices)
    return after_requests(plan, demand, 1, records, bench.backbone.layers).layer_passes


def _add_mean(bench: Workbench, metric: str, unit: str, values: Sequence[float], about: dict[str, Any]) -> None:
    mean, low, high = interval(values)
    confidence = None if low is None else 0.95
    bench.add(
        metric=metric, unit=unit, value=mean, low=low, high=high, confidence=confidence, n=len(values), kind="measured",
        **about,
    )  # fmt: skip
