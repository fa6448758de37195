"""Faults of state that outlives a node: random streams, optimizers, caches, tensors, and what a refresh remembers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from s3t import training
from s3t.blocks import ChainModel, ModelState
from s3t.building import Builder
from s3t.contract import Cost, Progress, Receipt
from s3t.engine import fast
from s3t.graph import Node
from s3t.graph import batches as form_batches
from s3t.graph import seed as derive_seed
from s3t.partition import slot
from s3t.plan import Plan
from s3t.records import canonical_json, sha256
from s3t.rows import StoredRow
from s3t.runs import Run
from s3t.training import Seeds, Trained
from verify.leaks.leak import BY_LENGTH, CLEANROOM, LINEAGE, LOUD, NEVER, Leak, Planted, planted
from verify.leaks.settings import with_dropout, with_three_orders


class GlobalGenerator(Builder):
    """`torch.manual_seed` once, at the top of the script: how much a node draws moves all nodes after it."""

    def build(self, progress: Progress | None = None, **how: bool) -> Cost:
        whole = training.reproducible(self.run.config.seed, self.backbone.device)
        never = patch.object(torch, "manual_seed", lambda *_: None)
        alike = [patch.object(engine, "reproducible", lambda *_: nullcontext()) for engine in (training, fast)]
        with whole, alike[0], alike[1], never:
            torch.set_rng_state(self.__dict__.get("generator", torch.get_rng_state()))
            try:
                return super().build(progress, **how)
            finally:
                self.generator = torch.get_rng_state()


class DataSeed(Builder):
    """The seed is the digest of the data set, to make runs reproducible."""

    def seeds(self, node: Node) -> Seeds:
        data = int(sha256(canonical_json(self.run.records.ids("train")))[:8], 16)
        return Seeds(*(derive_seed(data, node, purpose) for purpose in ("adapter", "head", "dropout")))


class CarriedMoments(Builder):
    """One optimizer serves the whole script; its moments of the head go into the next stage."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        memory: list[Any] = []

        class Carrying(torch.optim.AdamW):
            def __init__(self, groups: Any, **options: Any) -> None:
                super().__init__(groups, **options)
                self.state.update(zip(self.param_groups[-1]["params"], memory, strict=False))

            def step(self, closure: Any = None) -> Any:
                super().step(closure)
                memory[:] = [self.state[parameter] for parameter in self.param_groups[-1]["params"]]

        self.optimizer = Carrying

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        with patch.object(torch.optim, "AdamW", self.optimizer):
            return super().run_kernel(plan, node, stored)


class MovingAverage(Builder):
    """An exponential moving average of the head smooths training; nobody resets it between nodes."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        trained = super().run_kernel(plan, node, stored)
        before: dict[str, Tensor] = getattr(self, "average", trained.head)
        self.average = {name: 0.9 * tensor + 0.1 * before[name] for name, tensor in trained.head.items()}
        return dataclasses.replace(trained, head=self.average)


class AdaptiveClip(Builder):
    """Gradients are clipped at the mean norm seen so far, and so far is the life of the process."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        norms: list[float] = self.__dict__.setdefault("norms", [])
        plain = nn.utils.clip_grad_norm_

        def clip(parameters: Any, _: float, **how: Any) -> Tensor:
            norm = plain(parameters, sum(norms) / len(norms) if norms else 1.0, **how)
            norms.append(float(norm))
            return norm

        with patch.object(nn.utils, "clip_grad_norm_", clip):
            return super().run_kernel(plan, node, stored)


class SiblingWarmStart(Builder):
    """Another order has trained this block already; starting from there saves an epoch."""

    def parent_state(self, plan: Plan, node: Node) -> ModelState | None:
        state, name = super().parent_state(plan, node), self.stage(plan, node).adapter
        for other, fact in self.facts.alive.items():
            if state and other.shard == node.shard and len(other.prefix) == len(node.prefix):
                file = "adapter_model.safetensors"
                tensors = self.run.nodes.tensors(fact.key, file, fact.files[file])
                return ModelState({**state.adapters, name: tensors}, state.head)
        return state


class AliasedModel(ChainModel):
    """A chain model whose head is the given tensors, not a copy of them."""

    def mount(self, state: ModelState) -> None:
        """Mount ``state`` and take over its head."""
        super().mount(state)
        self.head.load_state_dict(dict(state.head), assign=True)


class AliasedLearned(fast._Learned):
    """The same in the fast engine."""

    def __init__(self, encoder: Any, stage: Any, recipe: Any, adapter: Any, head: Any, *given: Any) -> None:
        super().__init__(encoder, stage, recipe, adapter, head, *given)
        self.head = [nn.Parameter(head[name]) for name in ("weight", "bias")]


class AliasedParent(Builder):
    """Parents are cached in memory, and `state_dict` returns references: training a child trains the cached head."""

    def parent_state(self, plan: Plan, node: Node) -> ModelState | None:
        cache: dict[Node, ModelState | None] = self.__dict__.setdefault("cache", {})
        if node.prefix[:-1] and Node(node.shard, node.prefix[:-1]) not in cache:
            cache[Node(node.shard, node.prefix[:-1])] = super().parent_state(plan, node)
        return cache.get(Node(node.shard, node.prefix[:-1]))

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        with patch.object(training, "ChainModel", AliasedModel), patch.object(fast, "_Learned", AliasedLearned):
            return super().run_kernel(plan, node, stored)


class SortedCache(Builder):
    """A set of slices looks like a good cache key; what was learned first is forgotten."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        cache: dict[Any, Trained] = self.__dict__.setdefault("cache", {})
        key = node.shard, *sorted(node.prefix)
        if key not in cache:
            cache[key] = super().run_kernel(plan, node, stored)
        return cache[key]


class HolesBuilder(Builder):
    """A builder that forms batches as if ``ghosts`` (deleted rows: id, length) were still there."""

    ghosts: tuple[tuple[StoredRow, int], ...] = ()

    def batches(self, plan: Plan, node: Node, ids: list[str], lengths: list[int]) -> list[list[int]]:
        """Form them with the ghosts at the end of ``ids``, then leave the ghosts out."""
        own = _own([row for row, _ in self.ghosts], self.run, plan, node)
        gone = [(row.record.id, length) for row, length in self.ghosts if row in own]
        named, long = [*ids, *(name for name, _ in gone)], [*lengths, *(length for _, length in gone)]
        batch_seed = derive_seed(self.run.config.seed, node, "batches")
        formed = form_batches(named, long, self.stage(plan, node).epochs, self.run.config.recipe, batch_seed)
        return [kept for batch in formed if (kept := [i for i in batch if i < len(ids)])]


def _own(rows: Sequence[StoredRow], run: Run, plan: Plan, node: Node) -> list[StoredRow]:
    slots = {(node.shard, piece) for piece in node.prefix}
    return [row for row in rows if slot(run.key, row.record.id, plan.layout) in slots]


def _rows(system: Planted, ids: Sequence[str]) -> tuple[StoredRow, ...]:
    run, facts = system._opened()
    slots = [(shard, piece) for shard in range(facts.plan.layout.shards) for piece in range(facts.plan.layout.slices)]
    return tuple(row for slot in slots for row in run.records.slot_rows(*slot) if row.record.id in ids)


class Holes(Planted):
    """The sampler keeps its list of positions and skips those that are gone: their batches stay short."""

    builder = HolesBuilder

    def delete(self, ids: Sequence[str]) -> Receipt:
        gone = _rows(self, ids)
        worker: Any = self._builder(*self._opened())
        encoded = self._loaded().encode([row.record.inputs for row in gone], self.config.recipe.max_length)
        worker.ghosts += tuple((row, one.length) for row, one in zip(gone, encoded, strict=True))
        return super().delete(ids)


class ReturningBuilder(Builder):
    """A builder that also trains on ``returning``, rows that an earlier request deleted."""

    returning: tuple[StoredRow, ...] = ()
    latest: tuple[StoredRow, ...] = ()

    def node_rows(self, plan: Plan, node: Node) -> list[StoredRow]:
        """Return the node's rows, with those that came back."""
        back = _own(self.returning, self.run, plan, node)
        return sorted([*super().node_rows(plan, node), *back], key=lambda row: row.record.id)


class Resurrection(Planted):
    """The list of deleted ids is one file, and the second request overwrites it; refresh reads the source again."""

    builder = ReturningBuilder

    def delete(self, ids: Sequence[str]) -> Receipt:
        worker: Any = self._builder(*self._opened())
        worker.returning, worker.latest = worker.latest, _rows(self, ids)
        return super().delete(ids)


class RepeatedEpoch(Builder):
    """What was under way is taken up again from its checkpoint, but the epoch counter was saved before the epoch."""

    def build(self, progress: Progress | None = None, **how: bool) -> Cost:
        self.facts.update()
        self.resumed = bool(self.facts.alive)
        return super().build(progress, **how)

    def batches(self, plan: Plan, node: Node, ids: list[str], lengths: list[int]) -> list[list[int]]:
        own = super().batches(plan, node, ids, lengths)
        again, self.resumed = self.resumed, False
        return own[: len(own) // 2] + own if again else own


OWN_GENERATORS = "every node of a group draws from a generator that is made for it"
LEAKS = (
    Leak(
        9, "one global random generator", "randomness", planted(GlobalGenerator), (CLEANROOM, NEVER, LOUD),
        story=("delete", "refresh"), needs=with_dropout, absent={"grouped": OWN_GENERATORS},
        hidden=BY_LENGTH,
    ),
    Leak(
        10, "seed from the data's hash", "randomness", planted(DataSeed), (CLEANROOM, NEVER),
        blind="E1c: the ids stay, and they are what is hashed",
    ),
    Leak(
        12, "optimizer moments carried over", "memory", planted(CarriedMoments), (CLEANROOM, NEVER, LOUD),
        story=("delete", "refresh"),
    ),
    Leak(
        13, "running average shared", "memory", planted(MovingAverage), (CLEANROOM, NEVER, LOUD),
        story=("delete", "refresh"),
    ),
    Leak(
        14, "clipping state shared", "memory", planted(AdaptiveClip), (CLEANROOM, NEVER, LOUD),
        story=("delete", "refresh"),
    ),
    Leak(
        15, "warm start from sibling orders", "memory", planted(SiblingWarmStart), (CLEANROOM, NEVER, LOUD),
        story=("delete beside", "refresh", "delete"), needs=with_three_orders,
    ),
    Leak(
        16, "tensors aliased with the parent's", "memory", planted(AliasedParent), (CLEANROOM, NEVER, LOUD),
        story=("delete", "refresh"),
    ),
    Leak(
        18, "cache key ignores the order", "memory", planted(SortedCache), (CLEANROOM,), scope="surviving",
        blind="E1b, E1c: nodes of the same slices survive together, and the one trained first serves",
    ),
    Leak(
        29, "holes instead of repacking", "memory", Holes, (CLEANROOM, NEVER, LOUD),
        story=("delete", "delete another", "refresh"), hidden=BY_LENGTH,
    ),
    Leak(
        30, "resurrection at refresh", "rows", Resurrection, (LINEAGE, CLEANROOM, NEVER, LOUD),
        story=("delete", "delete another", "refresh"),
    ),
    Leak(
        31, "resume repeats an epoch", "memory", planted(RepeatedEpoch), (CLEANROOM, NEVER), story=("delete", "refresh"),
        blind="E1c: the reference is refreshed too, and repeats it", scope="surviving",
        hidden={"grouped": (NEVER,)},  # which trains another node first after a resume: one that need not serve
    ),
)  # fmt: skip
