"""E1a on a random sample of nodes, for runs whose full replay is too dear: who is drawn, and what that detects.

A sampled node is retrained on top of what is STORED of its ancestors, so that it is checked as a function of its parent, by
itself. If every node is the declared function of its parent's stored tensors and its own retained rows, then by induction
over the stages every node is the declared function of retained rows alone, which is what a full replay says; a sample says
it for the sampled nodes, and bounds the chance that bad ones went unseen. A node that merely inherits a fault of its parent is
no bad node here: the parent is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from s3t.errors import S3TError
from verify import derive
from verify.state import Node


def draw_nodes(nodes: Iterable[Node], count: int, head: str, nonce: int) -> tuple[Node, ...]:
    """Return ``count`` of ``nodes`` (all if there are fewer), uniform without replacement: the lowest by SHA-256.

    ``head``: digest of the ledger's last entry; ``nonce``: a number that the auditor draws after that entry was shown. An
    operator who knows neither in time cannot arrange for bad nodes to be spared. S3TError for a count below 1.
    """
    if count < 1:
        raise S3TError(f"a sample of {count} nodes checks nothing; give at least 1")
    ranked = sorted(nodes, key=lambda node: derive.digest(["s3t spot v1", head, nonce, node[0], list(node[1])]))
    return tuple(ranked[:count])


def detection(nodes: int, sampled: int, bad: int) -> float:
    """Return the chance that ``sampled`` of ``nodes`` include any of ``bad`` ones: 1 - C(N - k, n) / C(N, n)."""
    return 1 - math.comb(nodes - bad, sampled) / math.comb(nodes, sampled)


def detections(nodes: int, sampled: int) -> dict[str, float]:
    """Return the detection probability for 1, 2 and 5 bad nodes and for 1 percent of them (rounded up), as far as possible."""
    bad = {"1": 1, "2": 2, "5": 5, "1 percent": math.ceil(nodes / 100)}
    return {name: detection(nodes, sampled, k) for name, k in bad.items() if k <= nodes}
