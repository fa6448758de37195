"""The gap to one LoRA on all records, by the number of training records."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from benchmarks.sizes import gaps, kinds


def frame(*given: tuple[str, str, int, float]) -> pd.DataFrame:
    """Return rows of (data, method, seed, accuracy)."""
    about: dict[str, Any] = {"question": "sizes", "status": "ok", "metric": "test accuracy"}
    return pd.DataFrame(
        [{**about, "data": data, "method": method, "seed": seed, "value": value} for data, method, seed, value in given]
    )


def test_gaps_are_of_the_same_seed_and_size() -> None:
    rows = frame(
        ("trec6[600]", "s3t", 0, 0.80), ("trec6[600]", "retrain-lora", 0, 0.90),
        ("trec6[600]", "s3t", 1, 0.86), ("trec6[600]", "retrain-lora", 1, 0.90),
        ("trec6[1200]", "s3t", 0, 0.90), ("trec6[1200]", "retrain-lora", 0, 0.92),
        ("trec6[1200]", "s3t", 1, 0.10), ("movies[600]", "s3t", 0, 0.10),
    )  # fmt: skip
    found = gaps(rows).set_index(["data", "records", "method"])
    assert set(found.index) == {("trec6", 600, "s3t"), ("trec6", 1200, "s3t")}
    small, large = found.loc[("trec6", 600, "s3t")], found.loc[("trec6", 1200, "s3t")]
    assert (small["mean"], small["n"]) == (pytest.approx(-7.0), 2) and small["low"] < -30 and small["high"] > 10
    assert (large["mean"], large["n"]) == (pytest.approx(-2.0), 1) and pd.isna(large["low"])


def test_what_failed_is_no_gap() -> None:
    rows = frame(("trec6[600]", "s3t", 0, 0.80), ("trec6[600]", "retrain-lora", 0, 0.90))
    rows.loc[1, "status"] = "failed"
    assert gaps(rows).empty


def test_what_is_compared() -> None:
    named = {kind.name: kind for kind in kinds(3)}
    assert list(named) == ["s3t", "s3t-stacked", "sisa-lora-lazy", "retrain-lora"]
    assert named["s3t-stacked"].ranks == 1 / 3 and {kind.budget for kind in named.values()} == {1}
