"""Predictions over HTTP while records are deleted: S3T, and beside it SISA, whose shard is down while it retrains.

One client asks for one text after the other over a kept connection, first undisturbed, then while another deletes one record
after the other; both sides run as ``s3t serve`` in a process of their own, on one machine with their clients. Under load S3T
refreshes in the background, so that many more records are deleted than would leave no shard without.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.life import stream
from benchmarks.services import Listening, as_json
from benchmarks.serving import Requests, quantile
from benchmarks.synthetic import synthetic
from benchmarks.workbench import Workbench, describe
from s3t.records import Layout, Recipe


@dataclass(frozen=True)
class Size:
    """``calm``: predictions without deletions; ``deletions``: at most so many; ``apart``: predictions between two, at least."""

    calm: int
    deletions: int
    apart: int


QUICK = Size(calm=200, deletions=8, apart=10)
SIZES = {"smoke": Size(calm=20, deletions=3, apart=3), "full": Size(calm=2000, deletions=24, apart=20)}


@dataclass(frozen=True)
class Load:
    """``records`` to train on, of which ``deletions`` are deleted, one every ``every`` seconds or as they are answered."""

    records: int
    deletions: int
    every: float


LOADS = {"smoke": Load(records=240, deletions=4, every=0.1), "full": Load(records=4000, deletions=1000, every=0.5)}
LAYOUT, REFRESH = Layout(8, 4, 4), ("--refresh", "below:4", "--refresh-rest", "1")
"""Under load: S3T's layout (SISA: one order), and that S3T refreshes when a shard serves fewer than all slices."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Deletions under load where the profile has a size for them."""
    if "load" in metafunc.fixturenames:
        load = LOADS.get(metafunc.config.getoption("--profile"))
        metafunc.parametrize("load", [load] if load else [], ids=lambda load: f"{load.deletions} deletions")


@pytest.mark.parametrize("method", ["s3t", "sisa-lora"])
def test_under_load(benchmark: Any, bench: Workbench, tmp_path: Path, method: str, load: Load) -> None:
    """A steady stream of deletions, on the tiny model: predictions answered, and shards live while deletions go on."""
    benchmark.group = "http: availability under load"
    layout, seed = replace(LAYOUT, budget=LAYOUT.budget if method == "s3t" else 1), bench.profile.seeds[0]
    data = synthetic(load.records, 0, 1)
    about: dict[str, Any] = {"question": "http", "method": method, "seed": seed, "data": data.name, "model": "tiny"}
    about |= {"shards": layout.shards, "slices": layout.slices, "budget": layout.budget, "kind": "measured"}
    recipe = Recipe(epochs=1, rank=2)
    system = describe(tmp_path / "run", method, layout, recipe, bench.tiny, data, seed, engine="fast")
    system.fit(data.train)
    system.close()
    options = REFRESH if method == "s3t" else ()
    live: list[float] = []
    down: list[float] = []
    with (
        bench.answering(metric="predictions answered", **about),
        Listening(system.path, options) as service,
        closing(service.client()) as asking,
        closing(service.client()) as deleting,
    ):

        def deletions() -> Iterator[str]:
            began = time.perf_counter()
            for number, name in enumerate(stream([r.id for r in data.train], load.deletions, seed + 1)):
                time.sleep(max(0.0, began + number * load.every - time.perf_counter()))
                receipt = deleting.need("/delete", {"ids": [name]}, service.token)
                down.append(receipt["cost"]["down_seconds"])
                live.append(1 - len(receipt["offline"]) / layout.shards)
                yield name

        asked = Requests(lambda: asking.need("/predict", {"inputs": [as_json(data.test[0].inputs)]}))
        began = time.perf_counter()
        benchmark.pedantic(asked.during, args=(deletions(),), kwargs={"apart": 1}, rounds=1, iterations=1)
        seconds = time.perf_counter() - began
    extra = {"deletions": f"every {load.every:g} s", "records": load.records, "refresh": " ".join(options)}
    extra |= {"failures": asked.failures[:3], "seconds": seconds}
    common = {**about, "deletions": len(down), "extra": extra}
    answered = 1 - len(asked.failures) / len(asked.seconds)
    bench.add(metric="predictions answered", unit="share", value=answered, n=len(asked.seconds), **common)
    bench.add(metric="down time", unit="share", value=sum(down) / seconds / layout.shards, n=len(down), **common)
    bench.add(metric="live shards after a deletion", unit="share", value=statistics.mean(live), n=len(live), **common)
    bench.add(metric="fewest live shards", unit="share", value=min(live), n=len(live), **common)
    for share in (0.5, 0.99):
        value = quantile(asked.seconds, share)
        bench.add(metric=f"prediction p{100 * share:.0f}", unit="s", value=value, n=len(asked.seconds), **common)
    assert len(down) == load.deletions
    assert not asked.failures


@pytest.mark.parametrize("method", ["s3t", "sisa-lora"])
def test_over_http(benchmark: Any, bench: Workbench, method: str) -> None:
    """Deletions end early where one more could leave no shard."""
    benchmark.group = "http: predictions during deletions"
    profile = bench.profile
    size, data, seed = SIZES.get(profile.name, QUICK), profile.data[0], profile.seeds[0]
    budget = max((b for m, b in profile.cases if m == method), default=1)
    dataset, layout = bench.dataset(data), bench.layout(method, budget)
    about: dict[str, Any] = {
        "question": "http",
        "method": method,
        "budget": budget,
        "shards": layout.shards,
        "slices": layout.slices,
        "data": dataset.name,
        "model": profile.model,
        "seed": seed,
    }
    system = bench.trained(method, budget, data, seed)
    system.close()
    names = stream([record.id for record in dataset.train], size.deletions, seed + 1)
    body = {"inputs": [as_json(dataset.test[0].inputs)]}
    waited: list[float] = []
    down: list[float] = []
    with (
        bench.answering(metric="failed predictions", **about),
        Listening(system.path) as service,
        closing(service.client()) as asking,
        closing(service.client()) as deleting,
    ):

        def deletions() -> Iterator[str]:
            for name in names:
                began = time.perf_counter()
                receipt = deleting.need("/delete", {"ids": [name]}, service.token)
                waited.append(time.perf_counter() - began)
                down.append(receipt["cost"]["down_seconds"])
                yield name
                if len(receipt["offline"]) >= layout.shards - 1:
                    return

        calm, busy = (Requests(lambda: asking.need("/predict", body)) for _ in range(2))
        asking.need("/predict", body)

        def measure() -> None:
            calm.during(iter([None]), apart=size.calm)
            busy.during(deletions(), apart=size.apart)

        benchmark.pedantic(measure, rounds=1, iterations=1)
    about |= {"kind": "measured"}
    for name, requests, count in (("none", calm, 0), ("one after the other", busy, len(waited))):
        extra = {"deletions": name, "failures": requests.failures[:3], "apart": size.apart}
        common = {**about, "deletions": count, "extra": extra, "n": len(requests.seconds)}
        bench.add(metric="failed predictions", unit="requests", value=len(requests.failures), **common)
        bench.add(metric="longest prediction", unit="s", value=max(requests.seconds), **common)
        for share in (0.5, 0.99):
            value = quantile(requests.seconds, share)
            bench.add(metric=f"prediction p{100 * share:.0f}", unit="s", value=value, **common)
    common = {**about, "deletions": len(waited), "n": len(waited), "unit": "s"}
    bench.add(metric="deletion p50", value=statistics.median(waited), **common)
    bench.add(metric="down time per deletion", value=statistics.mean(down), **common)
    assert waited
    assert not calm.failures
    assert not busy.failures
