"""From the runs of several sides to rows: cost accounting per run, ratios of seconds, accuracy in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from benchmarks.engines import Ours, Outcome, Side, Stock
from benchmarks.flops import Peak
from benchmarks.metering import Usage
from benchmarks.rows import interval
from benchmarks.workbench import Workbench

T = TypeVar("T")
Runs = Mapping[str, Sequence[Outcome]]
"""The outcomes of each side by :func:`name_of`, job by job."""


def name_of(side: Side) -> str:
    """Return the name under which a side's outcomes are kept."""
    return f"{side.method}, {side.mode}"


def add_runs(
    bench: Workbench,
    side: Side,
    seeds: Sequence[int],
    outcomes: Sequence[Outcome],
    flops_per_record: float,
    counted_on: str,
    peaks: Sequence[Peak],
    about: dict[str, Any],
) -> None:
    """Add a row per seed with its whole cost accounting, and the share of the peak over all seeds.

    ``flops_per_record``: operations per record pass; ``counted_on`` says where.
    """
    shares = []
    for seed, outcome, peak in zip(seeds, outcomes, peaks, strict=True):
        flops = round(flops_per_record * outcome.record_passes)
        extra = {"mode": side.mode, "optimizer_steps": outcome.steps, "layer_passes": outcome.layer_passes}
        extra["flops_counted"] = counted_on
        shares.append(flops / outcome.usage.seconds / peak.flops_per_second)
        bench.add_metered(
            outcome.usage,
            records=outcome.record_passes,
            flops=flops,
            peak=peak,
            extra=extra,
            metric="seconds",
            unit="s",
            value=outcome.usage.seconds,
            n=1,
            kind="measured",
            method=side.method,
            seed=seed,
            **about,
        )
    extra = {"mode": side.mode}
    about = {**about, "method": side.method, "kind": "measured", "extra": extra}
    bench.add(metric="share of matmul peak", unit="share", **summary(shares), **about)
    rates = [outcome.record_passes / outcome.usage.seconds for outcome in outcomes]
    bench.add(metric="record passes per second", unit="records/s", **summary(rates), **about)


def add_ratios(bench: Workbench, sides: Sequence[Side], runs: Runs, about: dict[str, Any]) -> None:
    """Add a row per pair of ours and stock: the geometric mean of seconds, stock over ours."""
    for side in (side for side in sides if isinstance(side, Ours)):
        for other in (other for other in sides if isinstance(other, Stock)):
            value = ratio(seconds_of(runs[name_of(other)]), seconds_of(runs[name_of(side)]))
            extra = {"mode": side.mode, "against": other.mode, "interval": "of the logarithms"}
            metric = "times faster than stock"
            bench.add(metric=metric, unit="ratio", kind="measured", method="s3t", extra=extra, **value, **about)


def add_accuracy(bench: Workbench, sides: Sequence[Side], runs: Runs, about: dict[str, Any], test: int) -> None:
    """Add every side's accuracy, and per pair the mean difference over seeds, in points. ``test``: records behind each."""
    answers = {name: [outcome.accuracy or 0.0 for outcome in outcomes] for name, outcomes in runs.items()}
    for side in sides:
        extra = {"mode": side.mode, "test_records": test, "by_seed": answers[name_of(side)]}
        value = summary(answers[name_of(side)])
        bench.add(
            metric="test accuracy", unit="share", kind="measured", method=side.method, extra=extra, **value, **about
        )
    for side in (side for side in sides if isinstance(side, Ours)):
        for other in (other for other in sides if isinstance(other, Stock)):
            pairs = zip(answers[name_of(side)], answers[name_of(other)], strict=True)
            value = summary([100 * (mine - theirs) for mine, theirs in pairs])
            extra = {"mode": side.mode, "against": other.mode, "test_records": test}
            metric = "accuracy, ours minus stock"
            bench.add(metric=metric, unit="points", kind="measured", method="s3t", extra=extra, **value, **about)


class Timed(Protocol):
    """A run of which is known what it used."""

    @property
    def usage(self) -> Usage:
        """What it used."""


def seconds_of(outcomes: Sequence[Timed]) -> list[float]:
    """Return the seconds of each run."""
    return [outcome.usage.seconds for outcome in outcomes]


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Return the geometric mean of the ratios of seconds, run by run, as a row's value with its interval and n."""
    found = summary([math.log(a / b) for a, b in zip(above, below, strict=True)])
    return {k: math.exp(v) if k in ("value", "low", "high") and v is not None else v for k, v in found.items()}


def rotated(sides: Sequence[T], number: int) -> list[T]:
    """Return ``sides`` from another place on: each round of a comparison begins with another side."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return a row's value, interval and n: the mean with Student's t."""
    mean, low, high = interval(values)
    return {"value": mean, "low": low, "high": high, "confidence": None if low is None else 0.95, "n": len(values)}


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the least-squares slope of log seconds over log sizes."""
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
