"""Which worker trains which node, and when: the rules of scheduling, and of simulations of it. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from s3t.graph import Node

AHEAD = 2
"""Assignments that a worker has at most: the one it works on and the next."""


class Homes:
    """Which worker trains a chain: whole shards together, for a worker takes a slice's rows through the frozen prefix once.

    ``by_shard`` false, where there are fewer shards than workers: chains with the same first slice together.
    """

    def __init__(self, number: int, *, by_shard: bool) -> None:
        self.number = number
        self._by_shard = by_shard
        self._of: dict[tuple[int, ...], int] = {}

    @staticmethod
    def among(missing: Collection[Node], workers: int) -> Homes:
        """Return homes for at most ``workers``: no more than there are chains that share no node."""
        roots = {(node.shard, node.prefix[0]) for node in missing}
        number = min(workers, len(roots))
        return Homes(number, by_shard=len({shard for shard, _ in roots}) >= number)

    def of(self, node: Node) -> int:
        """Return the worker of a node, also of one that a deletion made missing while the build ran."""
        chain = (node.shard,) if self._by_shard else (node.shard, node.prefix[0])
        return self._of.setdefault(chain, len(self._of) % self.number)


def ready(missing: Sequence[Node], busy: Collection[Node]) -> list[Node]:
    """Return the missing nodes whose parent is there and that no worker has yet."""
    waiting = set(missing)
    return [node for node in missing if node not in busy and node.parent not in waiting]
