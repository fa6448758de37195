"""Planted faults: the verifier's own test. No audit counts until it has rejected these (docs: VERIFICATION, "Planted leaks").

Each fault alters one step of the real system. The faulty system and its never-ingested reference both run the faulty
code; the clean room runs clean code. ``python -m verify leaks`` plants them and prints which check caught which.
"""

from __future__ import annotations

from verify.leaks import batching, data, layers, memory, served
from verify.leaks.bench import CLEAN, Bench
from verify.leaks.leak import CHECKS, Leak, Planted

LEAKS: tuple[Leak, ...] = tuple(
    sorted((*data.LEAKS, *batching.LEAKS, *layers.LEAKS, *memory.LEAKS, *served.LEAKS), key=lambda leak: leak.number)
)
"""Every planted fault, by number."""

NOT_PLANTED: dict[int, str] = {
    37: "requests chosen from served outputs are outside the guarantee (a stated limit): no check can see them",
}
"""Faults of the catalogue that are not planted, and why."""

__all__ = ["CHECKS", "CLEAN", "LEAKS", "NOT_PLANTED", "Bench", "Leak", "Planted"]
