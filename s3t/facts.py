"""The ledger's facts as a running view: which nodes survive, which were dropped, what budget holds. No torch.

Reading on from the last seen entry is cheap, so a view is brought up to date before every use; a deletion that another
process acknowledged is therefore seen by the next prediction. The first look takes the ledger's index of hit slots instead
of all requests, so it does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from s3t.contract import Cost, Slot
from s3t.graph import Node, nodes
from s3t.ledger import Entry, Ledger
from s3t.plan import Plan
from s3t.selection import Chain, TrainedNode, served, survivors


class Facts:
    """A view of one ledger under one plan. Call :meth:`update` before reading the attributes."""

    def __init__(self, ledger: Ledger, plan: Plan) -> None:
        self._ledger = ledger
        self._seen = 0
        self._trained: list[TrainedNode] = []
        self.plan = plan
        self._spent: dict[str, Any] = asdict(Cost())
        self.hits: dict[Slot, int] = {}
        self.alive: dict[Node, TrainedNode] = {}
        self._chains: dict[frozenset[int], dict[int, Chain]] = {}
        self.head = 0

    def update(self) -> bool:
        """Read new facts; return whether there were any."""
        head = self._ledger.head()
        if head == self._seen:
            return False
        if self._seen:
            for entry in self._ledger.entries(None, self._seen, head):
                self._follow(entry)
        else:
            self._begin(head)
        self._seen, self._chains = head, {}
        return True

    def _begin(self, head: int) -> None:
        for kind in ("train", "extend", "head"):
            for entry in self._ledger.entries(kind, 0, head):
                self._note(entry)
        self.hits = self._ledger.hits()
        self.alive = survivors(self._trained, self.hits)

    def _follow(self, entry: Entry) -> None:
        self._note(entry)
        if entry.kind == "train":
            self.alive = self.alive | survivors(self._trained[-1:], self.hits)
        elif entry.kind == "request":
            slots = {(shard, piece) for shard, piece in entry.body["slots"]}
            self.hits |= dict.fromkeys(slots, entry.seq)
            shards = {shard for shard, _ in slots}
            left = dict(self.alive)  # never changed in place: another thread may be looking at it
            for node in self.alive:
                if node.shard in shards and node.touches(slots):
                    del left[node]
            self.alive = left

    def _note(self, entry: Entry) -> None:
        if entry.kind == "train":
            self._trained.append(trained_node(entry.seq, entry.body))
        if entry.kind in ("train", "head"):
            for name, value in entry.body["cost"].items():
                if name in self._spent:
                    self._spent[name] += value
        if entry.kind == "head":
            self.head = entry.seq
        if entry.kind == "extend":
            self.plan = self.plan.with_budget(entry.body["budget"])

    @property
    def has_head(self) -> bool:
        """Whether there is all that the plan says of an analytic head. ``head``: the last ledger entry that says so, or 0."""
        return self.plan.head is None or self.head > 0

    @property
    def cost(self) -> Cost:
        """What all training so far has cost."""
        return Cost(**self._spent)

    def chains(self, lost: frozenset[int] = frozenset()) -> dict[int, Chain]:
        """Return the chain that each live shard serves, as if the nodes of the ledger entries ``lost`` were not there."""
        if lost not in self._chains:
            there = {node: fact for node, fact in self.alive.items() if fact.seq not in lost}
            self._chains = {lost: served(self.plan, there)}
        return dict(self._chains[lost])

    def missing(self, lost: Collection[Node] = ()) -> list[Node]:
        """Return the plan's nodes that are to be trained, parents first.

        Those not trained or no longer valid, those trained from another parent than the one there is now, and ``lost``.
        """
        return [node for node in nodes(self.plan) if node in lost or not self._stands(node)]

    def _stands(self, node: Node) -> bool:
        fact, parent = self.alive.get(node), self.alive.get(node.parent) if node.parent else None
        return fact is not None and fact.parent == (parent.key if parent else None)

    def live_keys(self) -> set[str]:
        """Return the keys of all surviving nodes."""
        return {fact.key for fact in self.alive.values()}

    def dropped_keys(self) -> set[str]:
        """Return the keys of all nodes ever trained that do not survive."""
        return {fact.key for fact in self._trained} - self.live_keys()


def trained_node(seq: int, body: dict[str, Any]) -> TrainedNode:
    """Return the fact that a ``train`` entry states."""
    node = Node(body["shard"], tuple(body["prefix"]))
    return TrainedNode(seq, node, body["key"], body["parent"], body["rows"], body["files"])
