"""What the benchmark of analytic heads rests on: columns of features, histories, deletions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.analytic import deletions, featured, histories, same
from benchmarks.apart import apart
from benchmarks.synthetic import made_features, synthetic
from s3t.analytic import sums as summing
from s3t.analytic.choosing import Part
from s3t.analytic.head import LEVELS, AnalyticHead
from s3t.analytic.solving import solve
from s3t.analytic.sums import Sums
from s3t.backbone import Backbone


def part(records: int = 60, features: int = 5, seed: int = 0) -> Part:
    draw = np.random.default_rng(seed)
    answers = np.arange(records) % 3
    rows = draw.normal(0, 300, (records, features)) + np.random.default_rng(9).normal(0, 200, (3, features))[answers]
    return Part(rows.round().astype(np.int16), answers.astype(float))


def test_columns_are_what_a_head_of_fewer_poolings_reads(tiny: Backbone) -> None:
    data = synthetic(12, 6, 6)
    whole = featured(tiny, data, AnalyticHead(poolings=("mean", "first", "max")), 32, 0)
    assert whole.records == 24 and whole.seconds > 0 and whole.classes == 3
    assert whole.train.answers.tolist() == [record.label for record in data.train]
    for poolings in (("mean",), ("max", "first"), ("mean", "first", "max")):
        found, read = whole.narrowed(poolings, tiny), featured(tiny, data, AnalyticHead(poolings=poolings), 32, 0)
        assert found.head == read.head
        for name in ("train", "validation", "test"):
            assert np.array_equal(getattr(found, name).rows, getattr(read, name).rows)


@pytest.mark.parametrize(("form", "place"), [("ridge", (0, 0)), ("prototypes", (0, 1))])
def test_histories_tell_a_history_that_leaves_something(
    monkeypatch: pytest.MonkeyPatch, form: Any, place: tuple[int, int]
) -> None:
    """Also where no solution shows it: prototypes do not read the products of two different features."""
    made = part()

    def play() -> int:
        return histories(made.rows, made.answers, 3, [AnalyticHead(form=form)], 30, np.random.default_rng(0), most=20)

    assert play() == 30
    removed = Sums.remove

    def leaky(self: Sums, rows: Any, answers: Any) -> None:
        removed(self, rows, answers)
        self.square[place] += bool(len(rows))

    monkeypatch.setattr(Sums, "remove", leaky)
    assert play() < 15


def test_histories_tell_a_solution_that_is_not_a_function_of_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = part(), []

    def tired(sums: Sums, head: AnalyticHead) -> Any:
        calls.append(sums.records)
        found = solve(sums, head)
        return replace(found, bias=found.bias + 1e-15 * (len(calls) % 2))

    monkeypatch.setattr("benchmarks.analytic.solve", tired)
    assert histories(made.rows, made.answers, 3, [AnalyticHead()], 10, np.random.default_rng(0)) == 10 - len(calls) // 2
    assert len(set(calls)) > 3, "histories end with different numbers of records"
    assert len(calls) >= 16, "few histories end without a record"


def test_solutions_are_compared_by_bits() -> None:
    one = solve(part().sums(3), AnalyticHead())
    assert same(one, replace(one))
    assert not same(replace(one, bias=one.bias * 0), replace(one, bias=one.bias * -0.0))


def test_deletions_leave_the_records_untouched() -> None:
    made = part()
    before = made.rows.copy()
    found = deletions(made, 3, AnalyticHead(), [5, 3, 40])
    assert len(found) == 2 and all(one.update > 0 and one.solution > 0 for one in found)
    assert np.array_equal(made.rows, before)


def test_made_features_come_in_chunks_the_same_each_time() -> None:
    many = summing.ROWS * 2 + 5
    chunks = list(made_features(many, 3, 4))
    assert [len(rows) for rows, _ in chunks] == [summing.ROWS, summing.ROWS, 5]
    rows, answers = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    assert rows.dtype == np.int16 and -LEVELS <= rows.min() < -32000 and 32000 < rows.max() <= LEVELS
    assert set(answers) == {0, 1, 2, 3}
    again = list(made_features(many, 3, 4))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(chunks, again, strict=True))


def test_sums_over_a_stream_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Ten times the records, the same memory: all features of the larger stream would take 41 MB."""
    small, large = (apart("sum", tmp_path, (records, 64, 3)) for records in (32_000, 320_000))
    assert large.peak - small.peak < 8e6 and small.peak >= small.before > 0
    assert json.dumps(small.seconds)
