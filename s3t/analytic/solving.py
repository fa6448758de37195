"""From sums to a linear map: what serves is computed from the sums anew each time, so equal sums give equal bits.

All is done in float64 by one Cholesky factorisation (features^3 / 3 multiplications); nothing of an earlier solution is used.
The factorisation's last bits depend on the machine and on the number of threads, as a node's do; the sums do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3t.analytic.head import AnalyticHead
from s3t.analytic.sums import UNIT, Features, Sums
from s3t.errors import OfflineError, RecipeError

ABSENT = -1e6
"""The score of a class of which no record is retained, where classes are compared by their means."""

BLOCK = 256
"""Rows of a table of products that are worked on at once."""


@dataclass(frozen=True)
class Linear:
    """``weights`` (features, answers), row after row in memory, and ``bias`` (answers,), float64: what serves."""

    weights: Tensor
    bias: Tensor

    def scores(self, rows: Features) -> NDArray[np.float64]:
        """Return scores (rows, answers) of quantised features (rows, features), each row's by itself."""
        inputs = torch.from_numpy(rows.astype(np.float64))
        if not len(inputs):
            return np.zeros((0, len(self.bias)))
        # Row by row, each in memory of its own: a product's bits may depend on how many rows it has and on where they lie, and
        # a prediction must not depend on its company.
        return (torch.stack([row.clone() @ self.weights for row in inputs]) + self.bias).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """Return both by name."""
        return {"weights": self.weights, "bias": self.bias}


def check_form(head: AnalyticHead, answers: int) -> None:
    """Raise RecipeError where classes are compared by their means, and the task's only answer is a number."""
    if answers == 1 and head.form != "ridge":
        raise RecipeError(f"form={head.form!r} compares classes, and the task's answers are numbers; choose ridge")


class Workspace:
    """Two tables (features, features), float64, for solutions one after the other: to get as much fresh memory for each takes
    a third of its time. What is in them when a solution begins has no influence."""

    def __init__(self, features: int) -> None:
        self.square = torch.empty((features, features), dtype=torch.float64)
        self.factor = torch.empty_like(self.square).mT  # column by column, as LAPACK writes it


def solve(sums: Sums, head: AnalyticHead, workspace: Workspace | None = None) -> Linear:
    """Return the linear map that ``head`` declares for the records that ``sums`` are over, worked out in ``workspace``.

    OfflineError without any record; RecipeError as :func:`check_form`, and for a ridge so small that it drowns in the
    rounding of float64.
    """
    if not sums.records:
        raise OfflineError("no record is retained, so an analytic head has nothing to answer from; train another run")
    check_form(head, len(sums.counts))
    work = workspace or Workspace(len(sums.linear))
    counts, linear, cross, targets = (
        torch.from_numpy(part).double() for part in (sums.counts, sums.linear, sums.cross, sums.targets)
    )
    square = work.square.copy_(torch.from_numpy(sums.square))
    if head.form == "ridge":
        return _ridge(counts.sum(), linear, cross, targets, work, head.ridge, 1 / UNIT if len(counts) == 1 else 1.0)
    means = torch.where(counts > 0, cross / counts.clamp(min=1), 0.0)
    # Taken from the square one class after the other, so that the order of subtraction is declared.
    for k in range(len(counts)):
        _take(square, cross[:, k], means[:, k])
    spread = square.diagonal().clamp(min=0).mean()
    if head.form == "prototypes":
        weights = means / (spread / counts.sum()).clamp(min=1.0)
    else:
        weights = _divided(work, means * counts.sum(), head.ridge * spread)
    bias = torch.where(counts > 0, -0.5 * (means * weights).sum(0), ABSENT)
    return Linear(weights, bias)


def _ridge(
    count: Tensor, linear: Tensor, cross: Tensor, targets: Tensor, work: Workspace, ridge: float, unit: float
) -> Linear:
    _take(work.square, linear, linear / count)
    wanted = (cross - torch.outer(linear, targets / count)) * unit
    weights = _divided(work, wanted, ridge * work.square.diagonal().clamp(min=0).mean())
    return Linear(weights, (targets * unit - linear @ weights) / count)


def _take(square: Tensor, left: Tensor, right: Tensor) -> None:
    """Subtract the outer product, some rows at a time, so that no second table as large is made."""
    for rows, some in zip(torch.split(square, BLOCK), torch.split(left, BLOCK), strict=True):
        rows -= torch.outer(some, right)


def _divided(work: Workspace, wanted: Tensor, shrinkage: Tensor) -> Tensor:
    """Return (square + shrinkage I)^-1 wanted; the square is used up. A shrinkage below 1, the smallest product there is, is
    taken as 1."""
    work.square.diagonal().add_(shrinkage.clamp(min=1.0))
    factor, failed = torch.linalg.cholesky_ex(work.square, out=(work.factor, torch.empty((), dtype=torch.int32)))
    if int(failed):
        raise RecipeError("with so small a ridge these features have no solution in float64; give a larger one")
    half = torch.linalg.solve_triangular(
        factor, wanted, upper=False
    )  # as cholesky_solve, which copies the factor first
    out: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True).contiguous()
    return out
