"""Serving with the fast engine: chains over one frozen encoder, scored together.

Layers that carry no adapter in any chain so far are computed once for all chains (chains grow from the top down, so after
deletions that is most of the model). Adapters are applied beside the frozen weights, never merged: what serves are the very
tensors of the nodes, and to switch a chain is to let go of some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from s3t.backbone import Backbone, Encoded
from s3t.blocks import ModelState
from s3t.engine import lora
from s3t.engine.encoder import Encoder
from s3t.engine.fast import pooled
from s3t.engine.mode import Precision
from s3t.records import Recipe

if TYPE_CHECKING:
    from s3t.plan import Stage

BATCH = 64
"""Rows per batch when scoring."""


class FastChain:
    """What one chain adds to the frozen encoder: its adapters' tensors and its head's, on the device, float32.

    IsolationError if the tensors are not exactly those of the stages' adapters.
    """

    def __init__(
        self, backbone: Backbone, stages: Sequence[Stage], state: ModelState, recipe: Recipe, precision: Precision
    ) -> None:
        self.encoder = Encoder.of(backbone, precision)
        self.adapters = {name: _on(backbone, tensors) for name, tensors in state.adapters.items()}
        self.head = _on(backbone, state.head)
        self.deltas: dict[int, dict[str, lora.LoraDelta]] = {}
        for stage in {stage.adapter: stage for stage in stages}.values():
            tensors = self.adapters[stage.adapter]
            lora.check_fits(self.encoder, stage, recipe, tensors)
            self.deltas |= lora.deltas(self.encoder, stage, recipe, tensors)
        self.lowest = min(self.deltas)

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """Return adapter ``name``'s tensors under PEFT's file names; the live tensors, not copies."""
        return dict(self.adapters[name])

    def head_tensors(self) -> dict[str, Tensor]:
        """Return the head's ``weight`` (classes, hidden) and ``bias`` (classes,)."""
        return dict(self.head)


def score_together(chains: Mapping[int, FastChain], rows: Sequence[Encoded]) -> dict[int, Tensor]:
    """Return logits of shape (len(rows), classes) per shard, on the CPU, float32, in the order of ``rows``.

    Batches of 64 rows of similar length (stable sort), each padded to its own longest.
    """
    out = {shard: torch.zeros(len(rows), chain.head["bias"].shape[0]) for shard, chain in chains.items()}
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    with torch.no_grad():
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for shard, logits in _batch(chains, [rows[i] for i in chosen]).items():
                out[shard][chosen] = logits.cpu()
    return out


def _batch(chains: Mapping[int, FastChain], rows: Sequence[Encoded]) -> dict[int, Tensor]:
    encoder = next(iter(chains.values())).encoder
    lengths = [row.length for row in rows]
    bias, trunk = encoder.bias(lengths), encoder.embed(rows)
    own: dict[int, Tensor] = {}
    for depth, layer in enumerate(encoder.layers):
        for shard, chain in chains.items():
            if shard in own or chain.lowest == depth:
                own[shard] = layer(own.get(shard, trunk), bias, chain.deltas.get(depth))
        if len(own) < len(chains):
            trunk = layer(trunk, bias)
    return {
        shard: F.linear(pooled(own[shard], lengths), chain.head["weight"], chain.head["bias"])
        for shard, chain in chains.items()
    }


def _on(backbone: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(backbone.device) for name, tensor in tensors.items()}
