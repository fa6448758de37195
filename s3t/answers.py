"""What a task asks for: one of its classes, a number in a declared range, or a text. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s3t.errors import DataError

CANDIDATE = ("wrong choice", "right choice")
"""The classes of data whose records are candidate answers: those of a question are ranked against one another.

As a range's name does for numbers, these names say what a task asks for wherever its classes are known. Each record is one
candidate, trained by itself with cross-entropy over the two, not by a softmax over the candidates of its question: thus every
record stays a row of its own, and training, deletion, audit and oracle are those of any other data. A question's answer is
the candidate whose score of the second class exceeds that of the first by most.
"""


@dataclass(frozen=True)
class Range:
    """The numbers that a task's answers lie in, ``low`` to ``high``: declared, as classes are, never taken from deletable rows.

    A task with a range instead of classes is a regression; its only "class" is the range's ``name``. Models are trained on
    numbers scaled to -1..1, and their scores are in that unit. Raises DataError unless both are finite and low < high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise DataError(f"numbers from {self.low} to {self.high} are no range; give for example 0:5")

    @property
    def name(self) -> str:
        """The range as runs and sources state it: ``0.0:5.0``."""
        return f"{float(self.low)}:{float(self.high)}"

    @classmethod
    def parse(cls, text: str) -> Range:
        """Return the range written as LOW:HIGH. DataError for anything else."""
        low, _, high = text.partition(":")
        try:
            return cls(float(low), float(high))
        except ValueError as error:
            raise DataError(f"{text!r} is no range of numbers; give LOW:HIGH, for example 0:5") from error

    @classmethod
    def of(cls, classes: Sequence[str]) -> Range | None:
        """Return the range of a task whose ``classes`` are a range's name alone; None for a task with classes. DataError for a
        single class that is no range."""
        if len(classes) != 1 or is_text(classes):
            return None
        try:
            return cls.parse(classes[0])
        except DataError as error:
            raise DataError(
                f"the only class {classes[0]!r} names no range of numbers; declare at least 2 classes"
            ) from error

    def scaled(self, number: float) -> float:
        """Return ``number`` in the unit of scores: -1 for low, 1 for high."""
        return (2.0 * number - self.low - self.high) / (self.high - self.low)

    def value(self, score: float) -> float:
        """Return the number that a score stands for; the inverse of :meth:`scaled`."""
        return (self.low + self.high + score * (self.high - self.low)) / 2.0


TEXT = ("text",)
"""The only "class" of a task whose answers are texts: its records carry them (:mod:`s3t.language`), and their label is 0."""


LANGUAGE = "lm:"
"""Before the name of a base model that is loaded to predict texts."""


def model_name(model: str, classes: Sequence[str]) -> str:
    """Return under which name ``model`` is loaded for a task with these ``classes``."""
    return LANGUAGE + model if is_text(classes) and not model.startswith(LANGUAGE) else model


def is_text(classes: Sequence[str]) -> bool:
    """Say whether a task's answers are texts."""
    return tuple(classes) == TEXT


def check_label(record_id: str, label: int | float, classes: Sequence[str]) -> None:
    """Raise DataError unless the label is the index of one of ``classes``, or a number in the range that they name."""
    numbers = Range.of(classes)
    if isinstance(label, float) is (numbers is None):
        wanted = f"a number from {classes[0]}" if numbers else f"one of the classes {list(classes)}"
        raise DataError(f"record {record_id!r} has label {label!r}, but the task asks for {wanted}")
    if numbers is None and label >= len(classes):
        raise DataError(
            f"record {record_id!r} has label {label}, but the declared classes are "
            f"{list(classes)}; declare its class or drop the record"
        )
    if numbers is not None and not numbers.low <= label <= numbers.high:
        raise DataError(
            f"record {record_id!r} has the number {label}, outside {classes[0]}; declare a wider range or drop it"
        )


def target(label: int | float, classes: Sequence[str]) -> int | float:
    """Return what a model is trained on for ``label``: the index, or the number scaled to its range (a float)."""
    numbers = Range.of(classes)
    return label if numbers is None else numbers.scaled(label)


def answers(scores: Any, classes: Sequence[str]) -> list[int] | list[float]:
    """Return what scores, an array (rows, classes), say: the index of each row's best class, its number in the range, or
    the mean log-likelihood of its text."""
    numbers = Range.of(classes)
    if numbers is not None:
        return [numbers.value(float(score)) for score in scores[:, 0]]
    if is_text(classes):
        return [float(score) for score in scores[:, 0]]
    return [int(best) for best in scores.argmax(axis=1)]


def in_words(classes: Sequence[str]) -> tuple[str, str]:
    """Return what a model answers with, in a few words, and how its scores are to be read."""
    if len(classes) > 1:
        return f"{len(classes)} classes", f"Classes, in the order of the scores: {', '.join(classes)}."
    if is_text(classes):
        return "texts", "The score is the mean log-likelihood of the answer's tokens."
    return (
        f"numbers, {classes[0]}",
        f"The score is a number from {classes[0]}, scaled: -1 is the lower end, 1 the upper.",
    )
