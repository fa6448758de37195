"""What is said of repeated timings: quantiles with their bounds, and how they grow with a size."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

from scipy.stats import binom


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that a ``share`` of them does not exceed."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def bounds(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the order statistics that enclose the median with a confidence of 95 % or more; none for fewer than 6 values."""
    below = int(binom.ppf(0.025, len(values), 0.5))
    if len(values) < 6 or below < 1:
        return None, None
    ordered = sorted(values)
    return ordered[below - 1], ordered[len(values) - below]


def exponent(series: Sequence[tuple[int, Sequence[float]]]) -> tuple[float, float | None, float | None]:
    """Return the slope of log seconds over log size by least squares, with its 95 % interval over resampled timings."""

    def slope(chosen: Sequence[tuple[int, float]]) -> float:
        xs, ys = [math.log(size) for size, _ in chosen], [math.log(value) for _, value in chosen]
        return statistics.linear_regression(xs, ys).slope

    draw = random.Random(1)
    whole = slope([(size, statistics.median(times)) for size, times in series])
    again = sorted(
        slope([(size, statistics.median(draw.choices(times, k=len(times)))) for size, times in series])
        for _ in range(400)
    )
    return whole, min(whole, again[9]), max(whole, again[389])
