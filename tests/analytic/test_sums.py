"""Exact sums: against Python's integers, in any order, and at the bounds that the docstring proves."""

from __future__ import annotations

import weakref
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.analytic.head import LEVELS
from s3t.analytic.sums import MOST, ROWS, UNIT, Sums
from s3t.errors import DataError, RunError

Rows = list[list[int]]


def array(rows: Rows, size: int) -> Any:
    return np.array(rows, np.int16).reshape(len(rows), size)


def by_hand(rows: Rows, answers: list[float], size: int, classes: int) -> dict[str, Any]:
    """Return the same sums in Python's integers, which have no bound. ``classes`` 1: numbers."""
    targets = [
        [round(answer * UNIT)] if classes == 1 else [int(answer == k) for k in range(classes)] for answer in answers
    ]
    return {
        "counts": [len(rows)] if classes == 1 else [sum(answer == k for answer in answers) for k in range(classes)],
        "linear": [sum(row[i] for row in rows) for i in range(size)],
        "cross": [
            [sum(r[i] * t[k] for r, t in zip(rows, targets, strict=True)) for k in range(classes)] for i in range(size)
        ],
        "targets": [sum(t[k] for t in targets) for k in range(classes)],
        "square": [[sum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)],
    }


def parts(sums: Sums) -> dict[str, Any]:
    return {field.name: getattr(sums, field.name).tolist() for field in fields(sums)}


FEATURE = st.integers(-LEVELS, LEVELS) | st.sampled_from((-LEVELS, LEVELS, 0))
NUMBER = st.floats(-1, 1) | st.sampled_from((-1.0, 1.0, 0.5 / UNIT, 1.5 / UNIT, -2.5 / UNIT))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Rows, list[float], int, int]:
    size, classes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(FEATURE, min_size=size, max_size=size), max_size=12))
    answer = NUMBER if classes == 1 else st.integers(0, classes - 1).map(float)
    return rows, draw(st.lists(answer, min_size=len(rows), max_size=len(rows))), size, classes


@given(cases(), st.integers(1, 12))
@settings(max_examples=150)
def test_the_sums_are_those_of_pythons_integers(case: tuple[Rows, list[float], int, int], chunk: int) -> None:
    rows, answers, size, classes = case
    chunks = [
        (array(rows[i : i + chunk], size), np.array(answers[i : i + chunk])) for i in range(0, max(len(rows), 1), chunk)
    ]
    sums = Sums.over(size, classes, chunks)
    assert parts(sums) == by_hand(rows, answers, size, classes)
    assert sums.records == len(rows)


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_a_history_leaves_what_the_retained_records_sum_to(case: tuple[Rows, list[float], int, int], draw: Any) -> None:
    """Records come and go in any order and any company; nothing of those that went is left."""
    rows, answers, size, classes = case
    sums, inside = Sums.empty(size, classes), set[int]()
    for _ in range(10):
        outside = [i for i in range(len(rows)) if i not in inside]
        adding = draw.random() < 0.6
        pool = outside if adding else sorted(inside)
        chosen = draw.sample(pool, draw.randint(0, len(pool)))
        given_rows = array([rows[i] for i in chosen], size), np.array([answers[i] for i in chosen], float)
        if adding:
            sums.add(*given_rows)
            inside |= set(chosen)
        else:
            sums.remove(*given_rows)
            inside -= set(chosen)
    kept = sorted(inside)
    assert parts(sums) == by_hand([rows[i] for i in kept], [answers[i] for i in kept], size, classes)


def test_the_bounds_hold_together() -> None:
    """What the docstring proves, in numbers."""
    assert ROWS * 2**15 * 2**15 <= 2**53
    assert LEVELS < 2**15 and UNIT == 2**15
    assert MOST * 2**15 * 2**15 < 2**63


@pytest.mark.parametrize("records", [1, 2, 3, ROWS - 1, ROWS, ROWS + 1, ROWS + 2, 2 * ROWS + 5])
def test_products_at_the_largest_features_are_exact(records: int) -> None:
    """The largest features of either sign, and odd ones beside them: a rounded sum would be even."""
    signs = np.where(np.arange(records) % 3 == 0, -1, 1)
    rows = np.stack([np.full(records, LEVELS), -signs * LEVELS, signs * (LEVELS - 2)], axis=1).astype(np.int16)
    answers = np.where(np.arange(records) % 2 == 0, 1.0, -1.0)
    sums = Sums.empty(3, 1)
    sums.add(rows, answers)
    wide, wanted = rows.astype(object), (answers * UNIT).astype(int).astype(object)
    assert sums.square.tolist() == (wide.T @ wide).tolist()
    assert sums.cross[:, 0].tolist() == (wide.T @ wanted).tolist()
    assert sums.square[0, 0] == records * LEVELS**2
    sums.remove(rows[::-1], answers[::-1])
    assert sums.same(Sums.empty(3, 1))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("chunk", [1, 2, 3, ROWS])
def test_as_many_records_as_there_may_be(sign: int, chunk: int) -> None:
    """Sums of MOST records at the largest size are reached and left again without a bit lost; one more is refused."""

    def most(records: int) -> Sums:
        made = by_hand([[LEVELS, sign * LEVELS]], [1.0], 2, 1)
        return Sums(**{name: np.array(value, dtype=object) * records for name, value in made.items()})

    sums = Sums(**{name: value.astype(np.int64) for name, value in vars(most(MOST - chunk)).items()})
    rows = np.tile(np.array([[LEVELS, sign * LEVELS]], np.int16), (chunk, 1))
    sums.add(rows, np.ones(chunk))
    assert parts(sums) == parts(most(MOST))
    assert int(sums.square[0, 0]) == MOST * LEVELS**2 and int(sums.targets[0]) == MOST * UNIT
    before = sums.copy()
    with pytest.raises(RunError, match=rf"{MOST + 1} records are more than the sums can hold, {MOST}"):
        sums.add(rows[:1], np.ones(1))
    assert sums.same(before)
    sums.remove(rows, np.ones(chunk))
    assert parts(sums) == parts(most(MOST - chunk))


def test_numbers_are_rounded_to_units_halves_to_even() -> None:
    sums = Sums.empty(1, 1)
    given_numbers = [0.5 / UNIT, 1.5 / UNIT, 2.5 / UNIT, -0.5 / UNIT, -1.5 / UNIT, 1.0, -1.0]
    found = []
    for number in given_numbers:
        before = int(sums.targets[0])
        sums.add(np.ones((1, 1), np.int16), np.array([number]))
        found.append(int(sums.targets[0]) - before)
    assert found == [0, 2, 2, 0, -2, UNIT, -UNIT]


GOOD = np.array([[1, -LEVELS], [LEVELS, 0], [3, 4]], np.int16)
WRONG: tuple[tuple[int, Any, Any, type[Exception], str], ...] = (
    (3, GOOD.astype(np.int32), [0, 1, 2], DataError, r"features of type int32 and shape \(3, 2\) do not fit; give int16"),
    (3, GOOD[:, :1], [0, 1, 2], DataError, r"shape \(3, 1\) do not fit; give int16, \(records, 2\)"),
    (3, GOOD[0], [0, 1], DataError, r"shape \(2,\) do not fit"),
    (3, np.array([[1, -LEVELS - 1]], np.int16), [0], DataError, "a feature of -32768 is beyond 32767 in size"),
    (3, GOOD, [0, 1], DataError, r"answers of shape \(2,\) do not fit 3 records"),
    (3, GOOD, [[0], [1], [2]], DataError, r"answers of shape \(3, 1\) do not fit 3 records"),
    *(
        (3, GOOD, [0, answer, 1], DataError, r"an answer is none of the classes 0\.\.2")
        for answer in (3, -1, 0.5, -0.5, 2.5, np.nan, np.inf, -np.inf, 1e300, 2.0**63)
    ),
    *(
        (1, GOOD, [0, number, 1], DataError, r"a number lies outside -1\.\.1")
        for number in (np.nan, np.inf, -np.inf, 1.0000000000000002, -2)
    ),
)  # fmt: skip


@pytest.mark.parametrize(("classes", "rows", "answers", "error", "said"), WRONG)
@pytest.mark.parametrize("way", ["add", "remove"])
def test_what_no_record_can_have_is_refused_and_nothing_changes(
    way: str, classes: int, rows: Any, answers: Any, error: type[Exception], said: str
) -> None:
    sums = Sums.empty(2, classes)
    sums.add(GOOD, np.array([0.0, 1.0, 2.0]) if classes > 1 else np.array([0.0, 1.0, -1.0]))
    before = sums.copy()
    with pytest.raises(error, match=said):
        getattr(sums, way)(rows, np.array(answers, float))
    assert sums.same(before)


def test_more_than_there_are_cannot_be_removed() -> None:
    sums = Sums.empty(2, 3)
    sums.add(GOOD, np.array([0.0, 1.0, 1.0]))
    before = sums.copy()
    for answers in ([0.0, 0.0], [2.0, 1.0]):
        with pytest.raises(RunError, match="more records of a class would be removed than there are"):
            sums.remove(GOOD[:2], np.array(answers))
        assert sums.same(before)
    numbers = Sums.empty(2, 1)
    with pytest.raises(RunError, match="would be removed than there are"):
        numbers.remove(GOOD[:1], np.array([0.5]))


def test_a_copy_is_its_own_and_every_part_counts() -> None:
    sums = Sums.empty(2, 3)
    sums.add(GOOD, np.array([0.0, 1.0, 2.0]))
    for field in fields(sums):
        other = sums.copy()
        assert other.same(sums)
        getattr(other, field.name).flat[-1] += 1
        assert not other.same(sums) and not sums.same(other)


def test_no_record_at_all_changes_nothing() -> None:
    sums = Sums.empty(2, 3)
    sums.add(np.zeros((0, 2), np.int16), np.zeros(0))
    sums.remove(np.zeros((0, 2), np.int16), np.zeros(0))
    assert sums.same(Sums.empty(2, 3)) and sums.records == 0


def test_chunks_do_not_pile_up() -> None:
    """While a chunk is made, no more than the one before it is still in memory."""
    chunks: list[weakref.ref[Any]] = []
    alive = []

    def made() -> Any:
        for _ in range(5):
            alive.append(sum(chunk() is not None for chunk in chunks))
            rows = GOOD.copy()
            chunks.append(weakref.ref(rows))
            yield rows, np.array([0.0, 1.0, 2.0])

    assert Sums.over(2, 3, made()).records == 15
    assert max(alive) == 1
