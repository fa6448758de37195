"""What a run must be serving now, derived from its evidence: survivors, chains, rows of nodes, tombstones.

Source: docs/DERIVATION.md, "Rows and batches of a node" and "What is served".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from s3t.errors import RunError
from s3t.records import Recipe
from verify import derive
from verify.case import Event
from verify.combining import among, share
from verify.derive import Prefix
from verify.evidence import Entry, Evidence, Row
from verify.plans import Plan, declared_plan

Node = tuple[int, Prefix]
"""(shard, prefix): what a node is."""

HEAD: Node = (-1, ())
"""Where the analytic head stands among the nodes of what is served."""
HEAD_NAME = "analytic head"


@dataclass(frozen=True)
class Survivor:
    """A surviving node as the ledger describes it."""

    seq: int
    key: str
    shard: int
    prefix: Prefix
    parent: str | None
    tensors: str
    head: str
    reads: str
    files: Mapping[str, str]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Chain:
    """What one shard serves: the index of the order and the nodes from first to last stage."""

    shard: int
    order: int
    nodes: tuple[Survivor, ...]

    @property
    def prefix(self) -> Prefix:
        """The slices that the chain has learned, in order."""
        return self.nodes[-1].prefix


@dataclass(frozen=True)
class ServedHead:
    """The analytic head that must serve: its key, the environment of its features, and the rows it is solved from."""

    key: str
    environment: Mapping[str, Any]
    rows: tuple[Row, ...] = field(repr=False)


@dataclass(frozen=True)
class State:
    """Everything derived. ``orders`` are those in force now; ``hits`` the last request that named each slot.

    ``head``: the analytic head that serves beside the chains, if one does.
    """

    plan: Plan
    recipe: Recipe
    orders: tuple[Prefix, ...]
    survivors: Mapping[Node, Survivor]
    chains: tuple[Chain, ...]
    offline: tuple[int, ...]
    tombstones: frozenset[str]
    hits: Mapping[tuple[int, int], int]
    by_slot: Mapping[tuple[int, int], tuple[Row, ...]] = field(repr=False)
    head: ServedHead | None = None

    @property
    def retained(self) -> tuple[Row, ...]:
        """All rows that may be trained on and are not deleted, sorted by id."""
        return tuple(sorted((row for rows in self.by_slot.values() for row in rows), key=lambda row: row.record.id))

    @property
    def share(self) -> float:
        """What the analytic head weighs in the ensemble: nothing where it does not serve, all where nothing else does."""
        return 0.0 if self.head is None else share(self.plan, self._lengths)

    @property
    def weights(self) -> dict[int, float]:
        """What the chain of each live shard weighs in the ensemble."""
        found = zip(self.chains, among(self.plan, self._lengths), strict=True)
        return {chain.shard: (1 - self.share) * weight for chain, weight in found}

    @property
    def _lengths(self) -> list[int]:
        return [len(chain.nodes) for chain in self.chains]

    def rows(self, shard: int, prefix: Prefix) -> list[Row]:
        """Return the rows of a node, sorted by id."""
        found = [row for s in self.plan.pieces(prefix) for row in self.by_slot.get((shard, s), ())]
        return sorted(found, key=lambda row: row.record.id)

    def nodes(self) -> list[Node]:
        """Return every node of the plan, parents first."""
        prefixes = {order[:i] for order in self.orders for i in range(1, len(self.plan.stages) + 1)}
        ordered = sorted(prefixes, key=lambda p: (len(p), p))
        return [(shard, prefix) for shard in range(self.plan.shards) for prefix in ordered]


def node_name(shard: int, prefix: Prefix) -> str:
    """Return how findings name a node."""
    if (shard, prefix) == HEAD:
        return HEAD_NAME
    return f"shard {shard}, slices {'-'.join(str(s) for s in prefix)}"


def graph_of(state: State) -> dict[str, Any]:
    """Return the orders and what has become of every node of the plan, as plain JSON values for a report."""
    serving = {(chain.shard, node.prefix) for chain in state.chains for node in chain.nodes}
    nodes = [
        {
            "shard": shard,
            "prefix": list(prefix),
            "name": node_name(shard, prefix),
            "is": "serves"
            if (shard, prefix) in serving
            else "survives"
            if (shard, prefix) in state.survivors
            else "dropped",
        }
        for shard, prefix in state.nodes()
    ]
    return {"shards": state.plan.shards, "orders": [list(order) for order in state.orders], "nodes": nodes}


def derive_state(evidence: Evidence) -> State:
    """Derive what is served now. Raises RunError if run.json holds no readable plan or recipe.

    Rows whose tag is tombstoned are left out even if they are still stored: they are deleted.
    """
    plan = declared_plan(evidence.run)
    recipe = Recipe.from_json(evidence.run["recipe"])
    orders = orders_now(plan, evidence.entries)
    tombstones = frozenset(t for e in evidence.entries if e.kind == "request" for t in e.body["tags"])
    hits: dict[tuple[int, int], int] = {}
    for entry in evidence.entries:
        if entry.kind == "request":
            hits.update({(int(shard), int(slice_)): entry.seq for shard, slice_ in entry.body["slots"]})
    survivors = surviving(evidence.entries)
    by_slot: dict[tuple[int, int], list[Row]] = {}
    for row in evidence.train:
        if derive.tag(evidence.key, row.record.id) not in tombstones:
            slot = derive.slot(evidence.key, row.record.id, plan.shards, plan.slices)
            by_slot.setdefault(slot, []).append(row)
    chains = served(plan.shards, orders, survivors, by_slot)
    live = {chain.shard for chain in chains}
    offline = tuple(shard for shard in range(plan.shards) if shard not in live and plan.stages)
    frozen = {slot: tuple(rows) for slot, rows in by_slot.items()}
    state = State(plan, recipe, orders, survivors, chains, offline, tombstones, hits, frozen)
    return replace(state, head=_head(evidence, state))


def _head(evidence: Evidence, state: State) -> ServedHead | None:
    """Return the analytic head that serves: where one is declared, its features were made, and a row is retained."""
    made = [entry for entry in evidence.entries if entry.kind == "head"]
    if state.plan.head is None or not made or not state.by_slot:
        return None
    environment, rows = dict(made[-1].body["environment"]), state.retained
    commitments = [str(row.commitment) for row in rows]
    return ServedHead(
        derive.head_key(evidence.run, commitments=commitments, environment=environment), environment, rows
    )


def orders_now(plan: Plan, entries: Iterable[Entry]) -> tuple[Prefix, ...]:
    """Return the orders in force: the plan's, or cyclic(L, B) of the last extend entry."""
    orders = plan.orders
    for entry in entries:
        if entry.kind == "extend":
            budget = entry.body["budget"]
            if not isinstance(budget, int) or budget < 1:
                raise RunError(f"ledger entry {entry.seq} extends the budget to {budget!r}; it is at least 1")
            orders = derive.cyclic(plan.slices, budget)
    return orders


def surviving(entries: Iterable[Entry]) -> dict[Node, Survivor]:
    """Return the nodes with a train entry after which no request names one of their slots; the last entry counts."""
    alive: dict[Node, Survivor] = {}
    for entry in entries:
        body = entry.body
        if entry.kind == "train":
            node = Survivor(
                entry.seq,
                str(body["key"]),
                int(body["shard"]),
                tuple(int(s) for s in body["prefix"]),
                body["parent"],
                str(body["tensors"]),
                str(body["head"]),
                str(body["reads"]),
                dict(body["files"]),
                dict(body["environment"]),
            )
            alive[node.shard, node.prefix] = node
        elif entry.kind == "request":
            hit = {(int(shard), int(slice_)) for shard, slice_ in body["slots"]}
            alive = {
                (shard, prefix): node
                for (shard, prefix), node in alive.items()
                if not any((shard, s) in hit for s in prefix)
            }
    return alive


def longest(shard: int, order: Prefix, survivors: Mapping[Node, Survivor]) -> tuple[Survivor, ...]:
    """Return the chain of one order: surviving nodes from the first stage on, each on the node before."""
    chain: list[Survivor] = []
    for length in range(1, len(order) + 1):
        node = survivors.get((shard, order[:length]))
        if node is None or node.parent != (chain[-1].key if chain else None):
            break
        chain.append(node)
    return tuple(chain)


def served(
    shards: int,
    orders: tuple[Prefix, ...],
    survivors: Mapping[Node, Survivor],
    occupied: Collection[tuple[int, int]],
) -> tuple[Chain, ...]:
    """Return what each live shard serves: its longest chain, ties by the lowest order index.

    A chain none of whose slots is ``occupied`` by a retained row does not serve: none of its nodes read a row.
    """
    chains = []
    for shard in range(shards):
        best: Chain | None = None
        for index, order in enumerate(orders):
            nodes = longest(shard, order, survivors)
            if nodes and any((shard, s) in occupied for s in nodes[-1].prefix):
                best = best if best is not None and len(best.nodes) >= len(nodes) else Chain(shard, index, nodes)
        if best is not None:
            chains.append(best)
    return tuple(chains)


def without(state: State, lost: Collection[Node]) -> State:
    """Return ``state`` with the chains that serve if the nodes ``lost`` are not there; they survive all the same."""
    there = {node: survivor for node, survivor in state.survivors.items() if node not in lost}
    chains = served(state.plan.shards, state.orders, there, state.by_slot)
    live = {chain.shard for chain in chains}
    offline = tuple(s for s in range(state.plan.shards) if s not in live and state.plan.stages)
    return replace(state, chains=chains, offline=offline)


def history(entries: Iterable[Entry], names: Mapping[str, str] | None = None) -> tuple[Event, ...]:
    """Return what the ledger says has happened since the fit; a node trained a second time means a refresh.

    ``names`` maps tags to ids, and a tag that it lacks gives an empty id. Without ``names`` no id is known: deletions are
    told as the retirement of their slots.
    """
    past: list[Event] = []
    trained: set[Node] = set()
    for entry in entries:
        if entry.kind == "request":
            slots = tuple((int(shard), int(slice_)) for shard, slice_ in entry.body["slots"])
            ids = () if names is None else tuple(sorted(names.get(tag, "") for tag in entry.body["tags"]))
            past.append(Event("delete" if ids else "retire", ids, slots))
        elif entry.kind == "extend":
            past.append(Event("extend", budget=int(entry.body["budget"])))
        elif entry.kind == "train":
            node = (int(entry.body["shard"]), tuple(entry.body["prefix"]))
            if node in trained and past[-1:] != [Event("refresh")]:
                past.append(Event("refresh"))
            trained.add(node)
    return tuple(past)
