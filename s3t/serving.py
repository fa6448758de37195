"""Serving: the chain of every live shard in memory, and the ensemble over them.

Outputs are combined in float64 in ascending order of shards and returned in float32, so that the combination has one
defined value (docs/DERIVATION.md, "What is served").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from s3t.backbone import Backbone
from s3t.building import load_state
from s3t.engine.numerics import Numerics, Served
from s3t.errors import OfflineError, RunError
from s3t.facts import Facts
from s3t.graph import Node
from s3t.records import Inputs
from s3t.runs import Run
from s3t.selection import Chain


class Serving:
    """The served models of one run. :meth:`sync` must be called before use; it loads what changed and drops the rest."""

    def __init__(self, run: Run, backbone: Backbone) -> None:
        self._run = run
        self._backbone = backbone
        self._numerics = Numerics.of(run.config.kernel)
        self.models: dict[int, tuple[Chain, Served]] = {}

    def sync(self, facts: Facts) -> None:
        """Bring the models in memory in line with ``facts``, as of now.

        A deletion by another process may erase a node while it is being read: then the newer facts are followed. RunError
        if a node is damaged or missing without such a reason.
        """
        while True:
            facts.update()
            self.drop(facts)
            try:
                for shard, chain in facts.chains().items():
                    if shard not in self.models:
                        self.models[shard] = (chain, self.load(facts, chain))
                return
            except RunError:
                if not facts.update():
                    raise

    def drop(self, facts: Facts) -> None:
        """Let go of every model that is not the current chain of its shard."""
        chains = facts.chains()
        self.models = {shard: pair for shard, pair in self.models.items() if chains.get(shard) == pair[0]}

    def load(self, facts: Facts, chain: Chain) -> Served:
        """Return the chain as a model, loaded from the store."""
        config = self._run.config
        stages = facts.plan.stages[: len(chain.nodes)]
        state = load_state(self._run, facts.plan, chain)
        return self._numerics.chain(self._backbone, stages, state, config.recipe, len(config.classes))

    def shard_weights(self) -> dict[int, float]:
        """Return the weight of each live shard in the ensemble: all equal, whatever their data or length."""
        return {shard: 1.0 / len(self.models) for shard in self.models}

    def predict(self, inputs: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return scores of shape (len(inputs), classes). OfflineError without any live shard."""
        if not self.models:
            raise OfflineError("every shard is offline: deletions hit all first slices; run a refresh to serve again")
        recipe = self._run.config.recipe
        rows = self._backbone.encode(inputs, recipe.max_length)
        logits = self._numerics.score({shard: model for shard, (_, model) in self.models.items()}, rows)
        return combine({shard: found.numpy() for shard, found in logits.items()}, self.shard_weights(), recipe.ensemble)

    def weights(self, facts: Facts) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors that serve, by node name: ``adapter.<name>`` and, for a chain's last node, ``head.<name>``."""
        out: dict[str, Mapping[str, Tensor]] = {}
        for _, (chain, model) in sorted(self.models.items()):
            owner: dict[str, Node] = {}
            for stage, fact in zip(facts.plan.stages, chain.nodes, strict=False):
                owner[stage.adapter] = fact.node
            for adapter, node in owner.items():
                tensors = {f"adapter.{name}": value for name, value in model.adapter_tensors(adapter).items()}
                if node == chain.nodes[-1].node:
                    tensors |= {f"head.{name}": value for name, value in model.head_tensors().items()}
                out[node.name] = tensors
        return out


def combine(
    logits: Mapping[int, NDArray[np.float32]], weights: Mapping[int, float], ensemble: str
) -> NDArray[np.float32]:
    """Combine per-shard logits (n, classes) by ``mean-logits``, ``mean-probabilities`` or ``vote`` into (n, classes)."""
    total: NDArray[np.float64] | None = None
    for shard in sorted(logits):
        scores = logits[shard].astype(np.float64)
        if ensemble == "mean-probabilities":
            exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = exponentials / exponentials.sum(axis=1, keepdims=True)
        elif ensemble == "vote":
            scores = np.eye(scores.shape[1])[scores.argmax(axis=1)]
        scores = scores * weights[shard]
        total = scores if total is None else total + scores
    if total is None:
        raise OfflineError("there is no live shard to combine")
    return total.astype(np.float32)
