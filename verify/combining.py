"""How the outputs of what serves become one answer, from docs/DERIVATION.md, "What is served" and "Analytic head"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 1e-300
"""A probability below this is taken as this before its logarithm."""


def combine(logits: Sequence[NDArray[np.float32]], ensemble: str) -> NDArray[np.float32]:
    """Combine the logits of live shards, in ascending order of shards (docs/DERIVATION.md, "What is served").

    In float64: each shard's output times w = 1/shards, summed one after the other; the sum as float32.
    """
    total = np.zeros(logits[0].shape, dtype=np.float64)
    for shard in logits:
        wide = shard.astype(np.float64)
        if ensemble == "mean-probabilities":
            wide = softmax(wide)
        elif ensemble == "vote":
            wide = np.eye(wide.shape[1])[wide.argmax(axis=1)]
        total += wide * (1 / len(logits))
    return total.astype(np.float32)


def softmax(wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp(x - max) / sum of each row."""
    raised = np.exp(wide - wide.max(axis=1, keepdims=True))
    out: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return out


def mixed(
    chains: NDArray[np.floating[Any]] | None, head: NDArray[np.float64], share: float, temperature: float, ensemble: str
) -> NDArray[np.float32]:
    """Return what is served of ``chains``, their combined scores (None: no live chain), and ``head``, its scores H."""
    number = head.shape[1] == 1
    answer = head if number else softmax(temperature * head)
    if chains is None:
        chains, share = np.zeros(head.shape), 1.0
    elif not number and ensemble == "mean-logits":
        chains = softmax(chains.astype(np.float64))
    both = (1 - share) * chains.astype(np.float64) + share * answer
    return (both if number else np.log(np.maximum(both, LEAST))).astype(np.float32)
