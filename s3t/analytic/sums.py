"""Exact integer sums over records: how many, features, features by answer, products of features. No torch.

**No sum can overflow, and none is ever rounded.** A feature is an integer of at most 2^15 - 1 in size and a target one of
at most 2^15, so a product of two is below 2^30. Of at most :data:`MOST` = 2^32 records every sum is below 2^62 in size, which
int64 holds. Products of many records are taken by a matrix product in float64, which is fast: over :data:`ROWS` = 2^12
records each of its partial sums, in whatever order and with whatever fused steps, is an integer below 2^42 in size, and
float64 holds every integer up to 2^53 without rounding. Both bounds are tested at their edge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3t.analytic.head import LEVELS
from s3t.errors import DataError, RunError

Features = NDArray[np.int16]
Integers = NDArray[np.int64]
UNIT = 2**15
"""What a regression's target of 1 is kept as."""
MOST = 2**32
ROWS = 2**12
"""Rows that are taken at once where many are added: memory stays the same for any number."""
BLOCK = 32
"""Rows of the table of products that a rank-one update works on at once."""


@dataclass(frozen=True)
class Sums:
    """``counts`` (answers,): records, by class (one number for a regression). ``linear`` (features,): the sum of the features.
    ``cross`` (features, answers): of features times targets. ``targets`` (answers,): of the targets. ``square`` (features,
    features): of the products of features. Targets are 1 and 0 for classes, and in units of 1 / UNIT for a regression.

    Changed in place by :meth:`add` and :meth:`remove` alone.
    """

    counts: Integers
    linear: Integers
    cross: Integers
    targets: Integers
    square: Integers

    @classmethod
    def empty(cls, features: int, answers: int) -> Sums:
        """Return the sums over no record; a regression has one answer."""

        def zeros(*shape: int) -> Integers:
            return np.zeros(shape, np.int64)

        return cls(zeros(answers), zeros(features), zeros(features, answers), zeros(answers), zeros(features, features))

    @classmethod
    def over(cls, features: int, answers: int, chunks: Iterable[tuple[Features, NDArray[np.float64]]]) -> Sums:
        """Return the sums over chunks of (features (rows, features), answers (rows,)), one chunk in memory at a time."""
        out = cls.empty(features, answers)
        for rows, given in chunks:
            out.add(rows, given)
        return out

    @property
    def records(self) -> int:
        """How many records the sums are over."""
        return int(self.counts.sum())

    def add(self, rows: Features, answers: NDArray[np.float64]) -> None:
        """Add records: features (rows, features), int16; answers (rows,), class indices or numbers in -1..1.

        DataError for features or answers that no record can have, RunError for more than MOST records; then nothing changed.
        """
        self._change(rows, answers, 1)

    def remove(self, rows: Features, answers: NDArray[np.float64]) -> None:
        """Remove records that were added before, in any order. Errors as :meth:`add`; RunError for more than there are."""
        self._change(rows, answers, -1)

    def copy(self) -> Sums:
        """Return sums of their own."""
        parts = (self.counts, self.linear, self.cross, self.targets, self.square)
        return Sums(*(part.copy() for part in parts))

    def same(self, other: Sums) -> bool:
        """Say whether every bit agrees."""
        mine = (self.counts, self.linear, self.cross, self.targets, self.square)
        theirs = (other.counts, other.linear, other.cross, other.targets, other.square)
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def _change(self, rows: Features, answers: NDArray[np.float64], sign: int) -> None:
        targets, classes = self._targets(rows, answers)
        counts = np.bincount(classes, minlength=len(self.counts)).astype(np.int64)
        if (self.counts + sign * counts).min() < 0:
            raise RunError("more records of a class would be removed than there are; these were not added before")
        if self.records + sign * len(rows) > MOST:
            raise RunError(f"{self.records + len(rows)} records are more than the sums can hold, {MOST}")
        change = np.add if sign > 0 else np.subtract
        for start in range(0, len(rows), ROWS):
            part, wanted = rows[start : start + ROWS], targets[start : start + ROWS]
            if len(part) <= 2:
                # A rank-one update in integers costs less than a product in float64 with its conversions.
                for row, target in zip(part.astype(np.int64), wanted, strict=True):
                    for at in range(0, len(row), BLOCK):  # a product that stays in the processor's caches
                        some = self.square[at : at + BLOCK]
                        change(some, np.multiply.outer(row[at : at + BLOCK], row), out=some)
                    change(self.cross, np.multiply.outer(row, target), out=self.cross)
            else:
                change(self.square, _product(part, part), out=self.square)
                change(self.cross, _product(part, wanted), out=self.cross)
        change(self.linear, rows.sum(axis=0, dtype=np.int64), out=self.linear)
        change(self.targets, targets.sum(axis=0, dtype=np.int64), out=self.targets)
        change(self.counts, counts, out=self.counts)

    def _targets(self, rows: Features, answers: NDArray[np.float64]) -> tuple[Integers, Integers]:
        """Return targets (rows, answers) and under which count each record falls."""
        if rows.dtype != np.int16 or rows.ndim != 2 or rows.shape[1] != len(self.linear):
            raise DataError(
                f"features of type {rows.dtype} and shape {rows.shape} do not fit; give int16, (records, {len(self.linear)})"
            )
        if rows.size and int(rows.min()) < -LEVELS:
            raise DataError(f"a feature of {int(rows.min())} is beyond {LEVELS} in size; quantise features first")
        if answers.shape != (len(rows),):
            raise DataError(f"answers of shape {answers.shape} do not fit {len(rows)} records; give one for each")
        if len(self.counts) == 1:
            if not (np.abs(answers) <= 1).all():
                raise DataError("a number lies outside -1..1; scale it to its declared range first")
            return np.rint(answers * UNIT).astype(np.int64)[:, None], np.zeros(len(rows), np.int64)
        if not ((answers >= 0) & (answers < len(self.counts)) & (answers == np.floor(answers))).all():
            raise DataError(f"an answer is none of the classes 0..{len(self.counts) - 1}")
        classes = answers.astype(np.int64)
        return np.eye(len(self.counts), dtype=np.int64)[classes], classes


def _product(left: NDArray[np.integer], right: NDArray[np.integer]) -> Integers:
    """Return ``left.T @ right`` exactly: at most ROWS rows of integers of at most 2^15 in size."""
    a = left.astype(np.float64)
    return (a.T @ (a if right is left else right.astype(np.float64))).astype(np.int64)
