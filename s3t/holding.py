"""Trained tensors of surviving nodes in memory: what a chain that a deletion leaves is made of, without a file being read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from s3t.blocks import ModelState
from s3t.errors import DamageError
from s3t.facts import Facts
from s3t.plan import Plan
from s3t.runs import Run
from s3t.selection import Chain, TrainedNode
from s3t.store import ADAPTER, HEAD, tensors


@dataclass(frozen=True)
class NodeTensors:
    """One node's files as tensors, on the CPU: its adapter and its head."""

    adapter: dict[str, Tensor]
    head: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for part in (self.adapter, self.head) for t in part.values())


class Held:
    """Tensors of one run's nodes, by the ledger entry of their training: up to ``budget`` bytes, each read once."""

    def __init__(self, run: Run, budget: int) -> None:
        self._run = run
        self._budget = budget
        self._nodes: dict[int, NodeTensors] = {}
        self._tried: set[int] = set()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(node.bytes for node in self._nodes.values())

    def fill(self, facts: Facts) -> bool:
        """Read surviving nodes that are not here, shortest prefixes first, until the budget is spent.

        Every file is checked by digest. Nodes that are damaged are passed over, and known from then on (``run.damage``);
        return whether there were any.
        """
        lost = self._run.damage.lost(facts)
        wanted = [fact for fact in facts.alive.values() if fact.seq not in self._tried and fact.seq not in lost]
        damaged = self._take(facts.plan, wanted)
        if damaged:
            self._run.damage.survey(facts, damaged)
        return bool(damaged)

    def _take(self, plan: Plan, wanted: Sequence[TrainedNode]) -> list[TrainedNode]:
        """Read of ``wanted`` what the budget allows; return those that are damaged."""
        damaged: list[TrainedNode] = []
        used = self.bytes if wanted else 0
        for fact in sorted(wanted, key=lambda fact: (len(fact.node.prefix), fact.seq)):
            if used >= self._budget:
                break
            try:
                found = self._read(plan, fact)
            except DamageError:
                damaged.append(fact)
                continue
            self._tried.add(fact.seq)
            if used + found.bytes <= self._budget:
                used += found.bytes
                self._nodes[fact.seq] = found
        return damaged

    def _read(self, plan: Plan, fact: TrainedNode) -> NodeTensors:
        wanted = (ADAPTER[plan.stages[len(fact.node.prefix) - 1].kind], HEAD)
        files = self._run.damage.read(fact, wanted)
        return NodeTensors(*(tensors(files[name]) for name in wanted))

    def keep(self, entries: Iterable[int]) -> None:
        """Let go of every node but those of these ledger entries."""
        alive = set(entries)
        self._tried &= alive
        self._nodes = {seq: node for seq, node in self._nodes.items() if seq in alive}

    def state(self, plan: Plan, chain: Chain) -> ModelState | None:
        """Return what a chain adds to the base model (:func:`s3t.building.load_state`), or None if a part is not here."""
        last = {stage.adapter: fact.seq for stage, fact in zip(plan.stages, chain.nodes, strict=False)}
        needed = {*last.values(), chain.nodes[-1].seq}
        if not needed <= self._nodes.keys():
            return None
        adapters = {name: self._nodes[seq].adapter for name, seq in last.items()}
        return ModelState(adapters, self._nodes[chain.nodes[-1].seq].head)
