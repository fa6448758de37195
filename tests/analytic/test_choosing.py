"""A head's ridge and temperature, chosen on validation records alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from s3t.analytic.choosing import (
    FOLDS,
    LEAST,
    RIDGES,
    TEMPERATURES,
    Part,
    accuracy,
    calibrated,
    choose,
    cross_entropy,
    folds,
)
from s3t.analytic.head import AnalyticHead, Form
from s3t.analytic.solving import solve
from s3t.errors import DataError
from s3t.records import Record, candidate, grouped


def part(records: int = 60, features: int = 5, seed: int = 0) -> Part:
    draw = np.random.default_rng(seed)
    answers = np.arange(records) % 3
    rows = draw.normal(0, 300, (records, features)) + np.random.default_rng(9).normal(0, 200, (3, features))[answers]
    return Part(rows.round().astype(np.int16), answers.astype(float))


@pytest.mark.parametrize("form", get_args(Form))
def test_a_choice_answers_no_record_that_it_learned_from(form: Any) -> None:
    """By a plain loop over folds: the scores behind the choice are those of heads on the other folds."""
    validation, head = part(), AnalyticHead(form=form)
    ridges = (0.01, 1.0) if form != "prototypes" else (head.ridge,)
    scores = {ridge: np.zeros((60, 3)) for ridge in ridges}
    for ridge in ridges:
        for i in range(60):
            others = [j for j in range(60) if j % 3 != i % 3]
            found = solve(validation.sums(3, others), replace(head, ridge=ridge))
            scores[ridge][i] = found.scores(validation.rows[i : i + 1])
    assert choose(head, validation, 3, (0.01, 1.0)) == calibrated(head, scores, validation.answers, 40)


def test_the_best_ridge_is_chosen_and_of_equals_the_largest_and_the_temperature_of_least_loss() -> None:
    answers = np.array([0.0, 1.0, 1.0, 0.0])
    right = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.2]])
    wrong = 1 - right
    found = calibrated(AnalyticHead(), {0.1: right, 0.3: right, 1.0: wrong}, answers, 12)
    assert found.head.ridge == found.ridge == 0.3 and found.score == 0.75 and found.records == 12
    assert found.scores == {0.1: 0.75, 0.3: 0.75, 1.0: 0.25}
    losses = [cross_entropy(right, answers, t) for t in TEMPERATURES]
    assert found.cross_entropy == min(losses) and found.head.temperature == TEMPERATURES[losses.index(min(losses))]
    assert TEMPERATURES[0] < found.head.temperature < TEMPERATURES[-1]


def test_a_choice_is_carried_over_as_the_same_shrinkage() -> None:
    """On ten times the records a tenth of the share: what is added to the products of features is the same."""
    few = part()
    many = Part(np.tile(few.rows, (10, 1)), np.tile(few.answers, 10))
    chosen = calibrated(AnalyticHead(ridge=0.4), {0.4: np.eye(3)}, np.arange(3.0), 60).carried(600)
    assert chosen.head.ridge == pytest.approx(0.04) and (chosen.ridge, chosen.records) == (0.4, 60)
    added = [
        ridge * np.diag(np.cov(p.rows.T, bias=True) * len(p.rows)).mean()
        for p, ridge in ((few, chosen.ridge), (many, chosen.head.ridge))
    ]
    assert added[0] == pytest.approx(added[1])


def test_accuracy_and_cross_entropy_by_hand() -> None:
    scores, answers = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0.0, 0.0])
    assert accuracy(scores, answers) == 0.5
    wanted = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(0.5))) / 2
    assert cross_entropy(scores, answers, 0.5) == pytest.approx(wanted, rel=1e-12)


def test_ridges_and_temperatures_ascend() -> None:
    assert list(RIDGES) == sorted(set(RIDGES)) and (RIDGES[0], RIDGES[-1]) == (1e-4, 10.0)
    assert list(TEMPERATURES) == sorted(set(TEMPERATURES)) and 1.0 in TEMPERATURES


def test_a_group_and_the_candidates_of_a_question_are_in_one_fold() -> None:
    def fold(*ids: str) -> list[int]:
        return folds([Record(name, {"text": "a"}, 0) for name in ids]).tolist()

    assert fold(*"abcdefg") == [0, 1, 2, 0, 1, 2, 0]
    assert fold(grouped("x", "1"), grouped("y", "1"), grouped("x", "2"), "z", "w") == [0, 1, 0, 2, 0]
    assert fold(*(candidate(question, name) for question in "pqrs" for name in "ab")) == [0, 0, 1, 1, 2, 2, 0, 0]


def test_folds_and_score_are_as_given() -> None:
    """Folds by thirds, and a score that wants wrong answers: again by a plain loop."""
    made, thirds = part(30), np.arange(30) // 10
    scores = {ridge: np.zeros((30, 3)) for ridge in (0.01, 10.0)}
    for ridge, found in scores.items():
        for i in range(30):
            others = [j for j in range(30) if thirds[j] != thirds[i]]
            head = solve(made.sums(3, others), AnalyticHead(ridge=ridge))
            found[i] = head.scores(made.rows[i : i + 1])

    def wrong(said: Any, answers: Any) -> float:
        return -accuracy(said, answers)

    found = choose(AnalyticHead(), made, 3, (0.01, 10.0), wrong, thirds)
    assert found == calibrated(AnalyticHead(), scores, made.answers, 20, wrong)
    assert found.score == -min(accuracy(each, made.answers) for each in scores.values())


def test_numbers_have_no_temperature() -> None:
    made = part(30)
    numbers = Part(made.rows, np.clip(made.rows[:, 0] / 2000, -1, 1).astype(float))

    def near(said: Any, answers: Any) -> float:
        return -float(((said[:, 0] - answers) ** 2).mean())

    found = choose(AnalyticHead(temperature=3.0), numbers, 1, (1e-3, 10.0), near)
    assert found.head == AnalyticHead(ridge=1e-3, temperature=3.0) and found.cross_entropy is None


def test_too_small_a_split_is_refused() -> None:
    assert choose(AnalyticHead(), part(LEAST), 3, (0.1,)).records == LEAST - LEAST // FOLDS
    few = part(LEAST - 1)
    alike = Part(part().rows, np.zeros(60))
    for made, fold, said in (
        (few, None, f"{LEAST - 1} validation records with 3 different answers in 3 of 3 folds"),
        (alike, None, "60 validation records with 1 different answers"),
        (part(), np.arange(60) % 2, "60 validation records with 3 different answers in 2 of 3 folds"),
        (part(0), None, "0 validation records with 0 different answers"),
    ):
        with pytest.raises(
            DataError, match=f"a head cannot be chosen on {said}.*; give at least {LEAST} with 2 answers"
        ):
            choose(AnalyticHead(), made, 3, (0.1,), fold=fold)
