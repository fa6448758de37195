"""What a run must hold and serve after each step of a history, derived apart from it: every surviving node, 0 ULP.

Which nodes survive is derived twice: from the steps alone (:class:`Expected`) and from the ledger (:mod:`verify.state`). Their
tensors come from the clean room, which retrains every node once per set of rows: a node depends on nothing else that differs
between the histories of one system.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.contract import Provenance, Slot, UnlearningSystem
from s3t.records import Record
from verify import derive
from verify.brief import Brief, make_brief
from verify.case import Event
from verify.cleanroom import Retrained, Room
from verify.compare import compare_tensors
from verify.evidence import Evidence, read_evidence
from verify.plans import ANALYTIC, EAGER
from verify.replay import differing, predicted, served_differences
from verify.report import Finding, Verdict
from verify.small import Small, backbone
from verify.state import HEAD, Node, State, derive_state, node_name

if TYPE_CHECKING:
    from torch import Tensor

CHECK = "E4 histories"


class Expected:
    """Which records are left and which nodes survive, by the steps alone."""

    def __init__(self, small: Small) -> None:
        self.small = small
        self.left = {record.id for record in small.records}
        self.budget = small.layout.budget
        self.alive = self.planned()

    def planned(self) -> frozenset[Node]:
        """Return all nodes of the orders in force; an analytic head alone has none."""
        if self.small.method == ANALYTIC:
            return frozenset()
        orders = derive.cyclic(self.small.layout.slices, self.budget)
        prefixes = {order[:length] for order in orders for length in range(1, len(order) + 1)}
        return frozenset((shard, prefix) for shard in range(self.small.layout.shards) for prefix in prefixes)

    def happen(self, event: Event) -> None:
        """Follow one event."""
        fresh = [name for name in event.ids if name in self.left]
        self.left -= set(fresh)
        hit = {*map(self.small.slot, fresh), *(event.slots if event.kind == "retire" else ())}
        self.alive = frozenset(node for node in self.alive if not touches(node, hit))
        self.budget = event.budget or self.budget
        if event.kind in ("refresh", "extend") or (fresh and self.small.method in EAGER):
            self.alive = self.planned()


def touches(node: Node, slots: set[Slot]) -> bool:
    """Say whether a node has read any of ``slots``."""
    return any((node[0], s) in slots for s in node[1])


@dataclass
class Tally:
    """What was compared. ``ulps``: the largest distance of any two floats; ``different``: the differences in words."""

    states: int = 0
    nodes: int = 0
    tensors: int = 0
    predictions: int = 0
    ulps: int = 0
    trained: int = 0
    different: list[str] = field(default_factory=list)


Kept = tuple[int, derive.Prefix, tuple[str, ...]]
"""Shard, prefix and ids of the rows: what a node's tensors depend on within one system."""


class Oracle:
    """Compares the runs of one small system, in whatever state, with nodes that the clean room retrained."""

    def __init__(self, small: Small, tally: Tally) -> None:
        self.small, self.tally = small, tally
        self.backbone = backbone(small.model)
        encoded = self.backbone.encode([record.inputs for record in small.records], small.recipe.max_length)
        self.encoded = {record.id: row for record, row in zip(small.records, encoded, strict=True)}
        self.retrained: dict[Kept, Retrained] = {}
        self.solved: dict[tuple[str, ...], Mapping[str, Tensor]] = {}
        self.scores: dict[tuple[Kept, ...], Tensor] = {}

    def check(self, system: UnlearningSystem, folder: Path, expected: Expected | None = None) -> list[Finding]:
        """Compare what survives in ``folder`` and what ``system`` serves; return how that differs."""
        evidence = read_evidence(folder)
        if evidence.problems:
            found = [Finding(CHECK, Verdict.UNDECIDED, problem) for problem in evidence.problems]
        else:
            found = list(self._check(system, evidence, derive_state(evidence), expected))
        self.tally.states += 1
        self.tally.ulps = max([self.tally.ulps, *(f.details.get("max_ulps") or 0 for f in found)])
        return found

    def _check(
        self, system: UnlearningSystem, evidence: Evidence, state: State, expected: Expected | None
    ) -> Iterator[Finding]:
        import torch

        provenance = system.provenance()
        yield from _expected(evidence, state, provenance, expected)
        room = self._room(make_brief(evidence, state, torch.get_num_threads(), "surviving"), state)
        reference: dict[Node, Mapping[str, Tensor]] = {node: one.named() for node, one in room.nodes.items()}
        for node, tensors in reference.items():
            kind = state.plan.stages[len(node[1]) - 1].kind
            stored = _stored(evidence.folder / "nodes" / state.survivors[node].key, kind)
            yield from differing(compare_tensors(tensors, stored), node_name(*node), CHECK, "on disk: ")
            self.tally.nodes += 1
            self.tally.tensors += len(tensors)
        if room.solved is not None:
            reference[HEAD] = room.solved
            self.tally.tensors += len(room.solved)
        yield from served_differences(system, provenance, state, reference, CHECK)
        asked = list(self.small.probes)
        both = compare_tensors(self._predict(room, asked), predicted(system, asked))
        yield from differing(both, "predictions", CHECK)
        self.tally.predictions += len(asked)

    def _room(self, brief: Brief, state: State) -> Room:
        """Return a clean room with all nodes of ``brief``, retrained unless they were before."""
        room = Room(brief, state.plan, state.recipe, self.backbone, self.encoded, {})
        for (shard, prefix), _ in brief.nodes:
            kept = self._kept(room, shard, prefix)
            if kept not in self.retrained:
                room.train(shard, prefix)
                self.retrained[kept] = room.nodes[shard, prefix]
                self.tally.trained += 1
            room.nodes[shard, prefix] = self.retrained[kept]
        if brief.head is not None:
            rows = tuple(record.id for record in brief.rows)
            if rows not in self.solved:
                room.solve(brief.threads)
                self.solved[rows] = room.solved or {}
            room.solved = self.solved[rows]
        return room

    def _kept(self, room: Room, shard: int, prefix: derive.Prefix) -> Kept:
        """Return what its tensors depend on; a node that reads its last slice alone still stands on all before it."""
        read = {record.id for i in range(1, len(prefix) + 1) for record in room.rows(shard, prefix[:i])}
        return shard, prefix, tuple(sorted(read))

    def _predict(self, room: Room, asked: list[Record]) -> Mapping[str, Tensor]:
        chains = tuple(self._kept(room, *chain) for chain in sorted(room.brief.chains))
        if room.solved is not None:
            chains = (*chains, (*HEAD, tuple(record.id for record in room.brief.rows)))
        if not chains:
            return {}
        if chains not in self.scores:
            room.brief = dataclasses.replace(room.brief, probes=tuple(asked))
            self.scores[chains] = room.predict()
        return {"scores": self.scores[chains]}


def _expected(evidence: Evidence, state: State, provenance: Provenance, expected: Expected | None) -> Iterator[Finding]:
    """Compare records, survivors and selection with what the steps and the ledger imply."""
    if expected is not None:
        if set(state.survivors) != expected.alive:
            odd = min(set(state.survivors) ^ expected.alive)
            yield Finding(CHECK, Verdict.VIOLATED, "it survives, or does not, against the history", node_name(*odd))
        if {row.record.id for row in evidence.train} != expected.left:
            yield Finding(CHECK, Verdict.VIOLATED, "the run holds other records than the history leaves")
    wanted = [(c.shard, c.order, c.prefix, state.weights[c.shard]) for c in state.chains]
    wanted = [*([(HEAD[0], 0, HEAD[1], state.share)] if state.head else []), *wanted]
    served = [(c.shard, c.order, tuple(c.nodes[-1].prefix), c.weight) for c in provenance.chains]
    if wanted != served or tuple(provenance.offline) != state.offline:
        yield Finding(CHECK, Verdict.VIOLATED, f"served are {served}, derived are {wanted}")


def _stored(folder: Path, kind: str) -> dict[str, Any]:
    """Return the tensors of a stored node by part and name; those of a file that cannot be read are missing."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    tensors: dict[str, Any] = {}
    for part, file in (("adapter", "model" if kind == "full" else "adapter_model"), ("head", "head")):
        try:
            read = load((folder / f"{file}.safetensors").read_bytes())
        except (OSError, SafetensorError):
            continue
        tensors |= {f"{part}.{name}": tensor for name, tensor in read.items()}
    return tensors
