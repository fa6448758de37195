"""Predictions over HTTP while records are deleted: S3T, and beside it SISA, whose shard is down while it retrains.

One client asks for one text after the other over a kept connection, first undisturbed, then while another deletes one record
after the other; both sides run as ``s3t serve`` in a process of their own, on one machine with their clients.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.life import stream
from benchmarks.services import Listening, as_json
from benchmarks.serving import Requests, quantile
from benchmarks.workbench import Workbench


@dataclass(frozen=True)
class Size:
    """``calm``: predictions without deletions; ``deletions``: at most so many; ``apart``: predictions between two, at least."""

    calm: int
    deletions: int
    apart: int


QUICK = Size(calm=200, deletions=8, apart=10)
SIZES = {"smoke": Size(calm=20, deletions=3, apart=3), "full": Size(calm=2000, deletions=24, apart=20)}


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
