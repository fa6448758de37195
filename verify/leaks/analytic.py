"""Faults of an analytic head: features that know other records, sums that remember, and a map chosen on what was deleted.

What is measured on the data is kept by the folder of its run, as a real system would keep it in a file beside the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from s3t.analytic import making, standing
from s3t.analytic.features import Reader, _pooled
from s3t.analytic.sums import Sums
from s3t.backbone import Backbone, Encoded
from s3t.building import Builder
from s3t.contract import Cost, Progress
from s3t.ledger import Ledger
from s3t.rows import RecordStore
from s3t.runs import Run
from s3t.serving import Serving
from verify.leaks.leak import CLEANROOM, LINEAGE, LOUD, NEVER, OF_TEXTS, SCAN, Leak, Planted, planted
from verify.leaks.settings import with_head

MEASURED: dict[tuple[str, Path], Any] = {}
"""What was measured once on a run's data, by what it is and the run's folder."""


def encoded_rows(run: Run, backbone: Backbone) -> list[Encoded]:
    """Return all retained records of a run, encoded, in order of ids."""
    rows = [row for slot in run.config.plan.layout.slots() for row in run.records.slot_rows(*slot)]
    rows.sort(key=lambda row: row.record.id)
    return backbone.encode([row.record.inputs for row in rows], run.config.recipe.max_length)


class Fitted(Reader):
    """A reader whose plain features are put on a scale that was measured on ``run``'s data when features were first made."""

    def __init__(self, run: Run, backbone: Backbone, *given: Any) -> None:
        super().__init__(backbone, *given)
        key = (type(self).__name__, run.path)
        if key not in MEASURED:
            MEASURED[key] = self.measured(
                torch.stack([super(Fitted, self)._plain(r) for r in encoded_rows(run, backbone)])
            )
        self._scale: Any = MEASURED[key]

    def measured(self, plain: Tensor) -> Any:
        """Return what is measured on the plain features (records, features) of all records."""
        raise NotImplementedError

    def _plain(self, row: Encoded) -> Tensor:
        return self.scaled(super()._plain(row))

    def scaled(self, plain: Tensor) -> Tensor:
        """Return a record's plain features on the measured scale."""
        raise NotImplementedError


class Ranged(Fitted):
    """The largest integer stands for four deviations of the data."""

    def measured(self, plain: Tensor) -> Any:
        """Return by what features are divided before the declared step."""
        return 4 * plain.std() / (32767 * self._head.step)

    def scaled(self, plain: Tensor) -> Tensor:
        """Divide by the range."""
        out: Tensor = plain / self._scale
        return out


class Normal(Fitted):
    """Features have mean 0 and variance 1 over the data."""

    def measured(self, plain: Tensor) -> Any:
        """Return mean and deviation of each feature."""
        return plain.mean(0), plain.std(0) + 1e-6

    def scaled(self, plain: Tensor) -> Tensor:
        """Subtract the mean, divide by the deviation."""
        mean, deviation = self._scale
        out: Tensor = (plain - mean) / deviation
        return out


class Crowd(Reader):
    """A reader that puts a record into a batch with others, and takes padding for tokens."""

    def __init__(self, run: Run, backbone: Backbone, *given: Any) -> None:
        super().__init__(backbone, *given)
        self._all = encoded_rows(run, backbone)

    def _plain(self, row: Encoded) -> Tensor:
        at = next(i for i, other in enumerate(self._all) if other.fields == row.fields) // 16 * 16
        with torch.no_grad(), self._outputs() as layers:
            self._backbone.model(**self._backbone.collate([row, *self._all[at : at + 16]]))
            parts = [_pooled(layers[layer], how) for layer in self._layers for how in self._head.poolings]
        plain = torch.cat(parts).float().cpu()
        return plain if self._drawn is None else torch.cat([plain, (plain @ self._drawn).relu()])


MakeReader = Callable[..., Reader]


class Making(Builder):
    """A builder that makes features with another ``reader``."""

    reader: MakeReader

    def _features(self, progress: Progress | None, mend: bool) -> Cost:
        run, kind = self.run, type(self).reader
        with patch.object(making, "Reader", lambda *given: kind(run, *given)):
            return super()._features(progress, mend)


class Reading(Serving):
    """Serving that reads inputs with the ``reader`` that records were read with."""

    reader: MakeReader

    def __init__(self, run: Run, backbone: Backbone, *given: Any) -> None:
        super().__init__(run, backbone, *given)
        assert self._head is not None
        self._head.reader = type(self).reader(run, backbone, self._head._head, run.config.seed)


class RangeFromData(Planted):
    """The range of the integers is measured on the data, as every guide to quantisation says, and kept as a constant."""

    builder = type("RangedMaking", (Making,), {"reader": Ranged})
    serving = type("RangedReading", (Reading,), {"reader": Ranged})


class NormalisedOverAll(Planted):
    """A scaler is fitted once, before the records are split off that may be deleted, and stored with the model."""

    builder = type("NormalMaking", (Making,), {"reader": Normal})
    serving = type("NormalReading", (Reading,), {"reader": Normal})


class Batched(Making):
    """Features are made in batches, which is faster, and padding is pooled like any token."""

    reader = Crowd


class WithHead(Serving):
    """Serving whose analytic head is another one."""

    head: type[standing.StandingHead]

    def __init__(self, run: Run, backbone: Backbone, *given: Any) -> None:
        super().__init__(run, backbone, *given)
        self._head = type(self).head(run, backbone)


class ChosenRidge(standing.StandingHead):
    """A head whose ridge is that of Hoerl, Kennard and Baldwin (1975): noise over signal of the first solution."""

    def _solve(self) -> None:
        key = ("ridge", self._run.path)
        super()._solve()
        if key not in MEASURED and self._sums is not None and self.linear is not None:
            weights, sums = self.linear.weights, self._sums
            explained = float((weights * torch.from_numpy(sums.cross).double()).sum())
            MEASURED[key] = abs(float(sums.targets.sum()) - explained) / float((weights**2).sum()) / self._spread(sums)
        with patch.object(self, "_head", _with_ridge(self._head, MEASURED.get(key, self._head.ridge))):
            super()._solve()

    def _spread(self, sums: Sums) -> float:
        return float(sums.square.diagonal().mean())


def _with_ridge(head: Any, ridge: float) -> Any:
    return dataclasses.replace(head, ridge=ridge)


class RidgeFromData(WithHead):
    """The ridge is estimated on the training records at the first start, and a hyperparameter is not touched by deletions."""

    head = ChosenRidge


class Single(Sums):
    """Sums in float32."""

    @classmethod
    def empty(cls, features: int, answers: int) -> Sums:
        """Return zeros in float32."""
        whole = Sums.empty(features, answers)
        parts: Any = [
            part.astype(np.float32) for part in (whole.counts, whole.linear, whole.cross, whole.targets, whole.square)
        ]
        return cls(*parts)

    def _change(self, rows: Any, answers: Any, sign: int) -> None:
        targets, classes = self._targets(rows, answers)
        for row, target, k in zip(rows.astype(np.float32), targets.astype(np.float32), classes, strict=True):
            self.square[...] += sign * np.multiply.outer(row, row)
            self.cross[...] += sign * np.multiply.outer(row, target)
            self.linear[...] += sign * row
            self.targets[...] += sign * target
            self.counts[k] += sign


class Drifting(standing.StandingHead):
    """A head over sums in float32."""

    def _read(self, ledger: Ledger, store: RecordStore) -> None:
        with patch.object(standing, "Sums", Single):
            super()._read(ledger, store)


class FloatingSums(WithHead):
    """Sums are kept in float32, and a deleted record is subtracted: what was added and taken away leaves its rounding."""

    head = Drifting


class LeftFeatures(Planted):
    """Rows and nodes are erased; features are only numbers, and nobody remembers that they are there."""

    def _attach(self, run: Run) -> None:
        if run.features is not None:
            run.features.erase = lambda number: None  # type: ignore[method-assign]
        super()._attach(run)


class Stale(standing.StandingHead):
    """A head that is read once."""

    def follow(self) -> None:
        """Read the sums at the first call."""
        if self._seen is None:
            super().follow()

    def forget(self, gone: Iterable[standing.Kept], fresh: Iterable[str], request: int) -> None:
        """Forget nothing."""


class StaleSums(WithHead):
    """The head is solved at the start of the service; nobody tells it of deletions."""

    head = Stale


LEAKS = (
    Leak(
        46, "quantised by the data's range", "statistics", RangeFromData, (CLEANROOM, NEVER, LOUD), needs=with_head,
    ),
    Leak(
        47, "features normalised over all data", "statistics", NormalisedOverAll, (CLEANROOM, NEVER, LOUD),
        needs=with_head,
    ),
    Leak(
        48, "ridge estimated before deletions", "statistics", planted(RidgeFromData), (CLEANROOM, NEVER, LOUD),
        needs=with_head,
    ),
    Leak(
        49, "sums in float32, added and subtracted", "memory", planted(FloatingSums), (CLEANROOM, NEVER, LOUD),
        needs=with_head,
    ),
    Leak(
        50, "features of the deleted left behind", "erasure", LeftFeatures, (SCAN,), needs=with_head,
        blind="all but E0: nothing that serves reads them; E0 residue: numbers hold neither id nor content",
    ),
    Leak(
        51, "head not solved anew", "memory", planted(StaleSums), (LINEAGE, CLEANROOM, NEVER, LOUD), needs=with_head,
    ),
    Leak(
        52, "features in padded batches", "rows", planted(Batched), (CLEANROOM, NEVER, LOUD), needs=with_head,
        absent=OF_TEXTS,
    ),
)  # fmt: skip
