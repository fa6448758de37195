"""Deletion capacity: how many deletions a system bears, and how much of it is left on the way.

Capacity counts requests, each to one slot; "dead" means that no shard has an order whose first slice is unhit.
:mod:`~s3t.capacity.rates` (requests until shards are dead), :mod:`~s3t.capacity.counting` (dead shards after so many
requests) and :mod:`~s3t.capacity.survival` (what is left in service) are exact, :mod:`~s3t.capacity.rational` in fractions;
:mod:`~s3t.capacity.paper` has the paper's formulas beside them. :mod:`~s3t.capacity.simulation` plays the process.
docs/CAPACITY.md derives every formula.
Everything here is pure; no torch.
"""

from s3t.capacity.counting import expected_live_shards, probability_dead, probability_live, requests_until
from s3t.capacity.demand import Demand
from s3t.capacity.estimates import Estimate, Simulation
from s3t.capacity.paper import gap, gap_of_the_paper, growth_of_the_paper
from s3t.capacity.rates import (
    deletion_rate,
    deletion_rate_exact,
    deletion_rate_from,
    deletion_rate_once,
    deviation_to_dead,
    harmonic,
    requests_to_dead,
)
from s3t.capacity.rational import best_length_distribution_exact, probability_dead_exact, requests_to_dead_exact
from s3t.capacity.simulation import simulate, simulate_stream
from s3t.capacity.survival import (
    best_length_distribution,
    best_length_distributions,
    expected_best_length,
    expected_best_lengths,
    expected_share,
    expected_surviving_length,
    probability_in_service,
    survival,
)

__all__ = [
    "Demand",
    "Estimate",
    "Simulation",
    "best_length_distribution",
    "best_length_distribution_exact",
    "best_length_distributions",
    "deletion_rate",
    "deletion_rate_exact",
    "deletion_rate_from",
    "deletion_rate_once",
    "deviation_to_dead",
    "expected_best_length",
    "expected_best_lengths",
    "expected_live_shards",
    "expected_share",
    "expected_surviving_length",
    "gap",
    "gap_of_the_paper",
    "growth_of_the_paper",
    "harmonic",
    "probability_dead",
    "probability_dead_exact",
    "probability_in_service",
    "probability_live",
    "requests_to_dead",
    "requests_to_dead_exact",
    "requests_until",
    "simulate",
    "simulate_stream",
    "survival",
]
