"""The area under accuracy against deletions, and the gap at full health, in pairs by seed. Pure functions on frames.

The area is normalised: the integral of accuracy over the deletions that all methods of a setting went through (trapezoid
between checkpoints), divided by that range, which is a mean accuracy. Where nothing could be served accuracy is 0. Methods
with the same seed met the same requests. Frames are those of :func:`benchmarks.rows.read`, of one setting
(:meth:`benchmarks.summary.Setting.select`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.rows import interval
from benchmarks.summary import rank

METRIC = "test accuracy"
Key = tuple[str, int]
"""Method and budget."""
Curve = tuple[tuple[float, float], ...]
"""(deletions, accuracy), ascending."""
OPPONENTS = (
    *("sisa-lora-lazy", "sisa-lora", "sisa-full-lazy", "sisa-full"),
    *("sequential", "retrain-lora", "retrain-full"),
)
"""What the areas of S3T are compared with, at every budget that was measured."""
FULL_LORA: Key = ("retrain-lora", 1)


@dataclass(frozen=True)
class Difference:
    """``ours`` minus ``theirs`` in points, mean over ``n`` seeds that both have, with Student's t interval (None: one seed)."""

    ours: Key
    theirs: Key
    points: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        """Return the number as it is shown: "+1.2 points [-0.3, 2.7]"."""
        bounds = "" if self.low is None or self.high is None else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.points:+.1f} points{bounds}"


@dataclass(frozen=True)
class Areas:
    """Normalised area by method, budget and seed, over ``first`` to ``last`` deletions."""

    first: float
    last: float
    by_seed: Mapping[Key, Mapping[int, float]]


def curves(frame: pd.DataFrame) -> dict[Key, dict[int, Curve]]:
    """Return accuracy against deletions by method, budget and seed; rows without a number are left out."""
    rows = frame[(frame["question"] == "accuracy") & (frame["metric"] == METRIC) & (frame["status"] == "ok")]
    rows = rows[rows["seed"].notna() & rows["deletions"].notna()]
    points: dict[Key, dict[int, dict[float, float]]] = {}
    columns = ("method", "budget", "seed", "deletions", "value")
    for method, budget, seed, deletions, value in zip(*(rows[name] for name in columns), strict=True):
        curve = points.setdefault((str(method), int(budget)), {}).setdefault(int(seed), {})
        curve[float(deletions)] = float(value)
    ordered = sorted(points, key=lambda key: rank(*key))
    return {key: {seed: tuple(sorted(curve.items())) for seed, curve in sorted(points[key].items())} for key in ordered}


def area(curve: Sequence[tuple[float, float]], first: float, last: float) -> float:
    """Return the mean of ``curve`` over ``first`` to ``last`` deletions (share), straight lines between its points.

    ValueError if the curve does not cover that range, or if the range is empty.
    """
    x, y = np.array(curve, dtype=float).T
    if not x[0] <= first < last <= x[-1]:
        raise ValueError(f"a curve over {x[0]:g}..{x[-1]:g} deletions does not cover {first:g}..{last:g}")
    ends = np.interp([first, last], x, y)
    inside = (x > first) & (x < last)
    at, value = np.r_[first, x[inside], last], np.r_[ends[0], y[inside], ends[1]]
    return float(np.sum((value[1:] + value[:-1]) / 2 * np.diff(at)) / (last - first))


def areas(frame: pd.DataFrame) -> Areas | None:
    """Return the areas over the range that all curves of more than one point have in common; None if there is no such."""
    found = {
        key: {seed: curve for seed, curve in by_seed.items() if len(curve) > 1}
        for key, by_seed in curves(frame).items()
    }
    every = [curve for by_seed in found.values() for curve in by_seed.values()]
    first = max((curve[0][0] for curve in every), default=0.0)
    last = min((curve[-1][0] for curve in every), default=0.0)
    if not first < last:
        return None
    by_seed = {
        key: {seed: area(curve, first, last) for seed, curve in curves.items()}
        for key, curves in found.items()
        if curves
    }
    return Areas(first, last, by_seed)


def differences(found: Areas) -> list[Difference]:
    """Return the areas of S3T, at each budget, minus those of each of ``OPPONENTS``, in pairs by seed."""
    theirs = [key for method in OPPONENTS for key in found.by_seed if key[0] == method]
    ours = [key for key in found.by_seed if key[0] == "s3t"]
    pairs = [_difference(one, found.by_seed[one], other, found.by_seed[other]) for one in ours for other in theirs]
    return [pair for pair in pairs if pair is not None]


def gaps(frame: pd.DataFrame) -> list[Difference]:
    """Return the accuracy at full health of S3T, at each budget, minus that of one LoRA on all data, in pairs by seed."""
    healthy = {
        key: {seed: curve[0][1] for seed, curve in by_seed.items() if curve[0][0] == 0}
        for key, by_seed in curves(frame).items()
    }
    full = healthy.get(FULL_LORA, {})
    pairs = [_difference(key, mine, FULL_LORA, full) for key, mine in healthy.items() if key[0] == "s3t"]
    return [pair for pair in pairs if pair is not None]


def _difference(ours: Key, mine: Mapping[int, float], theirs: Key, others: Mapping[int, float]) -> Difference | None:
    points = [100 * (mine[seed] - others[seed]) for seed in mine if seed in others]
    if not points:
        return None
    mean, low, high = interval(points)
    return Difference(ours, theirs, mean, low, high, len(points))
