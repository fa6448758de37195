"""The graph of nodes (shard, prefix): what exists in a plan, its seeds, its batches, its keys. Pure functions, no torch.

A served model is the output of a build graph: nodes keyed by everything that determines them; deletion invalidates,
refresh rebuilds what is missing (arXiv 2406.16257, section 3.2; byte by byte in docs/DERIVATION.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s3t.plan import Plan, Stage
from s3t.records import Recipe, canonical_json, sha256

FORMAT = 4
"""Version of the run folder and of everything derived in docs/DERIVATION.md."""


@dataclass(frozen=True, order=True)
class Node:
    """One stage's training: ``prefix`` is the first slices of an order; the empty prefix does not exist."""

    shard: int
    prefix: tuple[int, ...]

    @property
    def parent(self) -> Node | None:
        """The node of the stage before, None for a first stage."""
        return Node(self.shard, self.prefix[:-1]) if len(self.prefix) > 1 else None

    @property
    def name(self) -> str:
        """A readable name, such as ``shard-01/2-0``."""
        return f"shard-{self.shard:02d}/{'-'.join(map(str, self.prefix))}"

    def touches(self, slots: set[tuple[int, int]]) -> bool:
        """Say whether any of ``slots`` lies in this node's prefix."""
        return any((self.shard, piece) in slots for piece in self.prefix)


def nodes(plan: Plan) -> list[Node]:
    """Return every distinct node of ``plan``, parents first; orders with a common prefix share its nodes."""
    found: dict[Node, None] = {}
    for order in plan.orders:
        for shard in range(plan.layout.shards):
            for length in range(1, len(plan.stages) + 1):
                found.setdefault(Node(shard, order[:length]))
    return list(found)


def seed(run_seed: int, node: Node, purpose: str) -> int:
    """Return the node's seed for ``purpose`` in [0, 2^63), from its identity alone, never from a shared stream."""
    identity = canonical_json(["s3t seed v1", run_seed, node.shard, list(node.prefix), purpose])
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "big") % 2**63


def batches(
    ids: Sequence[str], lengths: Sequence[int], epochs: float, recipe: Recipe, batch_seed: int
) -> list[list[int]]:
    """Return all batches of a node, epoch after epoch, as indices into ``ids``.

    Rows are shuffled by a keyed hash of their own id, so that without a row the others close up and keep their order
    ("repacked"); rows of similar length share a batch, within windows of the shuffled epoch.
    """
    out: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        order = sorted(range(len(ids)), key=lambda i: _rank("s3t epoch v1", batch_seed, epoch, ids[i]))
        share = min(1.0, epochs - epoch)
        order = order[: math.floor(share * len(ids) + 0.5)]
        size = recipe.batch_size
        formed = []
        for start in range(0, len(order), recipe.window * size):
            window = sorted(order[start : start + recipe.window * size], key=lambda i: lengths[i])
            formed += [window[i : i + size] for i in range(0, len(window), size)]
        out += sorted(formed, key=lambda batch: _rank("s3t batch v1", batch_seed, epoch, ids[batch[0]]))
    return out


def _rank(purpose: str, batch_seed: int, epoch: int, record_id: str) -> bytes:
    return hashlib.sha256(canonical_json([purpose, batch_seed, epoch, record_id])).digest()


def node_key(
    node: Node,
    parent_key: str | None,
    commitments: Sequence[str],
    stage: Stage,
    recipe: Recipe,
    run_seed: int,
    base: str,
    kernel: str,
    environment: dict[str, Any],
) -> str:
    """Return the node's key (hex SHA-256): it covers everything that sets the node's weights (SPEC section 3)."""
    return sha256(
        canonical_json(
            {
                "format": FORMAT,
                "kernel": kernel,
                "parent": parent_key,
                "shard": node.shard,
                "prefix": list(node.prefix),
                "stage": stage.to_json(),
                "rows": list(commitments),
                "recipe": recipe.to_json(),
                "seed": run_seed,
                "base": base,
                "environment": environment,
            }
        )
    )
