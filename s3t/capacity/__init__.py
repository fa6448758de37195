"""Deletion capacity: how many deletions a system bears, and how much of it is left on the way.

Capacity counts requests, each to one slot; "dead" means that no shard has an order whose first slice is unhit.
:mod:`~s3t.capacity.rates` and :mod:`~s3t.capacity.survival` are exact, :mod:`~s3t.capacity.simulation` plays the process.
Everything here is pure; no torch.
"""

from s3t.capacity.estimates import Estimate, Simulation
from s3t.capacity.rates import deletion_rate, deletion_rate_from, harmonic
from s3t.capacity.simulation import simulate, simulate_stream
from s3t.capacity.survival import expected_surviving_length, survival

__all__ = [
    "Estimate",
    "Simulation",
    "deletion_rate",
    "deletion_rate_from",
    "expected_surviving_length",
    "harmonic",
    "simulate",
    "simulate_stream",
    "survival",
]
