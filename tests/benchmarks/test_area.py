"""Areas under accuracy against deletions and gaps at full health, by hand-made rows."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from scipy.stats import t as student

from benchmarks.area import Areas, area, areas, curves, differences, gaps
from benchmarks.rows import Row
from benchmarks.table import _frame, render


def row(method: str, budget: int, seed: int | None, deletions: int | None, value: float | None, **more: Any) -> Row:
    undivided = method.startswith("retrain")
    about: dict[str, Any] = {"question": "accuracy", "profile": "quick", "metric": "test accuracy", "unit": "share"}
    about |= {"kind": "measured", "data": "trec6", "model": "minilm", "n": 100}
    about |= {"shards": 1, "slices": 1} if undivided else {"shards": 4, "slices": 3}
    about |= {"method": method, "budget": budget, "seed": seed, "deletions": deletions, "value": value}
    return Row(**{**about, **more})


def life(method: str, budget: int, seed: int, *points: tuple[int, float]) -> list[Row]:
    return [row(method, budget, seed, deletions, value) for deletions, value in points]


def frame(*lives: list[Row]) -> pd.DataFrame:
    return _frame([one for rows in lives for one in rows])


LIVES = (
    life("s3t", 1, 0, (0, 0.9), (4, 0.7), (12, 0.5)),
    life("s3t", 1, 1, (0, 0.8), (4, 0.8), (12, 0.0)),
    life("s3t", 3, 0, (0, 0.9), (4, 0.9), (12, 0.7)),
    life("sisa-lora-lazy", 1, 0, (0, 0.8), (4, 0.6), (12, 0.2)),
    life("sisa-lora-lazy", 1, 1, (0, 0.8), (4, 0.4), (12, 0.0)),
    life("sisa-lora", 1, 0, (0, 0.8), (12, 0.6)),
    life("retrain-lora", 1, 0, (0, 0.92), (12, 0.92)),
    life("retrain-lora", 1, 1, (0, 0.84)),
)


def test_the_area_is_the_trapezoid_over_the_range() -> None:
    line = ((0.0, 1.0), (4.0, 0.5), (12.0, 0.0))
    assert area(line, 0, 12) == pytest.approx((4 * 0.75 + 8 * 0.25) / 12)
    assert area(line, 0, 4) == pytest.approx(0.75)
    assert area(line, 2, 8) == pytest.approx((2 * 0.625 + 4 * 0.375) / 6), "ends between two points are on the line"
    assert area(line, 5, 6) == pytest.approx((0.4375 + 0.375) / 2)
    assert area(((3.0, 0.4), (9.0, 0.4)), 3, 9) == pytest.approx(0.4)


@pytest.mark.parametrize(("first", "last"), [(0, 12), (2, 11), (2, 2), (5, 4)])
def test_a_range_that_is_not_covered_is_refused(first: float, last: float) -> None:
    with pytest.raises(ValueError, match=r"a curve over 2\.\.10 deletions does not cover"):
        area(((2.0, 1.0), (10.0, 1.0)), first, last)


def test_areas_by_method_budget_and_seed() -> None:
    found = areas(frame(*LIVES))
    assert found is not None and (found.first, found.last) == (0, 12)
    assert found.by_seed == {
        ("s3t", 1): {0: pytest.approx((4 * 0.8 + 8 * 0.6) / 12), 1: pytest.approx((4 * 0.8 + 8 * 0.4) / 12)},
        ("s3t", 3): {0: pytest.approx((4 * 0.9 + 8 * 0.8) / 12)},
        ("sisa-lora", 1): {0: pytest.approx(0.7)},
        ("sisa-lora-lazy", 1): {0: pytest.approx((4 * 0.7 + 8 * 0.4) / 12), 1: pytest.approx((4 * 0.6 + 8 * 0.2) / 12)},
        ("retrain-lora", 1): {0: pytest.approx(0.92)},
    }


def test_the_range_is_what_all_have_in_common() -> None:
    longer = life("s3t", 1, 0, (2, 0.8), (20, 0.8)), life("sisa-lora", 1, 0, (0, 0.9), (10, 0.4))
    found = areas(frame(*longer))
    assert found == Areas(2, 10, {("s3t", 1): {0: 0.8}, ("sisa-lora", 1): {0: pytest.approx((0.8 + 0.4) / 2)}})
    assert areas(frame(life("s3t", 1, 0, (0, 0.8), (4, 0.8)), life("sisa-lora", 1, 0, (4, 0.9), (10, 0.4)))) is None
    assert areas(frame(life("s3t", 1, 0, (0, 0.8)))) is None
    assert areas(frame()) is None


def test_differences_are_in_pairs_by_seed_with_students_t() -> None:
    found = areas(frame(*LIVES))
    assert found is not None
    told = {(d.ours, d.theirs): d for d in differences(found)}
    assert set(told) == {(("s3t", b), (m, 1)) for b in (1, 3) for m in ("sisa-lora-lazy", "sisa-lora", "retrain-lora")}
    lazy = told[("s3t", 1), ("sisa-lora-lazy", 1)]
    pair = [100 * (8.0 - 6.0) / 12, 100 * (6.4 - 4.0) / 12]
    mean, half = sum(pair) / 2, student.ppf(0.975, 1) * abs(pair[0] - pair[1]) / 2
    assert (lazy.points, lazy.low, lazy.high, lazy.n) == (
        *(pytest.approx(value) for value in (mean, mean - half, mean + half)),
        2,
    )
    eager = told[("s3t", 1), ("sisa-lora", 1)]
    assert (eager.low, eager.high, eager.n) == (None, None, 1), "only the seed that both have"
    assert eager.points == pytest.approx(100 * (8.0 / 12 - 0.7))
    assert str(eager) == "-3.3 points" and str(lazy).startswith("+18.3 points [")


def test_the_gap_at_full_health_counts_seeds_without_deletions_too() -> None:
    found = gaps(frame(*LIVES))
    assert [(d.ours, d.theirs, d.n) for d in found] == [
        (("s3t", 1), ("retrain-lora", 1), 2),
        (("s3t", 3), ("retrain-lora", 1), 1),
    ]
    assert [d.points for d in found] == [pytest.approx(-3.0), pytest.approx(-2.0)]
    assert gaps(frame(*LIVES[:4])) == []


def test_rows_that_are_no_points_of_a_life_are_left_out() -> None:
    odd = [
        row("s3t", 1, 0, 20, None, status="failed", reason="no room", n=0),
        row("s3t", 1, None, 20, 0.5),
        row("s3t", 1, 0, None, 0.5),
        row("s3t", 1, 0, 20, 0.5, question="streams"),
        row("s3t", 1, 0, 20, 0.5, metric="another"),
    ]
    assert (
        curves(frame(LIVES[0], odd))
        == curves(frame(LIVES[0]))
        == {("s3t", 1): {0: ((0.0, 0.9), (4.0, 0.7), (12.0, 0.5))}}
    )


def test_the_table_tells_areas_and_differences() -> None:
    text = render(frame(*LIVES))
    lines = text.splitlines()
    assert "mean over" in text and "0 to 12" in text
    assert any(line.lstrip().startswith("S3T, 3 orders") and " 83.3% " in line for line in lines)
    assert "at full health, S3T, 3 orders minus Full retraining (LoRA): -2.0 points (n = 1)" in lines
    assert any(
        line.startswith("mean over 0 to 12 deletions, S3T, 1 order minus SISA (LoRA, lazy): +18.3") for line in lines
    )
    healthy = render(frame(life("s3t", 1, 0, (0, 0.9)), life("retrain-lora", 1, 0, (0, 0.95))))
    assert "mean over" not in healthy and "minus Full retraining (LoRA): -5.0 points (n = 1)" in healthy
