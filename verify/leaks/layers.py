"""Faults of layers: adapters found by pieces of a name, and hidden states kept from one training to the next."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from s3t import training
from s3t.blocks import ChainModel, Tensors
from s3t.building import Builder
from s3t.contract import Cost, Progress
from s3t.facts import Facts
from s3t.graph import Node
from s3t.plan import Plan
from s3t.rows import StoredRow
from s3t.runs import Run
from s3t.selection import Chain
from s3t.serving import Serving
from s3t.training import Trained
from verify.leaks.data import everything
from verify.leaks.leak import CLEANROOM, LINEAGE, LOUD, NEVER, Leak, Planted, planted
from verify.leaks.settings import with_blocks, with_twelve_layers


class SubstringModel(ChainModel):
    """A chain model that finds what a stage trains by a piece of the parameter's name: "layer.1" is in "layer.10"."""

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """Return the tensors of all adapters on layers whose name contains that of one of the stage's layers."""
        wanted = [f"layer.{index}" for index in self.stages[name].layers]
        named = self.body.named_parameters()
        return [p for full, p in named if "lora_" in full and any(layer in full for layer in wanted)]


class SubstringBuilder(Builder):
    """A builder whose models stay in memory: ``memory`` holds the first block's tensors as they are now, by its node."""

    memory: dict[Node, Tensors]

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        """Train with the faulty model and keep what it has made of the chain's first block."""
        made: list[ChainModel] = []

        def make(*given: Any) -> ChainModel:
            made.append(SubstringModel(*given))
            return made[-1]

        with patch.object(training, "ChainModel", make):
            trained = super().run_kernel(plan, node, stored)
        tensors = made[-1].adapter_tensors(plan.stages[0].adapter)
        self.memory[Node(node.shard, node.prefix[:1])] = {name: t.detach().clone() for name, t in tensors.items()}
        return trained


class LiveServing(Serving):
    """A server of the models that were trained in the same process: the first block, long frozen, is taken from memory."""

    memory: dict[Node, Tensors]

    def load(self, facts: Facts, chain: Chain) -> ChainModel:
        """Return the chain as a model with its first block as it is in memory."""
        model, live = super().load(facts, chain), self.memory.get(chain.nodes[0].node, {})
        for name, tensor in model.adapter_tensors(facts.plan.stages[0].adapter).items():
            tensor.copy_(live.get(name, tensor))
        return model


class SubstringMatch(Planted):
    """Layers are chosen by `"layer.1" in name`, so that training the block of layer 1 also trains layers 10 and 11."""

    builder = SubstringBuilder
    serving = LiveServing

    def _builder(self, run: Run, facts: Facts) -> Builder:
        worker: Any = super()._builder(run, facts)
        worker.memory = self.__dict__.setdefault("memory", {})
        return worker  # type: ignore[no-any-return]

    def _serving_for(self, run: Run) -> Serving:
        served: Any = super()._serving_for(run)
        served.memory = self.__dict__.setdefault("memory", {})
        return served  # type: ignore[no-any-return]


class CachedModel(ChainModel):
    """A chain model that takes up the cached hidden states of its rows at the lowest layer that is trained."""

    cache: dict[int, dict[tuple[int, ...], Tensor]]

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return logits of shape (batch, classes)."""
        lowest = min(list(self.stages.values())[-1].layers)
        rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
        kept = [self.cache[lowest][tuple(ids[:length])] for ids, length in rows]
        hidden = nn.utils.rnn.pad_sequence(kept, batch_first=True)
        layer = self.backbone.layer_modules(self._bare())[lowest]
        hook = layer.register_forward_pre_hook(lambda _, given: (hidden, *given[1:]))
        try:
            return super().forward(batch)
        finally:
            hook.remove()


class HiddenCache(Builder):
    """Layers below the trained ones are frozen, so what they say is computed once, for all rows, in large batches."""

    def build(self, progress: Progress | None = None, **how: bool) -> Cost:
        """Fill the cache at the first build, then train."""
        if not hasattr(self, "cache"):
            self.cache = self.hidden()
        return super().build(progress, **how)

    def hidden(self) -> dict[int, dict[tuple[int, ...], Tensor]]:
        """Return, by layer and token ids, the hidden states (tokens, hidden) that the layer receives."""
        inputs = [row.record.inputs for row in everything(self)]
        rows = self.backbone.encode(inputs, self.run.config.recipe.max_length)
        out: dict[int, dict[tuple[int, ...], Tensor]] = {layer: {} for layer in range(self.backbone.layers)}
        ordered = sorted(rows, key=lambda row: row.length)
        for start in range(0, len(ordered), 64):
            some = ordered[start : start + 64]
            with torch.no_grad():
                states = self.backbone.model(**self.backbone.collate(some), output_hidden_states=True).hidden_states
            for layer, kept in out.items():
                for row, state in zip(some, states[layer], strict=True):
                    kept[tuple(row.fields["input_ids"])] = state[: row.length].clone()
        return out

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        """Train on the cached hidden states."""
        kind = type("Cached", (CachedModel,), {"cache": self.cache})
        with patch.object(training, "ChainModel", kind):
            return super().run_kernel(plan, node, stored)


LEAKS = (
    Leak(
        28, "layer matched by substring", "memory", SubstringMatch, (CLEANROOM, NEVER, LOUD), needs=with_twelve_layers,
        blind="E0: every record of reads is right, and so is every file",
    ),
    Leak(
        42, "activation cache mixes slices", "numerics", planted(HiddenCache), (LINEAGE, CLEANROOM, NEVER, LOUD),
        needs=with_blocks,
    ),
)  # fmt: skip
