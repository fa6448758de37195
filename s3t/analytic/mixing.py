"""An analytic head and the chains of an ensemble as one answer (docs/DERIVATION.md, "Analytic head"). No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3t.plan import Plan

LEAST = 1e-300
"""A probability is taken to be at least this before its logarithm."""


def mixed(
    chains: NDArray[np.float32] | None, head: NDArray[np.float64], plan: Plan, ensemble: str
) -> NDArray[np.float32]:
    """Return log-probabilities (rows, classes), or numbers (rows, 1), of the head with the ensemble's scores ``chains``.

    None: no chain is live, and the head answers alone. A softmax of what is returned are the mixed probabilities.
    """
    assert plan.head is not None
    share = 1.0 if chains is None else plan.share
    if head.shape[1] == 1:
        plain = share * head
        return (plain if chains is None else (1 - share) * chains.astype(np.float64) + plain).astype(np.float32)
    probabilities = share * softmax(plan.head.temperature * head)
    if chains is not None:
        theirs = chains.astype(np.float64)
        probabilities = (1 - share) * (softmax(theirs) if ensemble == "mean-logits" else theirs) + probabilities
    return np.log(np.maximum(probabilities, LEAST)).astype(np.float32)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of each row."""
    exponentials: NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
    out: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return out
