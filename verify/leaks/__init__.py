"""Planted faults: the verifier's own test. No audit counts until it has rejected these (docs: VERIFICATION, "Planted leaks").

Each fault alters one step of the real system. The faulty system and its never-ingested reference both run the faulty
code; the clean room runs clean code. ``python -m verify.leaks`` plants them all and prints which check caught which.
"""

from __future__ import annotations

from verify.leaks import data, memory, served
from verify.leaks.bench import CLEAN, Bench, matrix
from verify.leaks.leak import CHECKS, Leak, Planted

LEAKS: tuple[Leak, ...] = tuple(sorted((*data.LEAKS, *memory.LEAKS, *served.LEAKS), key=lambda leak: leak.number))
"""Every planted fault, by number."""

NOT_PLANTED: dict[int, str] = {
    28: "the tiny model has 6 layers, so no index is a prefix of another; blocks know their layers by index",
    34: "needs an accelerator that runs out of memory; the recipe's batch size is part of every node's key",
    35: "next edition: batches are formed inside one node, from its own rows; there is no sampler across nodes to alter",
    37: "requests chosen from served outputs are outside the guarantee (a stated limit): no check can see them",
    42: "next edition: there is no activation cache to alter",
}
"""Faults of the catalogue that are not planted, and why."""

__all__ = ["CHECKS", "CLEAN", "LEAKS", "NOT_PLANTED", "Bench", "Leak", "Planted", "matrix"]
