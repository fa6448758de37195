"""Rows from runs: ratios are geometric means in pairs, differences are per seed, and each says what it compares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from baselines.stock.options import Options
from benchmarks.comparing import add_accuracy, add_ratios, add_runs, name_of, ratio, slope, summary
from benchmarks.engines import Ours, Outcome, Stock, ablation, ours
from benchmarks.flops import Peak
from benchmarks.metering import Usage
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench

ABOUT: dict[str, Any] = {"question": "engine", "data": "d", "model": "m", "budget": 1, "shards": 2, "slices": 3}


def _outcome(seconds: float, accuracy: float | None = None) -> Outcome:
    return Outcome(Usage(seconds, 1.0, 1, 2, 0, 3, 10, 5, None, None), 100, 1000, 7, accuracy)


def test_a_ratio_is_the_geometric_mean_of_the_pairs() -> None:
    found = ratio([8.0, 2.0], [1.0, 1.0])
    assert found["value"] == pytest.approx(4.0)
    assert found["low"] * found["high"] == pytest.approx(16.0)
    assert (found["n"], found["confidence"]) == (2, 0.95)
    single = ratio([6.0], [2.0])
    assert single["value"] == pytest.approx(3.0) and single["low"] is single["high"] is single["confidence"] is None


def test_the_slope_is_the_exponent_of_growth() -> None:
    sizes = [10, 20, 40]
    assert slope(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert slope(sizes, [5.0] * 3) == pytest.approx(0.0)
    assert summary([2.0])["value"] == 2.0


def test_rows_say_what_they_compare(tmp_path: Path) -> None:
    bench = Workbench(PROFILES["smoke"], tmp_path)
    mine, theirs = Ours("fast", "fast"), Stock("default", Options())
    runs = {
        name_of(mine): [_outcome(1.0, 0.9), _outcome(2.0, 0.7)],
        name_of(theirs): [_outcome(3.0, 0.8), _outcome(6.0, 0.8)],
    }
    peak = Peak(1000.0, (1, 1, 1), {}, "float32", 1)
    add_runs(bench, mine, (0, 1), runs[name_of(mine)], 5.0, "seed 0", [peak, peak], ABOUT)
    add_ratios(bench, [mine, theirs], runs, ABOUT)
    add_accuracy(bench, [mine, theirs], runs, ABOUT, 50)
    rows = {(row.metric, row.seed, row.method): row for row in bench.rows}
    timed = rows["seconds", 1, "s3t"]
    assert timed.value == 2.0 and timed.extra["flops"] == 500 and timed.extra["share_of_peak"] == 0.25
    assert timed.extra["mode"] == "fast" and timed.extra["records_per_second"] == 50.0
    assert rows["share of matmul peak", None, "s3t"].value == pytest.approx((0.5 + 0.25) / 2)
    faster = rows["times faster than stock", None, "s3t"]
    assert faster.value == pytest.approx(3.0) and faster.extra["against"] == "default"
    difference = rows["accuracy, ours minus stock", None, "s3t"]
    assert difference.value == pytest.approx(0.0, abs=1e-9) and difference.n == 2
    assert difference.high == pytest.approx(10 * math.sqrt(2) / math.sqrt(2) * 12.706, rel=1e-3)
    assert rows["test accuracy", None, "stock"].extra["by_seed"] == [0.8, 0.8]


def test_modes_have_names_of_their_own() -> None:
    for modes in (ours(), ablation()):
        assert len({name_of(mode) for mode in modes}) == len(modes) >= 3
