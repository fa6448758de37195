"""What survives and what is served: pure functions over facts of the ledger. No torch, no state.

Source: arXiv 2406.16257, section 3.3 (deletion) and SPEC section 2 (serving).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from s3t.contract import Slot
from s3t.graph import Node
from s3t.plan import Plan


@dataclass(frozen=True)
class TrainedNode:
    """The ledger's fact that ``node`` was trained: entry ``seq``, its key, its parent's key, rows read, file digests."""

    seq: int
    node: Node
    key: str
    parent: str | None
    rows: int
    files: Mapping[str, str]


@dataclass(frozen=True)
class Chain:
    """The first stages of one order of one shard, all surviving; ``nodes`` from the first stage on, never empty."""

    shard: int
    order: int
    nodes: tuple[TrainedNode, ...]


def survivors(trained: Iterable[TrainedNode], hits: Mapping[Slot, int]) -> dict[Node, TrainedNode]:
    """Return the nodes still valid: trained after the last request (``hits``: slot -> its entry) in their prefix."""
    alive: dict[Node, TrainedNode] = {}
    for fact in sorted(trained, key=lambda fact: fact.seq):
        if all(hits.get((fact.node.shard, piece), 0) < fact.seq for piece in fact.node.prefix):
            alive[fact.node] = fact
    return alive


def chain(shard: int, order: int, plan: Plan, alive: Mapping[Node, TrainedNode]) -> Chain | None:
    """Return the longest surviving chain of one order that has read a record, or None."""
    found: list[TrainedNode] = []
    for length in range(1, plan.layout.slices + 1):
        fact = alive.get(Node(shard, plan.orders[order][:length]))
        if fact is None or fact.parent != (found[-1].key if found else None):
            break
        found.append(fact)
    return Chain(shard, order, tuple(found)) if any(fact.rows for fact in found) else None


def served(plan: Plan, alive: Mapping[Node, TrainedNode]) -> dict[int, Chain]:
    """Return per live shard its longest chain; ties go to the lowest order index, never to a score."""
    best: dict[int, Chain] = {}
    for shard in range(plan.layout.shards):
        for order in range(len(plan.orders)):
            candidate = chain(shard, order, plan, alive)
            if candidate and (shard not in best or len(candidate.nodes) > len(best[shard].nodes)):
                best[shard] = candidate
    return best
