"""How the outputs of what serves become one answer (docs/DERIVATION.md, "What is served", "Analytic head"). No torch.

All that a weight depends on is which slots deletions have hit: never on what a record says, or how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3t.errors import OfflineError
from s3t.plan import WEIGHTS, Plan

LEAST = 1e-300
"""A probability is taken to be at least this before its logarithm."""


@dataclass(frozen=True)
class Outputs:
    """What each part that serves says of the same inputs: logits of each live shard (inputs, classes), float32, the stages of
    its chain, and the scores of an analytic head (inputs, classes), float64, None where none serves."""

    chains: Mapping[int, NDArray[np.float32]]
    lengths: Mapping[int, int]
    head: NDArray[np.float64] | None


POWERS: Mapping[str, int] = dict(zip(WEIGHTS, (0, 1, 2), strict=True))
"""By the name of the rule, the power of its length that a chain weighs."""


def among(plan: Plan, lengths: Mapping[int, int]) -> dict[int, float]:
    """Return what each live shard's chain weighs among the chains, by the stages of each, as the plan's rule says."""
    power = POWERS[plan.weights]
    total: int = sum(length**power for length in lengths.values())
    return {shard: length**power / total for shard, length in lengths.items()}


def head_share(plan: Plan, lengths: Mapping[int, int]) -> float:
    """Return what an analytic head that serves weighs beside chains of these lengths: all of it, where there are none.

    Unless all chains weigh the same, it takes over what chains that are shorter than whole, or offline, would weigh more.
    """
    if not lengths:
        return 1.0
    if plan.weights == "equal":
        return plan.share
    power = POWERS[plan.weights]
    there: int = sum(length**power for length in lengths.values())
    whole: int = plan.layout.shards * plan.layout.slices**power
    return 1 - (1 - plan.share) * (there / whole)


def answer(outputs: Outputs, plan: Plan, ensemble: str, weights: Mapping[int, float]) -> NDArray[np.float32]:
    """Return the one answer (inputs, classes) of what serves, with the chains' ``weights`` among one another.

    Chains alone: as ``ensemble`` says. With an analytic head: log-probabilities, or numbers where there is one column.
    OfflineError if nothing serves.
    """
    chains = combine(outputs.chains, weights, ensemble) if outputs.chains or outputs.head is None else None
    if outputs.head is None:
        assert chains is not None
        return chains
    return mixed(chains, outputs.head, plan, ensemble, head_share(plan, outputs.lengths))


def combine(
    logits: Mapping[int, NDArray[np.float32]], weights: Mapping[int, float], ensemble: str
) -> NDArray[np.float32]:
    """Combine per-shard logits (n, classes) by ``mean-logits``, ``mean-probabilities`` or ``vote`` into (n, classes)."""
    total: NDArray[np.float64] | None = None
    for shard in sorted(logits):
        scores = logits[shard].astype(np.float64)
        if ensemble == "mean-probabilities":
            scores = softmax(scores)
        elif ensemble == "vote":
            scores = np.eye(scores.shape[1])[scores.argmax(axis=1)]
        scores = scores * weights[shard]
        total = scores if total is None else total + scores
    if total is None:
        raise OfflineError("there is no live shard to combine")
    return total.astype(np.float32)


def mixed(
    chains: NDArray[np.float32] | None, head: NDArray[np.float64], plan: Plan, ensemble: str, share: float
) -> NDArray[np.float32]:
    """Return log-probabilities (rows, classes), or numbers (rows, 1), of the head with the ensemble's scores ``chains``.

    ``chains``: (rows, classes), combined by the rule ``ensemble``, None if no chain is live, and then the head answers alone;
    ``head``: (rows, classes), which weighs ``share`` (:func:`head_share`) and is sharpened by the plan's temperature.
    A softmax of what is returned are the mixed probabilities: their mean with weights (the linear opinion pool), or their
    product with the weights as powers (the logarithmic one).
    """
    assert plan.head is not None
    if head.shape[1] == 1:
        plain = share * head
        return (plain if chains is None else (1 - share) * chains.astype(np.float64) + plain).astype(np.float32)
    own = softmax(plan.head.temperature * head)
    if chains is None:
        return np.log(np.maximum(own, LEAST)).astype(np.float32)
    theirs = softmax(chains.astype(np.float64)) if ensemble == "mean-logits" else chains.astype(np.float64)
    if plan.pool == "linear":
        return np.log(np.maximum((1 - share) * theirs + share * own, LEAST)).astype(np.float32)
    powers = (1 - share) * np.log(np.maximum(theirs, LEAST)) + share * np.log(np.maximum(own, LEAST))
    powers -= powers.max(axis=1, keepdims=True)
    out: NDArray[np.float32] = (powers - np.log(np.exp(powers).sum(axis=1, keepdims=True))).astype(np.float32)
    return out


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of each row."""
    exponentials: NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
    out: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return out
