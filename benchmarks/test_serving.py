"""The ensemble over shards: one pass against a pass per shard, switches in memory, and requests during deletions.

Tensors are random, of the right shapes (:mod:`benchmarks.serving`). Ratios are of seconds in the same round, every way in
every round; their interval is Student's t of the logarithms, so the value is the geometric mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.comparing import ratio
from benchmarks.flops import Peak, count_flops, matmul_peak
from benchmarks.metering import Meter
from benchmarks.serving import MadeUpSystem, Requests, Runs, Sides, damage, in_turn, quantile, texts
from benchmarks.workbench import Workbench
from s3t.engine.mode import MODES, Mode
from s3t.records import Layout, Recipe

LAYOUT = Layout(shards=5, slices=3, budget=3)
HALF = (LAYOUT.shards * LAYOUT.slices + 1) // 2
FAST = tuple(mode for mode in MODES if mode.engine == "fast")


@dataclass(frozen=True)
class Size:
    """``cases``: (rows, most tokens of a row); ``rounds`` of each, more of small ones; ``lives``: sets of random deletions;
    ``switches`` and ``asked``: how many switches, and requests, are timed."""

    cases: tuple[tuple[int, int], ...]
    rounds: int
    lives: int
    switches: int
    asked: int

    def rounds_of(self, rows: int, tokens: int) -> int:
        """Return the rounds of a case: up to eight times as many where one takes little."""
        return self.rounds * max(1, min(8, 512 // (rows * tokens)))


_QUICK = Size(((1, 12), (8, 12), (64, 12), (1, 128)), 3, 1, 20, 100)
SIZES = {
    "smoke": Size(((1, 6), (8, 6)), 2, 1, 5, 20),
    "quick": _QUICK,
    "health": _QUICK,
    "full": Size(((1, 12), (8, 12), (64, 12), (1, 128), (8, 128), (64, 128)), 15, 5, 200, 2000),
}


@pytest.fixture(scope="module")
def runs(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of random tensors on the profile's model."""
    return Runs(tmp_path_factory.mktemp("serving"), bench.backbone, LAYOUT, Recipe())


def _about(bench: Workbench) -> dict[str, Any]:
    return {
        "question": "serving",
        "method": "s3t",
        "budget": LAYOUT.budget,
        "shards": LAYOUT.shards,
        "slices": LAYOUT.slices,
        "data": "made",
        "model": bench.profile.model,
        "kind": "measured",
    }


def _extra(mode: Mode, **more: Any) -> dict[str, Any]:
    return {"mode": mode.kernel, "precision": mode.precision, "tensors": "random", **more}


@pytest.mark.parametrize("mode", FAST, ids=lambda mode: mode.precision)
def test_one_pass(benchmark: Any, bench: Workbench, runs: Runs, mode: Mode) -> None:
    """Healthy, and after random deletions have hit half of the slots."""
    benchmark.group = "serving: one pass"
    size, about = SIZES[bench.profile.name], _about(bench)
    lives: list[tuple[int, list[int], Sides]] = []

    def note(system: MadeUpSystem, deletions: int) -> None:
        lengths = [len(chain.nodes) for chain, _ in system.serving.models.values()]
        lives.append((deletions, lengths, Sides.of(system, bench.backbone)))

    for seed in range(size.lives):
        system = runs.system(mode)
        if not seed:
            note(system, 0)
        deletions = damage(system, runs.records, seed, HALF)
        if system.serving.models:
            note(system, deletions)
        system.close()
    peak = matmul_peak(mode.precision, rounds=3, square=(256, 256, 256) if bench.profile.name == "smoke" else None)

    def measure() -> None:
        for rows, tokens in size.cases:
            _compare(bench, mode, lives[:1], rows, tokens, peak, about)
            _compare(bench, mode, lives[1:], rows, tokens, peak, about)

    with bench.answering(metric="times faster than separate passes", **{k: v for k, v in about.items() if k != "kind"}):
        benchmark.pedantic(measure, rounds=1, iterations=1)


def _compare(
    bench: Workbench,
    mode: Mode,
    lives: list[tuple[int, list[int], Sides]],
    rows: int,
    tokens: int,
    peak: Peak,
    about: dict[str, Any],
) -> None:
    """Add the rows of one case: ratios and seconds over all ``lives`` that are of one state of health."""
    size, healthy = SIZES[bench.profile.name], lives[0][0] == 0
    asked = bench.backbone.encode(texts(rows, tokens, rows + tokens), 128)
    longest = max(row.length for row in asked)
    seconds: dict[str, list[float]] = {}
    for _, _, sides in lives:
        for name, found in in_turn(sides.ways(asked), size.rounds_of(rows, tokens)).items():
            seconds.setdefault(name, []).extend(found)
    lengths = [found for _, found, _ in lives]
    extra = _extra(
        mode, rows=rows, tokens=longest, chains=lengths, state="healthy" if healthy else "half of the slots hit"
    )
    common = {**about, "deletions": round(statistics.mean(count for count, _, _ in lives)), "seed": None}
    for name in ("separate passes", "reference engine"):
        value = {**ratio(seconds[name], seconds["one pass"]), "extra": extra | {"interval": "of the logarithms"}}
        bench.add(metric=f"times faster than {name}", unit="ratio", **value, **common)
    for name, found in seconds.items():
        value = {"value": statistics.median(found), "n": len(found), "extra": extra | {"way": name}}
        bench.add(metric="seconds, median", unit="s", **value, **common)
    once = lives[0][2].ways(asked)["one pass"]
    times = size.rounds_of(rows, tokens)
    with Meter() as meter:
        for _ in range(times):
            once()
    flops = times * count_flops(once)
    bench.add_metered(
        meter.usage,
        records=rows * times,
        flops=flops,
        peak=peak,
        extra={**extra, "chains": lengths[:1]},
        metric="records per second, one pass",
        unit="records/s",
        value=rows * times / meter.usage.seconds,
        n=times,
        **common,
    )


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.kernel)
def test_switch(benchmark: Any, bench: Workbench, runs: Runs, mode: Mode) -> None:
    """Seconds from a durable deletion to the ensemble that serves next, nothing read from disk."""
    benchmark.group = "serving: switch in memory"
    size, about = SIZES[bench.profile.name], _about(bench)
    wanted = size.switches if mode.engine == "fast" else min(size.switches, 40)
    seconds: list[float] = []

    def measure() -> None:
        seed = 0
        while len(seconds) < wanted:
            system = runs.system(mode)
            serving = system.serving
            damage(system, runs.records, seed, LAYOUT.shards * LAYOUT.slices)
            seconds.extend(serving.switches)
            system.close()
            seed += 1

    with bench.answering(metric="switch p50", **{k: v for k, v in about.items() if k != "kind"}):
        benchmark.pedantic(measure, rounds=1, iterations=1)
    for share in (0.5, 0.99):
        value = quantile(seconds, share)
        bench.add(
            metric=f"switch p{100 * share:.0f}", unit="s", value=value, n=len(seconds), extra=_extra(mode), **about
        )


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.kernel)
def test_requests_during_deletions(benchmark: Any, bench: Workbench, runs: Runs, mode: Mode) -> None:
    """One thread asks, text after text, for the life of a system: first undisturbed, then while half of the slots are hit."""
    benchmark.group = "serving: requests during deletions"
    size, about = SIZES[bench.profile.name], _about(bench)
    question = texts(1, 12, 0)
    calm, busy = [Requests(lambda: system.predict(question)) for _ in range(2)]
    system = runs.system(mode)
    system.predict(question)
    deletions = 0

    def steps(count: int) -> Iterator[int]:
        yield from range(count)

    def deleting(count: int) -> Iterator[int]:
        nonlocal deletions
        for _ in range(count):
            if system.hit < HALF:
                system.delete([runs.records[deletions].id])
                deletions += 1
            yield deletions

    def measure() -> None:
        apart = max(1, size.asked // 20)
        calm.during(steps(20), apart=apart)
        busy.during(deleting(20), apart=apart)

    with bench.answering(metric="failed requests", **{k: v for k, v in about.items() if k != "kind"}):
        benchmark.pedantic(measure, rounds=1, iterations=1)
    for name, requests in (("none", calm), ("one after the other", busy)):
        extra, n = _extra(mode, deletions=name), len(requests.seconds)
        extra |= {"failures": requests.failures[:3]}
        common = {**about, "deletions": deletions if requests is busy else 0, "extra": extra, "n": n}
        bench.add(metric="failed requests", unit="requests", value=len(requests.failures), **common)
        bench.add(metric="longest request", unit="s", value=max(requests.seconds), **common)
        for share in (0.5, 0.99):
            bench.add(metric=f"request p{100 * share:.0f}", unit="s", value=quantile(requests.seconds, share), **common)
    system.close()
    assert deletions >= HALF
    assert not calm.failures
    assert not busy.failures
