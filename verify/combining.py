"""How the outputs of what serves become one answer, from docs/DERIVATION.md, "What is served" and "Analytic head"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verify.plans import Plan

LEAST = 1e-300
"""A probability below this is taken as this before its logarithm."""


def among(plan: Plan, lengths: Sequence[int]) -> list[float]:
    """Return what each live chain weighs among the chains: 1 / chains, or its stages (their square) / the sum of all."""
    if plan.weights == "length":
        return [length / sum(lengths) for length in lengths]
    if plan.weights == "square":
        squares = [length * length for length in lengths]
        return [square / sum(squares) for square in squares]
    return [1 / len(lengths) for _ in lengths]


def share(plan: Plan, lengths: Sequence[int]) -> float:
    """Return what an analytic head that serves weighs beside live chains of ``lengths``."""
    if plan.weights == "length" and lengths:
        return 1 - (1 - plan.share) * (sum(lengths) / (plan.shards * plan.slices))
    if plan.weights == "square" and lengths:
        squares = sum(length * length for length in lengths)
        return 1 - (1 - plan.share) * (squares / (plan.shards * plan.slices * plan.slices))
    return plan.share if lengths else 1.0


def combine(logits: Sequence[NDArray[np.float32]], weights: Sequence[float], ensemble: str) -> NDArray[np.float32]:
    """Combine the logits of live shards, in ascending order of shards (docs/DERIVATION.md, "What is served").

    In float64: each shard's output times its weight, summed one after the other; the sum as float32.
    """
    total = np.zeros(logits[0].shape, dtype=np.float64)
    for shard, weight in zip(logits, weights, strict=True):
        wide = shard.astype(np.float64)
        if ensemble == "mean-probabilities":
            wide = softmax(wide)
        elif ensemble == "vote":
            wide = np.eye(wide.shape[1])[wide.argmax(axis=1)]
        total += wide * weight
    return total.astype(np.float32)


def softmax(wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp(x - max) / sum of each row."""
    raised = np.exp(wide - wide.max(axis=1, keepdims=True))
    out: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return out


def mixed(
    chains: NDArray[np.floating[Any]] | None, head: NDArray[np.float64], part: float, plan: Plan, ensemble: str
) -> NDArray[np.float32]:
    """Return what is served of ``chains``, their combined scores (None: no live chain), and ``head``, its scores H.

    ``part``: what the head weighs (:func:`share`).
    """
    assert plan.head is not None
    if head.shape[1] == 1:
        theirs = np.zeros(head.shape) if chains is None else chains.astype(np.float64)
        return ((1 - part) * theirs + part * head).astype(np.float32)
    own = softmax(plan.head.temperature * head)
    if chains is None:
        return np.log(np.maximum(own, LEAST)).astype(np.float32)
    theirs = softmax(chains.astype(np.float64)) if ensemble == "mean-logits" else chains.astype(np.float64)
    if plan.pool == "linear":
        return np.log(np.maximum((1 - part) * theirs + part * own, LEAST)).astype(np.float32)
    summed = (1 - part) * np.log(np.maximum(theirs, LEAST)) + part * np.log(np.maximum(own, LEAST))
    summed = summed - summed.max(axis=1, keepdims=True)
    out: NDArray[np.float32] = (summed - np.log(np.exp(summed).sum(axis=1, keepdims=True))).astype(np.float32)
    return out
