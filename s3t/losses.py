"""Losses of one task's outputs, for every engine."""

from __future__ import annotations

from torch import Tensor, nn


def mean_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (rows, classes) for classes ``answers`` (rows,), int64; for numbers, float32, the
    mean squared error of the only output.
    """
    if answers.is_floating_point():
        return nn.functional.mse_loss(logits[:, 0], answers)
    return nn.functional.cross_entropy(logits, answers)


def losses(logits: Tensor, answers: Tensor) -> Tensor:
    """Return each row's own loss (rows,), of which :func:`mean_loss` is the mean."""
    if answers.is_floating_point():
        return nn.functional.mse_loss(logits[:, 0], answers, reduction="none")
    return nn.functional.cross_entropy(logits, answers, reduction="none")
