"""Analytic heads by their core alone, without a run: features of a data set, what validation chooses, random histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead, Pooling
from s3t.analytic.solving import Linear, solve
from s3t.analytic.sums import Features, Sums
from s3t.answers import target
from s3t.backbone import Backbone
from s3t.records import Dataset, Record

Numbers = NDArray[np.float64]
RIDGES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TEMPERATURES = tuple(2.0 ** (k / 2) for k in range(-16, 17))
FOLDS = 3
STEPS = 6
"""Times that records come or go in a history."""


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


@dataclass(frozen=True)
class Featured:
    """A data set's splits as a head reads them; ``seconds``: what reading a record took, mean over all."""

    head: AnalyticHead
    classes: int
    train: Part
    validation: Part
    test: Part
    seconds: float

    @property
    def records(self) -> int:
        """How many records were read."""
        return sum(len(part.rows) for part in (self.train, self.validation, self.test))

    def narrowed(self, poolings: tuple[Pooling, ...], backbone: Backbone) -> Featured:
        """Return what a head with some of the poolings reads: no record is read again. Random features are not kept."""
        layers, poolings_read = len(self.head.layers) or backbone.layers, self.head.poolings
        grid = np.arange(layers * len(poolings_read) * backbone.hidden).reshape(layers, len(poolings_read), -1)
        chosen = grid[:, [poolings_read.index(pooling) for pooling in poolings]].reshape(-1).tolist()
        parts = {name: getattr(self, name).columns(chosen) for name in ("train", "validation", "test")}
        return replace(self, head=replace(self.head, poolings=poolings, random=0), **parts)


def featured(backbone: Backbone, data: Dataset, head: AnalyticHead, max_length: int, seed: int) -> Featured:
    """Read the records of all splits, each by itself, cut to ``max_length`` tokens."""
    reader, started = Reader(backbone, head, seed), perf_counter()

    def part(records: Sequence[Record]) -> Part:
        answers = np.array([target(record.label, data.classes) for record in records], np.float64)
        return Part(reader.read(backbone.encode([record.inputs for record in records], max_length)), answers)

    train, validation, test = part(data.train), part(data.validation), part(data.test)
    seconds = (perf_counter() - started) / sum(len(one.rows) for one in (train, validation, test))
    return Featured(head, len(data.classes), train, validation, test, seconds)


def accuracy(scores: Numbers, answers: Numbers) -> float:
    """Return the share of rows whose best class is the answer."""
    return float((scores.argmax(axis=1) == answers).mean())


def cross_entropy(scores: Numbers, answers: Numbers, temperature: float) -> float:
    """Return the mean cross-entropy in nats of the scores times the temperature."""
    logs = log_softmax(temperature * scores, axis=1)
    return float(-logs[np.arange(len(answers)), answers.astype(np.int64)].mean())


@dataclass(frozen=True)
class Choice:
    """A head as chosen on validation, and what it reached there: accuracy, cross-entropy; ``accuracies``: of every ridge.

    ``ridge``: what was chosen on ``records`` records at a time; ``head`` has it as carried over to more (:meth:`carried`).
    """

    head: AnalyticHead
    ridge: float
    records: int
    accuracy: float
    cross_entropy: float
    accuracies: dict[float, float]

    def carried(self, records: int) -> Choice:
        """Return the choice for a head on so many records: the same shrinkage as a number, hence another share of them all."""
        return replace(self, head=replace(self.head, ridge=self.ridge * self.records / records))


def choose(head: AnalyticHead, validation: Part, classes: int, ridges: Sequence[float] = RIDGES) -> Choice:
    """Choose ridge and temperature on the validation split alone; no training record is seen.

    Each of ``FOLDS`` parts of the split is answered by a head on the others, taken out of the sums and put back. The ridge of
    highest accuracy is chosen, of equals the largest; then the temperature of least cross-entropy.
    """
    fold = np.arange(len(validation.rows)) % FOLDS
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
    return calibrated(head, scores, validation.answers, len(fold) - len(fold) // FOLDS)


def calibrated(head: AnalyticHead, scores: dict[float, Numbers], answers: Numbers, records: int) -> Choice:
    """Return the choice between ``scores`` (rows, classes) by ridge of heads on so many records, and its temperature."""
    reached = {ridge: accuracy(found, answers) for ridge, found in scores.items()}
    best = max(reached, key=lambda ridge: (reached[ridge], ridge))
    losses = {t: cross_entropy(scores[best], answers, t) for t in TEMPERATURES}
    temperature = min(losses, key=lambda t: losses[t])
    chosen = replace(head, ridge=best, temperature=temperature)
    return Choice(chosen, best, records, reached[best], losses[temperature], reached)


def histories(
    rows: Features,
    answers: Numbers,
    classes: int,
    heads: Sequence[AnalyticHead],
    count: int,
    draw: np.random.Generator,
    most: int | None = None,
) -> int:
    """Play random histories and return how many end with the bits of scratch: sums, and what a head, each in turn, solves.

    In a history records come and go, any number at a time and in any order, out of ``most`` drawn for it (None: of all); then
    sums are taken of the retained records alone. Where none is retained the sums must be those of no record.
    """
    equal = 0
    for number in range(count):
        pool, head = draw.permutation(len(rows))[:most], heads[number % len(heads)]
        sums, inside = Sums.empty(rows.shape[1], classes), np.zeros(len(rows), bool)
        for _ in range(STEPS):
            adding = bool(draw.random() < 0.6)
            able = draw.permutation(pool[inside[pool] != adding])
            chosen = able[: draw.integers(0, len(able), endpoint=True)]
            (sums.add if adding else sums.remove)(rows[chosen], answers[chosen])
            inside[chosen] = adding
        scratch = Part(rows, answers).sums(classes, np.flatnonzero(inside))
        equal += sums.same(scratch) and (not inside.any() or same(solve(sums, head), solve(scratch, head)))
    return equal


def same(one: Linear, other: Linear) -> bool:
    """Say whether two solutions agree in every bit."""
    theirs = other.tensors()
    return all(
        torch.equal(tensor.view(torch.int64), theirs[n].view(torch.int64)) for n, tensor in one.tensors().items()
    )


@dataclass(frozen=True)
class Deletion:
    """Seconds of one deletion: out of the sums, and the solution of what is left."""

    update: float
    solution: float


def deletions(part: Part, classes: int, head: AnalyticHead, victims: Sequence[int]) -> list[Deletion]:
    """Delete records one by one, with the solution after each, timed. The first, which warms up, is not counted."""
    sums, found = part.sums(classes), []
    for victim in victims:
        started = perf_counter()
        sums.remove(part.rows[victim : victim + 1], part.answers[victim : victim + 1])
        removed = perf_counter()
        solve(sums, head)
        found.append(Deletion(removed - started, perf_counter() - removed))
    return found[1:]
