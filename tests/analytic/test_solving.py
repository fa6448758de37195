"""What is solved from the sums: against the records themselves, in fractions, which round nothing."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from s3t.analytic.head import LEVELS, AnalyticHead
from s3t.analytic.solving import ABSENT, BLOCK, Linear, Workspace, solve
from s3t.analytic.sums import UNIT, Sums
from s3t.errors import OfflineError, RecipeError

FORMS = ("ridge", "balanced", "prototypes")
Matrix = list[list[Fraction]]


def exactly_divided(square: Matrix, wanted: Matrix) -> Matrix:
    """Return square^-1 wanted by Gaussian elimination."""
    rows = [[*left, *right] for left, right in zip(square, wanted, strict=True)]
    for i in range(len(rows)):
        pivot = next(r for r in range(i, len(rows)) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(len(rows)):
            if r != i and rows[r][i]:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[len(square) :] for row in rows]


def mean(rows: list[list[Fraction]]) -> list[Fraction]:
    return [sum(column, Fraction(0)) / len(rows) for column in zip(*rows, strict=True)]


def scatter(rows: list[list[Fraction]], middles: list[list[Fraction]]) -> Matrix:
    """Return the sum over rows of (row - its middle) (row - its middle)'."""
    apart = [[a - b for a, b in zip(row, middle, strict=True)] for row, middle in zip(rows, middles, strict=True)]
    size = len(rows[0])
    return [[sum((row[i] * row[j] for row in apart), Fraction(0)) for j in range(size)] for i in range(size)]


def by_hand(made: Any, head: AnalyticHead) -> tuple[Any, Any]:
    """Return weights and bias from centred records, not from sums: the textbook's formulas, exactly."""
    rows = [[Fraction(int(value)) for value in row] for row in made.rows]
    size, labels = len(rows[0]), [int(answer) for answer in made.answers]
    if head.form == "ridge":
        if made.classes == 1:
            targets = [[Fraction(round(float(answer) * UNIT), UNIT)] for answer in made.answers]
        else:
            targets = [[Fraction(int(label == k)) for k in range(made.classes)] for label in labels]
        middle, level = mean(rows), mean(targets)
        square = scatter(rows, [middle] * len(rows))
        cross = [
            [
                sum(((r[i] - middle[i]) * (t[k] - level[k]) for r, t in zip(rows, targets, strict=True)), Fraction(0))
                for k in range(made.classes)
            ]
            for i in range(size)
        ]
        weights = exactly_divided(shrunk(square, head.ridge), cross)
        bias = [level[k] - sum(middle[i] * weights[i][k] for i in range(size)) for k in range(made.classes)]
        return np.array(weights, float), np.array(bias, float)
    members = [[row for row, label in zip(rows, labels, strict=True) if label == k] for k in range(made.classes)]
    means = [mean(own) if own else [Fraction(0)] * size for own in members]
    square = scatter(rows, [means[label] for label in labels])
    columns = [[means[k][i] for k in range(made.classes)] for i in range(size)]
    if head.form == "balanced":
        covariance = [[value / len(rows) for value in row] for row in shrunk(square, head.ridge)]
        weights = exactly_divided(covariance, columns)
    else:
        variance = max(sum(square[i][i] for i in range(size)) / size / len(rows), Fraction(1))
        weights = [[value / variance for value in row] for row in columns]
    bias = [
        -sum(columns[i][k] * weights[i][k] for i in range(size)) / 2 if members[k] else Fraction(ABSENT)
        for k in range(made.classes)
    ]
    return np.array(weights, float), np.array(bias, float)


def shrunk(square: Matrix, ridge: float) -> Matrix:
    size = len(square)
    shift = max(Fraction(ridge) * sum(square[i][i] for i in range(size)) / size, Fraction(1))
    return [[value + shift * (i == j) for j, value in enumerate(row)] for i, row in enumerate(square)]


def agree(found: Linear, weights: Any, bias: Any) -> None:
    torch.testing.assert_close(found.weights, torch.from_numpy(weights), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.bias, torch.from_numpy(bias), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ridge", [1e-4, 0.1, 3.0])
@pytest.mark.parametrize(("records", "features", "classes"), [(30, 4, 3), (5, 8, 2), (7, 1, 4)])
def test_classes_by_the_textbook(make: Any, form: Any, ridge: float, records: int, features: int, classes: int) -> None:
    """More records than features, fewer, and one feature alone."""
    made, head = make(records, features, classes), AnalyticHead(form=form, ridge=ridge)
    agree(solve(made.sums(), head), *by_hand(made, head))


@pytest.mark.parametrize("ridge", [1e-4, 0.1, 3.0])
@pytest.mark.parametrize(("records", "features"), [(30, 4), (5, 8)])
def test_numbers_by_the_textbook(make: Any, ridge: float, records: int, features: int) -> None:
    made, head = make(records, features, 1), AnalyticHead(ridge=ridge)
    agree(solve(made.sums(), head), *by_hand(made, head))


@pytest.mark.parametrize("form", ["ridge", "balanced"])
def test_more_features_than_are_taken_at_once(make: Any, form: Any) -> None:
    """By the same formulas in float64, from centred records."""
    made, ridge = make(90, 2 * BLOCK + 7, 3), 0.2
    onehot = np.eye(3)[made.answers.astype(int)]
    means = onehot.T @ made.rows / onehot.sum(0)[:, None]
    middle = made.rows.mean(0) if form == "ridge" else means[made.answers.astype(int)]
    square = (made.rows - middle).T @ (made.rows - middle)
    regular = square + ridge * square.diagonal().mean() * np.eye(len(square))
    wanted = (made.rows - middle).T @ (onehot - onehot.mean(0)) if form == "ridge" else 90 * means.T
    found = solve(made.sums(), AnalyticHead(form=form, ridge=ridge))
    np.testing.assert_allclose(found.weights.numpy(), np.linalg.solve(regular, wanted), rtol=1e-6, atol=1e-12)


def test_a_linear_number_is_learned(make: Any) -> None:
    """The predictions are in the range's own scale, not in units."""
    made = make(200, 5, 1)
    found = solve(made.sums(), AnalyticHead(ridge=1e-9)).scores(made.rows)
    assert found.shape == (200, 1)
    np.testing.assert_allclose(found[:, 0], made.answers, atol=2 / UNIT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("absent", [0, 1, 3])
def test_a_class_without_records_is_never_answered(make: Any, form: Any, absent: int) -> None:
    made = make(40, 6, 4)
    kept = np.flatnonzero(made.answers != absent)
    found = solve(made.sums(kept), AnalyticHead(form=form))
    scores = found.scores(made.rows)
    assert not (scores.argmax(1) == absent).any()
    assert not found.weights[:, absent].any()
    assert float(found.bias[absent]) == (0.0 if form == "ridge" else ABSENT)
    assert (scores[kept].argmax(1) == made.answers[kept]).mean() > 0.9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", [[0, 0, 0], [5, -3, 1], [LEVELS, -LEVELS, LEVELS]])
def test_one_record_is_answered_as_it_is(form: Any, row: list[int]) -> None:
    rows = np.array([row], np.int16)
    sums = Sums.over(3, 3, [(rows, np.array([1.0]))])
    found = solve(sums, AnalyticHead(form=form))
    assert bool(torch.isfinite(found.weights).all()) and found.scores(rows)[0].argmax() == 1
    number = solve(Sums.over(3, 1, [(rows, np.array([-0.25]))]), AnalyticHead())
    assert number.scores(rows).tolist() == [[-0.25]] and not number.weights.any()


def test_prototypes_answer_with_the_nearest_mean(make: Any) -> None:
    made = make(60, 5, 4)
    means = np.stack([made.rows[made.answers == k].mean(0) for k in range(4)])
    other = make(200, 5, 4, seed=1).rows
    nearest = ((other[:, None, :] - means) ** 2).sum(2).argmin(1)
    found = solve(made.sums(), AnalyticHead(form="prototypes")).scores(other)
    assert found.argmax(1).tolist() == nearest.tolist() and len(set(nearest.tolist())) == 4


def test_prototypes_of_other_classes_stand_when_a_class_loses_a_record(make: Any) -> None:
    """But for one scale that all classes share: docs/ANALYTIC.md, "Partitions by class". The other forms move every class."""
    made = make(60, 5, 4)
    left = np.delete(np.arange(60), np.flatnonzero(made.answers == 2)[0])
    for form in FORMS:
        before, after = (solve(made.sums(kept), AnalyticHead(form=form)) for kept in (None, left))
        scales = (after.weights / before.weights).numpy()
        others = scales[:, [0, 1, 3]]
        assert (others.max() - others.min() < 1e-12) == (form == "prototypes"), form
        assert abs(scales[:, 2] - others[0, 0]).max() > 1e-6
        if form == "prototypes":
            assert np.allclose((after.bias / before.bias).numpy()[[0, 1, 3]], others[0, 0], rtol=1e-12, atol=0)


def test_balanced_gives_rare_classes_the_same_prior(make: Any) -> None:
    """The mean of two classes' means lies on their border, however many records each has; with ridge it does not."""
    made = make(300, 4, 2)
    kept = np.concatenate([np.flatnonzero(made.answers == 0), np.flatnonzero(made.answers == 1)[:12]])
    sums = made.sums(kept)
    middle = (sums.cross / sums.counts).mean(1)
    for form, gap in (("balanced", 0.0), ("ridge", 0.3)):
        found = solve(sums, AnalyticHead(form=form))
        scores = torch.from_numpy(middle) @ found.weights + found.bias
        scale = float((found.weights[:, 0] - found.weights[:, 1]).norm())
        if form == "balanced":
            assert abs(float(scores[0] - scores[1])) < 1e-9 * (1 + scale * float(np.abs(middle).max()))
        else:
            assert float(scores[0] - scores[1]) > gap


def test_a_larger_ridge_makes_smaller_weights(make: Any) -> None:
    sums = make(40, 6, 3).sums()
    for form in ("ridge", "balanced"):
        sizes = [float(solve(sums, AnalyticHead(form=form, ridge=r)).weights.norm()) for r in (1e-3, 1e-1, 10.0)]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[2]


def test_the_temperature_and_the_step_do_not_touch_the_map(make: Any) -> None:
    """They belong to reading and to serving."""
    sums = make(40, 6, 3).sums()
    one, other = (solve(sums, AnalyticHead(step=2.0**-k, temperature=k)) for k in (1, 9))
    assert torch.equal(one.weights, other.weights) and torch.equal(one.bias, other.bias)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("features", [1, 3, 6, 33])
def test_a_rows_scores_do_not_depend_on_the_others(make: Any, form: Any, features: int) -> None:
    """Nor on where in memory they lie."""
    made = make(40, features, 3)
    found = solve(made.sums(), AnalyticHead(form=form))
    whole = found.scores(made.rows)
    assert whole.dtype == np.float64 and whole.shape == (40, 3)
    for i in range(40):
        assert np.array_equal(found.scores(made.rows[i : i + 1])[0], whole[i])
        assert np.array_equal(found.scores(made.rows[i:][::-1])[-1], whole[i])
    assert found.scores(made.rows[:0]).shape == (0, 3)
    assert found.tensors() == {"weights": found.weights, "bias": found.bias} and found.weights.is_contiguous()
    assert np.array_equal(Linear(found.weights.clone(), found.bias.clone()).scores(made.rows), whole)


@pytest.mark.parametrize("form", FORMS)
def test_without_records_there_is_nothing_to_answer_from(form: Any) -> None:
    for classes in (1, 3):
        with pytest.raises(OfflineError, match="no record is retained, so an analytic head has nothing to answer from"):
            solve(Sums.empty(4, classes), AnalyticHead(form=form))


@pytest.mark.parametrize("form", ["balanced", "prototypes"])
def test_numbers_have_no_means_of_classes(make: Any, form: Any) -> None:
    with pytest.raises(RecipeError, match=f"form='{form}' compares classes, and the task's answers are numbers"):
        solve(make(10, 3, 1).sums(), AnalyticHead(form=form))


@pytest.mark.parametrize("form", ["ridge", "balanced"])
def test_a_ridge_that_drowns_in_rounding_is_refused(form: Any) -> None:
    """Six records 2^29 times each, with more features than that: nothing but the ridge keeps the products regular."""
    rows, answers = np.random.default_rng(0).integers(-LEVELS, LEVELS, (6, 40)).astype(np.int16), np.arange(6.0) % 3
    once = Sums.over(40, 3, [(rows, answers)])
    many = Sums(**{name: value * 2**29 for name, value in vars(once).items()})
    with pytest.raises(RecipeError, match="with so small a ridge these features have no solution in float64"):
        solve(many, AnalyticHead(form=form, ridge=1e-300))
    assert solve(many, AnalyticHead(form=form, ridge=1e-6)).scores(rows).argmax(1).tolist() == answers.tolist()


def test_solving_changes_no_sum_and_gives_the_same_bits_again(make: Any) -> None:
    sums = make(50, 7, 3).sums()
    before = sums.copy()
    for form in FORMS:
        one, other = (solve(given, AnalyticHead(form=form)) for given in (sums, before))
        assert torch.equal(one.weights, other.weights) and torch.equal(one.bias, other.bias)
    assert sums.same(before)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_workspace_held_before_has_no_influence(make: Any, form: Any) -> None:
    """Whatever an earlier solution, of records that are gone by now, left there."""
    sums = make(60, 20, 3).sums()
    head, workspace = AnalyticHead(form=form), Workspace(20)
    fresh = solve(sums, head).tensors()
    for left in (float("nan"), float("inf"), 1e300):
        workspace.square.fill_(left)
        workspace.factor.fill_(left)
        again = solve(sums, head, workspace).tensors()
        assert {name: t.numpy().tobytes() for name, t in again.items()} == {
            name: t.numpy().tobytes() for name, t in fresh.items()
        }
