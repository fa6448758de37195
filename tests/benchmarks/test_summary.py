"""Summary and table: what is compared with what, means over seeds, and nothing that failed is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.rows import Header, Machine, Row, RowSet, interval, read, write
from benchmarks.summary import Setting, failures, label, means, published, rank, readable_bytes, settings
from benchmarks.table import render


def row(**changes: Any) -> Row:
    """Return an accuracy row, with ``changes``."""
    usual: dict[str, Any] = {
        "question": "accuracy",
        "profile": "quick",
        "method": "s3t",
        "budget": 3,
        "shards": 4,
        "slices": 3,
        "metric": "test accuracy",
        "unit": "share",
        "value": 0.75,
        "n": 500,
        "kind": "measured",
        "data": "trec6",
        "model": "minilm",
        "seed": 0,
        "deletions": 0,
    }
    return Row(**{**usual, **changes})


def lone(**changes: Any) -> Row:
    """Return a row of full retraining, which has one shard of one slice."""
    return row(**{"method": "retrain-lora", "budget": 1, "shards": 1, "slices": 1, **changes})


def frame(folder: Path, *rows: Row, date: str = "2025-11-21T04:10:00Z", cpu: str = "A CPU") -> Any:
    """Return ``rows`` as read back, beside what is in ``folder`` already."""
    machine = Machine(cpu, 2, None, "Linux", "3.11", "2.13", "5.17", "0.18", 2, "float32")
    for question in dict.fromkeys(r.question for r in rows):
        same = tuple(r for r in rows if r.question == question)
        write(RowSet(Header(date, "0" * 40, False, "git", machine), same), folder)
    return read(folder)


def test_labels_and_ranks_are_in_plain_words() -> None:
    assert label("s3t", 1) == "S3T, 1 order" and label("s3t", 3) == "S3T, 3 orders"
    assert label("sisa-lora", 1) == "SISA (LoRA, eager)" and label("retrain-lora", 1) == "Full retraining (LoRA)"
    assert label("sequential", 3) == "Sequential LoRA, 3 orders" and label("other", 1) == "other"
    assert sorted([("retrain-full", 1), ("other", 1), ("s3t", 6), ("s3t", 1)], key=lambda k: rank(*k)) == [
        ("s3t", 1),
        ("s3t", 6),
        ("retrain-full", 1),
        ("other", 1),
    ]
    assert [readable_bytes(v) for v in (12, 1200, 3.456e6, 1.1e9)] == ["12 B", "1.2 kB", "3.46 MB", "1.1 GB"]


def test_full_retraining_belongs_to_every_layout(tmp_path: Path) -> None:
    rows = frame(tmp_path, row(), row(shards=5, slices=4), lone())
    assert settings(rows) == [Setting("quick", "trec6", "minilm", 4, 3), Setting("quick", "trec6", "minilm", 5, 4)]
    for setting in settings(rows):
        assert sorted(setting.select(rows)["method"]) == ["retrain-lora", "s3t"]
    only = frame(tmp_path / "lone", lone(data="x[1]/y", model="A b"))
    assert [setting.slug for setting in settings(only)] == ["quick-x-1-y-a-b-1x1"]
    assert str(settings(only)[0]) == "x[1]/y, A b, 1 shard × 1 slice, quick profile"  # noqa: RUF001


def test_means_are_over_seeds_and_say_what_they_hide(tmp_path: Path) -> None:
    values = [0.7, 0.8, 0.9]
    rows = [row(value=value, seed=seed) for seed, value in enumerate(values)]
    rows += [row(value=0.0, seed=seed, deletions=4, extra={"offline": seed == 1}, kind="derived") for seed in (0, 1)]
    rows += [row(value=None, n=0, seed=2, deletions=4, status="failed", reason="no room")]
    rows += [row(method="sisa-lora", seed=None, value=0.5, low=0.4, high=0.7, n=9)]
    table = means(frame(tmp_path, *rows), "test accuracy")
    assert table[["method", "deletions"]].to_numpy().tolist() == [["s3t", 0], ["s3t", 4], ["sisa-lora", 0]]
    healthy, later, given = (line for _, line in table.iterrows())
    assert (healthy["mean"], healthy["low"], healthy["high"]) == pytest.approx(interval(values)) and healthy["n"] == 3
    assert later["n"] == 2 and later["offline"] == 1 and later["derived"] and not healthy["derived"]
    assert (given["mean"], given["low"], given["high"], given["n"]) == (0.5, 0.4, 0.7, 9)


def test_published_takes_the_newest_answer_of_any_machine(tmp_path: Path) -> None:
    frame(tmp_path, row(value=0.1), date="2025-11-01T00:00:00Z", cpu="old")
    rows = frame(tmp_path, row(value=0.2), date="2025-11-02T00:00:00Z", cpu="new")
    assert published(rows)["value"].tolist() == [0.2]


def test_failures_are_told_once_with_their_reason(tmp_path: Path) -> None:
    missing = {"value": None, "n": 0, "status": "not-run", "reason": "too dear"}
    rows = frame(tmp_path, *(lone(seed=seed, **missing) for seed in range(3)), row())
    assert failures(rows) == ["Full retraining (LoRA): test accuracy not-run (too dear)"]


def test_the_table_shows_every_question_and_what_failed(tmp_path: Path) -> None:
    bears = {"question": "capacity", "metric": "deletions to dead system", "data": "", "model": "", "deletions": None}
    rows = [
        *(row(value=value, seed=seed) for seed, value in enumerate([0.7, 0.8, 0.9])),
        lone(value=0.9),
        row(question="cost", metric="record passes", value=9600),
        row(question="cost", metric="record passes per deletion", value=0.0, deletions=None),
        row(question="storage", metric="bytes stored", value=3.6e6, deletions=None),
        row(**bears, value=37.24, n=1, kind="derived", seed=None),
        row(**bears, value=37.0, low=36.5, high=37.5, kind="simulated"),
        row(**{**bears, "shards": 9}, value=99.0, kind="derived"),
        row(question="latency", metric="delete p50", unit="s", value=0.0123, n=20, deletions=None),
        lone(method="retrain-full", value=None, n=0, status="failed", reason="no [red] room"),
    ]
    text = render(frame(tmp_path, *rows))
    lines = text.splitlines()
    assert lines[0] == "trec6, minilm, 4 shards × 3 slices, quick profile"  # noqa: RUF001
    ours = next(line for line in lines if "S3T, 3 orders" in line).split()
    assert ours == ["S3T,", "3", "orders", "37.2", "37.0", "±0.5", "9,600", "0", "3.6", "MB", "80.0%", "±24.8%", "3"]
    lonely = next(line for line in lines if "Full retraining (LoRA)" in line).split()
    assert lonely[-2:] == ["90.0%", "1"] and lonely.count("-") == 5
    assert any(line.startswith("9 shards") for line in lines) and "99.0" in text
    assert "S3T, 3 orders: delete p50 0.0123 s (n = 20, trec6, minilm, quick profile)" in lines
    assert "no number: Full retraining (full): test accuracy failed (no [red] room)" in lines
    assert "capacity\nmeasured" not in text and all(line == line.rstrip() for line in lines)
    assert render(rows) == render(frame(tmp_path / "again", *rows)), "rows and their frame give the same table"
    assert render([]) == ""
