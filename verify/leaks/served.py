"""Faults after training: which nodes survive, what is served, with which weights, and what stays on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from s3t import store
from s3t.blocks import ChainModel
from s3t.building import Builder
from s3t.contract import Cost, Progress
from s3t.engine.ensemble import FastChain
from s3t.engine.numerics import Served
from s3t.facts import Facts
from s3t.graph import Node
from s3t.plan import Plan, Stage
from s3t.records import Record, sha256
from s3t.rows import StoredRow
from s3t.selection import Chain, chain
from s3t.serving import Serving
from s3t.training import Trained
from verify.leaks.leak import CLEANROOM, LINEAGE, LOUD, NEVER, RESIDUE, SCAN, Leak, Planted, planted
from verify.leaks.settings import with_blocks, with_three_orders, with_weights_by_length


class SharedHead(Serving):
    """The head is one module of the server; when a chain gets shorter only its blocks go."""

    def load(self, facts: Facts, chain: Chain) -> Served:
        model = super().load(facts, chain)
        heads: dict[int, Any] = self.__dict__.setdefault("heads", {})
        first = heads.setdefault(chain.shard, {name: tensor.clone() for name, tensor in model.head_tensors().items()})
        for name, tensor in model.head_tensors().items():
            tensor.copy_(first[name])
        return model


class StalePointer(Serving):
    """The registry points to the new chain, the worker still holds the old model."""

    def load(self, facts: Facts, chain: Chain) -> Served:
        held: dict[int, Served] = self.__dict__.setdefault("held", {})
        return held.setdefault(chain.shard, super().load(facts, chain))


class ZeroedBlocks(Serving):
    """Adapters are wrapped again at load; only the last one is active then, and accuracy drops a little."""

    def load(self, facts: Facts, chain: Chain) -> Served:
        model, last = super().load(facts, chain), facts.plan.stages[len(chain.nodes) - 1]
        if isinstance(model, FastChain):
            model.deltas = {layer: deltas for layer, deltas in model.deltas.items() if layer in last.layers}
        elif isinstance(model, ChainModel):
            model.body.base_model.set_adapter([last.adapter], inference_mode=True)
        return model


class NotANumber(Serving):
    """An overflow in a conversion; `max(abs(a - b)) > limit` is false for NaN, so a loose verifier passes it."""

    def load(self, facts: Facts, chain: Chain) -> Served:
        model = super().load(facts, chain)
        model.head_tensors()["bias"][0] = float("nan")
        return model


class OldSizes(Serving):
    """Shards weigh by their rows, counted when the server started."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        layout, store = self._run.config.plan.layout, self._run.records
        places = [(shard, piece) for shard in range(layout.shards) for piece in range(layout.slices)]
        self.sizes = {place: sum(1 for _ in store.slot_rows(*place)) for place in places}

    def shard_weights(self) -> dict[int, float]:
        rows = {shard: sum(n for slot, n in self.sizes.items() if slot[0] == shard) for shard in self.models}
        return {shard: rows[shard] / sum(rows.values()) for shard in rows}


class OldAccuracies(Serving):
    """Shards weigh by their likelihood on the training rows, measured once after the fit."""

    def shard_weights(self) -> dict[int, float]:
        merits: dict[int, float] = self.__dict__.setdefault("merits", {})
        for shard in self.models.keys() - merits.keys():
            records = [Record.from_content(content) for content in self._run.records.contents("train")]
            rows = self._backbone.encode([r.inputs for r in records], 64)
            logits = self._numerics.score({shard: self.models[shard][1]}, rows)[shard]
            merits[shard] = float(
                torch.exp(-nn.functional.cross_entropy(logits, torch.tensor([r.label for r in records])))
            )
        return {shard: merits[shard] / sum(merits[s] for s in self.models) for shard in self.models}


class OldLengths(Serving):
    """Chains weigh by their length, as it was when each shard was first served."""

    def shard_weights(self) -> dict[int, float]:
        lengths: dict[int, int] = self.__dict__.setdefault("lengths", {})
        for shard, (serves, _) in self.models.items():
            lengths.setdefault(shard, len(serves.nodes))
        return {shard: lengths[shard] / sum(lengths[s] for s in self.models) for shard in self.models}


class OffByOne(Facts):
    """The record's slice is dropped from where the NEXT stage begins: the block that learned it first stays."""

    def update(self) -> bool:
        new = super().update()
        kept = [
            fact
            for fact in self._trained
            if all(self.hits.get((fact.node.shard, piece), 0) < fact.seq for piece in fact.node.prefix[:-1])
        ]
        self.alive = {fact.node: fact for fact in sorted(kept, key=lambda fact: fact.seq)}
        return new


class OldScores(Facts):
    """Orders were ranked when they were trained, here by the rows in their first two slices; the ranking is kept."""

    def chains(self, lost: frozenset[int] = frozenset()) -> dict[int, Chain]:
        rows = {fact.node: fact.rows for fact in self._trained}
        best = {}
        for shard in range(self.plan.layout.shards):
            found = [c for order in range(len(self.plan.orders)) if (c := chain(shard, order, self.plan, self.alive))]
            if found:
                best[shard] = max(found, key=lambda c: (rows[Node(shard, self.plan.orders[c.order][:2])], len(c.nodes)))
        return best


class KeptCheckpoints(Planted):
    """Erasing is left to a job that runs at night, or never."""

    def _drop(self, before: set[str]) -> tuple[str, ...]:
        with patch.object(store.NodeStore, "erase"):
            return super()._drop(before)


class TokenCache(Builder):
    """Tokenised rows are cached beside the run to save a minute at the next start."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        path = self.run.path / "tokens.json"
        cache = json.loads(path.read_text()) if path.exists() else {}
        rows = self.backbone.encode([row.record.inputs for row in stored], self.run.config.recipe.max_length)
        cache |= {row.record.id: encoded.fields for row, encoded in zip(stored, rows, strict=True)}
        path.write_text(json.dumps(cache))
        return super().run_kernel(plan, node, stored)


class WeakHash(Builder):
    """Tensors are hashed as they print, and long tensors print as a few corners and dots."""

    def _record(self, body: dict[str, Any], since: int) -> None:
        raw = self.run.nodes.tensors(body["key"], store.HEAD, body["files"][store.HEAD])
        super()._record(body | {"head": sha256(str(raw).encode())}, since)


class LoggedIds(Builder):
    """Which rows a node has read is worth logging, and the ledger, which forgets nothing, is the log."""

    def _record(self, body: dict[str, Any], since: int) -> None:
        ids = [row.record.id for row in self.node_rows(self.facts.plan, Node(body["shard"], tuple(body["prefix"])))]
        super()._record(body | {"log": ids}, since)
        self.rows.stray.clear()


class Backup(Planted):
    """A copy of the records is made before every migration."""

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        cost = super().fit(records, progress)
        (self.path / "backup").mkdir(exist_ok=True)
        shutil.copy(self.path / "records.bin", self.path / "backup" / "records.bin")
        return cost


class MergedExport(Builder):
    """Adapters are merged into one file for deployment; it stands outside whatever deletion cleans up."""

    def files(self, stage: Stage, trained: Trained, reads: list[str]) -> dict[str, bytes]:
        (self.run.path / "export").mkdir(exist_ok=True)
        (self.run.path / "export" / f"{stage.adapter}.safetensors").write_bytes(store.tensor_bytes(trained.adapter))
        return super().files(stage, trained, reads)


LEAKS = (
    Leak(
        1, "head shared across stages", "memory", planted(SharedHead), (CLEANROOM, NEVER, LOUD),
        blind="E0: every record of reads is right",
    ),
    Leak(17, "off by one", "selection", planted(OffByOne), (LINEAGE, SCAN, RESIDUE, CLEANROOM, NEVER, LOUD)),
    Leak(
        19, "old chain still served", "selection", planted(StalePointer), (CLEANROOM, NEVER, LOUD),
        blind="E0: the registry is right",
    ),
    Leak(
        20, "order chosen by an old score", "selection", planted(OldScores), (LINEAGE, CLEANROOM, NEVER),
        needs=with_three_orders, blind="E1c: it counts rows, and their number stays",
    ),
    Leak(21, "ensemble weights by old sizes", "selection", planted(OldSizes), (LINEAGE, CLEANROOM, NEVER, LOUD)),
    Leak(22, "ensemble weights by old accuracies", "selection", planted(OldAccuracies), (LINEAGE, CLEANROOM, NEVER, LOUD)),
    Leak(
        53, "weights by old lengths", "selection", planted(OldLengths), (LINEAGE, CLEANROOM, NEVER, LOUD),
        needs=with_weights_by_length,
    ),
    Leak(25, "checkpoint not erased", "erasure", KeptCheckpoints, (SCAN, RESIDUE), blind="E1: what serves is right"),
    Leak(26, "token cache left on disk", "erasure", planted(TokenCache), (SCAN, RESIDUE), blind="E1: what serves is right"),
    Leak(
        27, "log with ids", "erasure", planted(LoggedIds), (RESIDUE,),
        blind="E0 scan: the ledger belongs there; E1: what serves is right",
    ),
    Leak(36, "backup copy", "erasure", Backup, (SCAN, RESIDUE), blind="E1: what serves is right"),
    Leak(
        38, "NaN passes a comparison", "numerics", planted(NotANumber), (CLEANROOM, NEVER, LOUD),
        blind="E0: no tensor is read",
    ),
    Leak(
        39, "weak hash", "lineage", planted(WeakHash), (CLEANROOM,),
        blind="E0: it holds no tensors to hash; E1b, E1c: what serves is right",
    ),
    Leak(41, "merged exports left behind", "erasure", planted(MergedExport), (SCAN,), blind="E1: what serves is right"),
    Leak(
        43, "earlier blocks silently zeroed", "numerics", planted(ZeroedBlocks), (CLEANROOM,),
        blind="E0, E1b, E1c: no record is involved, the reference is as wrong", needs=with_blocks,
    ),
)  # fmt: skip
