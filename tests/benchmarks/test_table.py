"""The table in the terminal: columns of cost and of the end of the stream, and no digit lost in a narrow one."""

from __future__ import annotations

from typing import Any

from benchmarks.rows import Row
from benchmarks.table import render


def row(**changes: Any) -> Row:
    """Return an accuracy row of S3T at full health, with ``changes``."""
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


def per_deletion(metric: str, value: float, **changes: Any) -> Row:
    """Return a row of the cost of one deletion."""
    return row(question="cost", metric=metric, unit="", value=value, n=2, deletions=None, **changes)


def columns(text: str) -> list[list[str]]:
    """Return the table's cells without its title: two lines of headers, a rule, a line per method."""
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    return [[cell for cell in (part.strip() for part in line.split("  ")) if cell] for line in lines]


def test_cost_of_a_deletion_has_passes_and_down_seconds() -> None:
    rows = [row(), per_deletion("record passes per deletion", 350.0), per_deletion("down seconds per deletion", 0.0123)]
    upper, lower, _, ours = columns(render(rows))
    assert upper == ["passes per", "down s per", "accuracy"]
    assert lower == ["method", "deletion", "deletion", "at health", "n"]
    assert ours == ["S3T, 3 orders", "350", "0.0123", "75.0%", "1"]


def test_the_end_of_the_stream_is_the_same_for_all_and_tells_what_is_offline() -> None:
    rows = [row(deletions=done, value=0.8 - 0.01 * done) for done in (0, 4, 24)]
    rows += [row(method="sequential", budget=1, deletions=done, value=0.7) for done in (0, 4)]
    dead = {"method": "sisa-lora-lazy", "budget": 1, "deletions": 24, "value": 0.0, "extra": {"offline": True}}
    rows += [row(seed=seed, **dead) for seed in (0, 1)]
    _, lower, _, *lines = columns(render(rows))
    assert lower[-2:] == ["0 to 4", "after 24"]
    assert lines == [
        ["S3T, 3 orders", "80.0%", "1", "78.0%", "56.0%"],
        ["Sequential LoRA", "70.0%", "1", "70.0%", "-"],
        ["SISA (LoRA, lazy)", "-", "-", "-", "0.0% (2 offline)"],
        ["mean over 0 to 4 deletions, S3T, 3 orders minus Sequential LoRA: +8.0 points (n = 1)"],
    ]


def test_without_deletions_there_is_no_column_for_them() -> None:
    assert "after" not in render([row()])
    assert "after" in render([row(), row(deletions=1)])


def test_a_narrow_terminal_costs_no_digit() -> None:
    rows = [row(value=value, seed=seed) for seed, value in enumerate([0.7, 0.8, 0.9])]
    rows += [per_deletion("record passes per deletion", 1_234_567.0), row(deletions=9)]
    narrow = render(rows, width=20)
    assert "…" not in narrow and "1,234,567" in narrow and "80.0% ±24.8%" in narrow
    assert narrow.splitlines()[1:] == render(rows, width=200).splitlines()[1:]


def test_accuracy_under_streams_is_a_study_of_its_own() -> None:
    """The same metric of the same systems under other requests may not be taken for more seeds."""
    rows = [row(seed=seed) for seed in (0, 1)]
    rows += [row(question="streams", value=0.1, extra={"stream": stream}) for stream in ("zipf:1.2", "worst")]
    assert columns(render(rows))[-1] == ["S3T, 3 orders", "75.0%", "2"]
