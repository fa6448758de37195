"""Faults of layers: adapters found by pieces of a name, and hidden states kept from one training to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from s3t import training
from s3t.backbone import Encoded
from s3t.blocks import ChainModel, Tensors
from s3t.building import Builder
from s3t.contract import Cost, Progress
from s3t.engine import activations, fast, lora
from s3t.engine.activations import Piece, activate
from s3t.engine.encoder import Encoder
from s3t.engine.numerics import Served
from s3t.facts import Facts
from s3t.graph import Node
from s3t.plan import Plan, Stage
from s3t.records import Recipe
from s3t.rows import StoredRow
from s3t.runs import Run
from s3t.selection import Chain
from s3t.serving import Serving
from s3t.training import Trained
from verify.leaks.data import everything
from verify.leaks.leak import CLEANROOM, LINEAGE, LOUD, NEVER, OF_TEXTS, SCAN, Leak, Planted, planted
from verify.leaks.settings import with_blocks, with_blocks_in_three_orders, with_twelve_layers


class SubstringModel(ChainModel):
    """A chain model that finds what a stage trains by a piece of the parameter's name: "layer.1" is in "layer.10"."""

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """Return the tensors of all adapters on layers whose name contains that of one of the stage's layers."""
        wanted = [f"layer.{index}" for index in self.stages[name].layers]
        named = self.body.named_parameters()
        return [p for full, p in named if "lora_" in full and any(layer in full for layer in wanted)]


def matched(stage: Stage, layer: int) -> bool:
    """Whether the name of ``layer`` contains that of one of the stage's layers."""
    return any(f"layer.{index}" in f"layer.{layer}" for index in stage.layers)


class SubstringLearned(fast._Learned):
    """The fast engine's form: adapters of earlier stages on matched layers are no longer merged, but learn as well."""

    earlier: Sequence[tuple[Stage, Tensors]] = ()

    def __init__(self, encoder: Encoder, stage: Stage, recipe: Recipe, *given: Any) -> None:
        super().__init__(encoder, stage, recipe, *given)
        deltas = {layer: dict(mine) for layer, mine in self.deltas.items()}
        for other, tensors in self.earlier:
            for place in lora.places(encoder, other, recipe):
                if matched(stage, place.layer):
                    a, b = (nn.Parameter(tensors[name].to(encoder.backbone.device)) for name in (place.a, place.b))
                    delta = lora.LoraDelta(a, b, lora.scale(recipe), recipe.dropout)
                    deltas.setdefault(place.layer, {})[place.projection] = delta
                    self.places.append(place)
                    self.body += [a, b]
        self.deltas = deltas


class SubstringBuilder(Builder):
    """A builder whose models stay in memory: ``memory`` holds the first block's tensors as they are now, by its node."""

    memory: dict[Node, Tensors]

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        """Train with the faulty model and keep what it has made of the chain's first block."""
        how = self.fast if self.numerics.mode.engine == "fast" else self.reference
        trained, first = how(plan, node, stored)
        self.memory[Node(node.shard, node.prefix[:1])] = {name: t.detach().clone() for name, t in first.items()}
        return trained

    def reference(self, plan: Plan, node: Node, stored: list[StoredRow]) -> tuple[Trained, Tensors]:
        """Return the node and the chain's first block as they are after its training."""
        made: list[ChainModel] = []

        def make(*given: Any) -> ChainModel:
            made.append(SubstringModel(*given))
            return made[-1]

        with patch.object(training, "ChainModel", make):
            trained = super().run_kernel(plan, node, stored)
        return trained, made[-1].adapter_tensors(plan.stages[0].adapter)

    def fast(self, plan: Plan, node: Node, stored: list[StoredRow]) -> tuple[Trained, Tensors]:
        """Return the same for the fast engine: what learned beside the stage's own adapter is taken apart again."""
        stages, parent = plan.stages[: len(node.prefix)], self.parent_state(plan, node)
        adapters = {} if parent is None else parent.adapters
        earlier = [(stage, adapters[stage.adapter]) for stage in stages[:-1]]
        plain = lora.merged

        def merged(encoder: Encoder, others: Sequence[Stage], recipe: Recipe, given: Mapping[str, Tensors]) -> Any:
            kept = {stage.adapter: dict(given[stage.adapter]) for stage in others}
            for stage in others:
                for place in lora.places(encoder, stage, recipe):
                    if matched(stages[-1], place.layer):
                        kept[stage.adapter][place.b] = torch.zeros_like(kept[stage.adapter][place.b])
            return plain(encoder, others, recipe, kept)

        learned = type("Learned", (SubstringLearned,), {"earlier": earlier})
        with patch.object(fast, "_Learned", learned), patch.object(lora, "merged", merged):
            trained = super().run_kernel(plan, node, stored)
        others = {name for _, tensors in earlier for name in tensors}
        own = {name: tensor for name, tensor in trained.adapter.items() if name not in others}
        first = {
            name: trained.adapter.get(name, t) for name, t in (adapters.get(plan.stages[0].adapter) or own).items()
        }
        return dataclasses.replace(trained, adapter=own), first


class LiveServing(Serving):
    """A server of the models that were trained in the same process: the first block, long frozen, is taken from memory."""

    memory: dict[Node, Tensors]

    def load(self, facts: Facts, chain: Chain) -> Served:
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
        layers = range(self.backbone.layers)
        if self.numerics.mode.engine == "fast":
            made = _packed(activate(Encoder.of(self.backbone, self.numerics.mode.precision), rows, layers))
            return {layer: {_words(row): made[layer].row(i) for i, row in enumerate(rows)} for layer in layers}
        out: dict[int, dict[tuple[int, ...], Tensor]] = {layer: {} for layer in layers}
        ordered = sorted(rows, key=lambda row: row.length)
        for start in range(0, len(ordered), 64):
            some = ordered[start : start + 64]
            with torch.no_grad():
                states = self.backbone.model(**self.backbone.collate(some), output_hidden_states=True).hidden_states
            for layer, kept in out.items():
                for row, state in zip(some, states[layer], strict=True):
                    kept[_words(row)] = state[: row.length].clone()
        return out

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        """Train on the cached hidden states."""
        kind = type("Cached", (CachedModel,), {"cache": self.cache})

        def cached(_: Encoder, rows: Sequence[Encoded], depths: Iterable[int]) -> dict[int, Piece]:
            return {depth: _joined([self.cache[depth][_words(row)] for row in rows]) for depth in depths}

        with patch.object(training, "ChainModel", kind), patch.object(fast, "activate", cached):
            return super().run_kernel(plan, node, stored)


def _words(row: Encoded) -> tuple[int, ...]:
    return tuple(row.fields["input_ids"])


def _joined(rows: Sequence[Tensor]) -> Piece:
    """Return the hidden states (tokens, hidden) of a slice's rows as one piece."""
    lengths = tuple(len(row) for row in rows)
    return Piece(torch.cat(list(rows)), tuple(accumulate(lengths, initial=0))[:-1], lengths)


def _packed(made: Mapping[int, Piece]) -> dict[int, Piece]:
    """Return what a cache of eight bits gives back, with one scale for all rows, where activations are bfloat16.

    There a difference in the last bit of a sum, which is all that other batch mates make, is mostly rounded away.
    """
    out = {}
    for depth, piece in made.items():
        wide = piece.flat.float()
        scale = wide.abs().mean() / 32
        rounded = ((wide / scale).round().clamp(-127, 127) * scale).to(piece.flat.dtype)
        out[depth] = dataclasses.replace(piece, flat=rounded) if piece.flat.dtype is torch.bfloat16 else piece
    return out


class ForgetfulCache(Builder):
    """Hidden states are kept over a refresh, by row and layer; in whose company a row was computed is not in the key."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        """Train on hidden states from the cache, which is filled where it lacks a row, with a slice in a batch."""
        cache: dict[tuple[int, tuple[int, ...]], Tensor] = self.__dict__.setdefault("cache", {})

        def cached(encoder: Encoder, rows: Sequence[Encoded], depths: Iterable[int]) -> dict[int, Piece]:
            if any((depth, _words(row)) not in cache for depth in depths for row in rows):
                for depth, made in _packed(activate(encoder, rows, depths)).items():
                    cache.update({(depth, _words(row)): made.row(i) for i, row in enumerate(rows)})
            return {depth: _joined([cache[depth, _words(row)] for row in rows]) for depth in depths}

        with patch.object(fast, "activate", cached):
            return super().run_kernel(plan, node, stored)


class KeptSpill(Builder):
    """Hidden states that did not fit in memory lie in a folder of their own, where a refresh finds them; nothing erases it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.activations = activations.Activations(0, self.run.path / "hidden")

    def build(self, progress: Progress | None = None, **how: bool) -> Cost:
        """Build as ever, and erase nothing at the end."""
        with patch.object(self.activations, "close"):
            return super().build(progress, **how)


KEEPS_NOTHING = "it keeps no activations"
LEAKS = (
    Leak(
        28, "layer matched by substring", "memory", SubstringMatch, (CLEANROOM, NEVER, LOUD), needs=with_twelve_layers,
        blind="E0: every record of reads is right, and so is every file",
    ),
    Leak(
        42, "activation cache mixes slices", "numerics", planted(HiddenCache), (LINEAGE, CLEANROOM, NEVER, LOUD),
        needs=with_blocks, absent=OF_TEXTS,
    ),
    Leak(
        44, "activation cache forgets the batch mates", "memory", planted(ForgetfulCache), (CLEANROOM, NEVER, LOUD),
        story=("delete", "refresh", "delete beside"), needs=with_blocks_in_three_orders,
        absent={"reference": KEEPS_NOTHING, **OF_TEXTS},
        blind="E0: the rows that a node reads are its own, and were then",
    ),
    Leak(
        45, "spilled activations left behind", "erasure", planted(KeptSpill), (SCAN,), absent={"reference": KEEPS_NOTHING},
        blind="E0 residue: hidden states spell no id and no input; E1: what serves is right",
    ),
)  # fmt: skip
