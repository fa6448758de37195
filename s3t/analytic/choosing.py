"""What a head leaves to be declared, chosen on records that are never deletable: ridge and temperature.

`s3t tune` and the benchmark of analytic heads both choose by this. Nothing here is ever given a training record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead
from s3t.analytic.solving import solve
from s3t.analytic.sums import Features, Sums
from s3t.answers import target
from s3t.backbone import Backbone
from s3t.errors import DataError
from s3t.records import Record, owner

Numbers = NDArray[np.float64]
Folds = NDArray[np.int64]
Score = Callable[[Numbers, Numbers], float]
"""Of scores (records, answers) and true answers (records,): the larger the better."""
RIDGES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TEMPERATURES = tuple(2.0 ** (k / 2) for k in range(-16, 17))
FOLDS = 3
LEAST = 12
"""Records that a head is chosen on at least."""


@dataclass(frozen=True)
class Part:
    """Quantised features (records, features) and answers (records,) of a split."""

    rows: Features
    answers: Numbers

    def sums(self, classes: int, chosen: Any = None) -> Sums:
        """Return the sums over the chosen records in ascending order, or over all."""
        kept = np.arange(len(self.rows)) if chosen is None else np.sort(chosen)
        return Sums.over(self.rows.shape[1], classes, [(self.rows[kept], self.answers[kept])])

    def columns(self, chosen: Sequence[int]) -> Part:
        """Return the records with these features alone."""
        return Part(np.ascontiguousarray(self.rows[:, chosen]), self.answers)


def read(
    reader: Reader, backbone: Backbone, records: Sequence[Record], classes: Sequence[str], max_length: int
) -> Part:
    """Read the records, each by itself, cut to ``max_length`` tokens."""
    answers = np.array([target(record.label, classes) for record in records], np.float64)
    return Part(reader.read(backbone.encode([record.inputs for record in records], max_length)), answers)


def folds(records: Sequence[Record]) -> Folds:
    """Return the fold of each record, 0..FOLDS - 1: one after the other, those of a group or question in the same one."""
    place: dict[str, int] = {}
    return np.array([place.setdefault(owner(record.id), len(place)) for record in records], np.int64) % FOLDS


def accuracy(scores: Numbers, answers: Numbers) -> float:
    """Return the share of rows whose best class is the answer."""
    return float((scores.argmax(axis=1) == answers).mean())


def cross_entropy(scores: Numbers, answers: Numbers, temperature: float) -> float:
    """Return the mean cross-entropy in nats of the scores times the temperature."""
    logs = log_softmax(temperature * scores, axis=1)
    return float(-logs[np.arange(len(answers)), answers.astype(np.int64)].mean())


@dataclass(frozen=True)
class Choice:
    """A head as chosen on validation, and what it reached there: score, cross-entropy; ``scores``: of every ridge.

    ``ridge``: what was chosen on ``records`` records at a time; ``head`` has it as carried over to more (:meth:`carried`).
    ``cross_entropy``: None where answers are numbers, for which a temperature means nothing.
    """

    head: AnalyticHead
    ridge: float
    records: int
    score: float
    cross_entropy: float | None
    scores: dict[float, float]

    def carried(self, records: int) -> Choice:
        """Return the choice for a head on so many records: the same shrinkage as a number, hence another share of them all."""
        return replace(self, head=replace(self.head, ridge=self.ridge * self.records / records))


def choose(
    head: AnalyticHead,
    validation: Part,
    classes: int,
    ridges: Sequence[float] = RIDGES,
    score: Score = accuracy,
    fold: Folds | None = None,
) -> Choice:
    """Choose ridge and temperature on the validation split alone; no training record is seen.

    Each of ``FOLDS`` parts of the split, by position or as ``fold`` says (records,), is answered by a head on the others, taken
    out of the sums and put back. The ridge of highest score is chosen, of equals the largest; then the temperature of least
    cross-entropy. DataError for a split of fewer than LEAST records, or with one and the same answer everywhere.
    """
    fold = np.arange(len(validation.rows)) % FOLDS if fold is None else fold
    told, groups = len(np.unique(validation.answers)), len(np.unique(fold))
    if len(fold) < LEAST or groups < FOLDS or told < 2:
        raise DataError(
            f"a head cannot be chosen on {len(fold)} validation records with {told} different answers in {groups} of {FOLDS} "
            f"folds; give at least {LEAST} with 2 answers, in {FOLDS} groups or more, or declare ridge and temperature"
        )
    sums = validation.sums(classes)
    scores = {
        ridge: np.zeros((len(fold), classes)) for ridge in (ridges if head.form != "prototypes" else [head.ridge])
    }
    for number in range(FOLDS):
        rows, answers = validation.rows[fold == number], validation.answers[fold == number]
        sums.remove(rows, answers)
        for ridge, found in scores.items():
            found[fold == number] = solve(sums, replace(head, ridge=ridge)).scores(rows)
        sums.add(rows, answers)
    return calibrated(head, scores, validation.answers, len(fold) - len(fold) // FOLDS, score)


def calibrated(
    head: AnalyticHead, scores: dict[float, Numbers], answers: Numbers, records: int, score: Score = accuracy
) -> Choice:
    """Return the choice between ``scores`` (rows, classes) by ridge of heads on so many records, and its temperature."""
    reached = {ridge: score(found, answers) for ridge, found in scores.items()}
    best = max(reached, key=lambda ridge: (reached[ridge], ridge))
    chosen = replace(head, ridge=best)
    if scores[best].shape[1] == 1:
        return Choice(chosen, best, records, reached[best], None, reached)
    losses = {t: cross_entropy(scores[best], answers, t) for t in TEMPERATURES}
    temperature = min(losses, key=lambda t: losses[t])
    return Choice(replace(chosen, temperature=temperature), best, records, reached[best], losses[temperature], reached)
