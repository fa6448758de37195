"""Whole lives of a served run under a policy of refreshes, simulated: how much of it is in service, and what that trains.

Requests come as a Poisson process, each for one retained record, all equally likely. A refresh trains what is missing one node
after another, as :mod:`s3t.scheduling` does; a request that hits the node under way has it trained again. Seconds of a node are
its record passes times what a pass of its stage took in a given run (:func:`measured`). The policy is the service's own
(:func:`s3t.refreshing.due`). Without refreshes the expectations are exact (:func:`untouched`). No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import poisson

from s3t.capacity import Demand, Estimate, expected_best_lengths, expected_live_shards, probability_dead
from s3t.errors import LayoutError
from s3t.graph import nodes
from s3t.plan import Plan
from s3t.planner.options import YEAR
from s3t.records import Order
from s3t.refreshing import Policy, Standing, due

DAY = 86400.0
"""Seconds."""


@dataclass(frozen=True)
class Setting:
    """``plan``, with ``records`` equally over its slots, asked for ``per_day`` deletions over ``years``.

    ``seconds``: of a record pass by a stage's number from 1 (:func:`measured`); ``rest``: seconds between starts of refreshes,
    at least. LayoutError for an amount that cannot be, or a stage without seconds.
    """

    plan: Plan
    records: int
    per_day: float
    years: float
    seconds: Mapping[int, float]
    rest: float = 60.0

    def __post_init__(self) -> None:
        for name in ("records", "per_day", "years", "rest"):
            if not 0 < getattr(self, name) < math.inf:
                raise LayoutError(f"{name}={getattr(self, name):g} is not possible: give a number above 0")
        if missing := [i for i in range(1, self.plan.layout.slices + 1) if not self.seconds.get(i, -1.0) >= 0]:
            raise LayoutError(f"stage {missing[0]} has no seconds; measure a run of {self.plan.layout.slices} slices")

    @property
    def span(self) -> float:
        """The whole time, in seconds."""
        return self.years * YEAR * DAY

    @cached_property
    def prefixes(self) -> list[Order]:
        """The nodes of a shard."""
        return [node.prefix for node in nodes(self.plan) if node.shard == 0]

    @cached_property
    def counts(self) -> list[list[int]]:
        """Records by shard and slice at the beginning."""
        slots = self.plan.layout.shards * self.plan.layout.slices
        flat = [self.records // slots + (i < self.records % slots) for i in range(slots)]
        return [flat[i : i + self.plan.layout.slices] for i in range(0, slots, self.plan.layout.slices)]


@dataclass(frozen=True)
class Life:
    """One life. Shares are of the time: ``available`` with some live shard, ``live`` the mean share of live shards, ``length``
    the mean of stages served over all shards (0 for a dead one). ``nodes`` trained again, those thrown away included."""

    available: float = 0.0
    live: float = 0.0
    length: float = 0.0
    refreshes: float = 0.0
    nodes: float = 0.0
    record_passes: float = 0.0
    seconds: float = 0.0


def measured(costs: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[int, float]:
    """Return the seconds of a record pass by stage, from (length of prefix, cost) of trained nodes (ledger, ``train``).

    Mean over the stage's passes. LayoutError without any pass.
    """
    spent: dict[int, list[float]] = {}
    for length, cost in costs:
        sums = spent.setdefault(length, [0.0, 0.0])
        sums[0] += cost["seconds"]
        sums[1] += cost["record_passes"]
    if not spent or not all(passes > 0 for _, passes in spent.values()):
        raise LayoutError("no node with record passes to measure on; give a trained run")
    return {length: seconds / passes for length, (seconds, passes) in sorted(spent.items())}


def simulate_lives(setting: Setting, policy: Policy, *, lives: int, seed: int) -> dict[str, Estimate]:
    """Return the mean of every field of :class:`Life` over ``lives`` independent ones. LayoutError for less than one life."""
    if lives < 1:
        raise LayoutError(f"lives={lives} is not possible: give an integer of at least 1")
    rng = np.random.default_rng(seed)
    found = [_Played(setting, policy, rng).life() for _ in range(lives)]
    return {f.name: Estimate.of(np.array([getattr(life, f.name) for life in found], float)) for f in fields(Life)}


def untouched(setting: Setting) -> Life:
    """Return the expectations of a life without refreshes, exact.

    The state after n requests is :mod:`s3t.capacity`'s; in expectation so much of the time passes with exactly n:
    P(more than n requests) / (rate * time).
    """
    demand, orders = Demand.once(setting.counts), setting.plan.orders
    mean = setting.per_day * setting.years * YEAR
    most = min(setting.records, int(poisson.isf(1e-12, mean)) + 1)
    weights = poisson.sf(np.arange(most + 1), mean) / mean
    sums = np.zeros(3)
    for requests, weight in enumerate(weights):
        dead = probability_dead(demand, orders, requests)
        if dead >= 1.0:  # for good
            break
        shards = demand.shards
        live = expected_live_shards(demand, orders, requests) / shards
        sums += weight * np.array([1.0 - dead, live, expected_best_lengths(demand, orders, requests).sum() / shards])
    return Life(*sums.tolist())


class _Played:
    """One life under way. A shard's surviving nodes are the bits of a number."""

    def __init__(self, setting: Setting, policy: Policy, rng: np.random.Generator) -> None:
        self.setting, self.policy, self.rng = setting, policy, rng
        self.counts = [list(row) for row in setting.counts]
        self.left = setting.records
        prefixes = setting.prefixes
        self.whole = (1 << len(prefixes)) - 1
        self.alive = [self.whole] * len(self.counts)
        self.hit = [
            sum(1 << i for i, p in enumerate(prefixes) if piece in p) for piece in range(setting.plan.layout.slices)
        ]
        self.chains = [
            [1 << prefixes.index(order[:i]) for i in range(1, len(order) + 1)] for order in setting.plan.orders
        ]
        self.order = [(node.shard, prefixes.index(node.prefix)) for node in nodes(setting.plan)]
        self.lengths: dict[int, int] = {}
        self.now, self.started, self.refreshed = 0.0, -math.inf, 0.0
        self.training: tuple[int, int] | None = None
        """Shard and place of the node under way; ``until`` it is done."""
        self.until, self.spoilt = math.inf, False
        self.sums = dict.fromkeys((f.name for f in fields(Life)), 0.0)

    def life(self) -> Life:
        """Play to the end."""
        span, wait = self.setting.span, DAY / self.setting.per_day
        request = self.rng.exponential(wait)
        while self.now < span:
            start = math.inf if self.training else self._start()
            after = min(request, self.until, start, span)
            self._pass(after - self.now)
            self.now = after
            if after == span:
                break
            if after == self.until:
                self._trained()
            elif after == start:
                self.started = after
                self.sums["refreshes"] += 1
                self._next()
            else:
                self._request()
                request = after + self.rng.exponential(wait)
        for name in ("available", "live", "length"):
            self.sums[name] /= span
        return Life(**self.sums)

    def _length(self, shard: int) -> int:
        """Return the stages that a shard serves: 0 without any record behind them."""
        alive = self.alive[shard]
        if alive not in self.lengths:
            best = 0
            for chain in self.chains:
                best = max(best, next((i for i, bit in enumerate(chain) if not alive & bit), len(chain)))
            self.lengths[alive] = best
        return self.lengths[alive] if any(self.counts[shard]) else 0

    def _pass(self, seconds: float) -> None:
        lengths = [self._length(shard) for shard in range(len(self.counts))]
        live = sum(length > 0 for length in lengths)
        self.sums["available"] += seconds * (live > 0)
        self.sums["live"] += seconds * live / len(lengths)
        self.sums["length"] += seconds * sum(lengths) / len(lengths)

    def _start(self) -> float:
        """Return when the next refresh begins if no request comes before."""
        lengths = [self._length(shard) for shard in range(len(self.counts))]
        behind = [shard for shard, alive in enumerate(self.alive) if alive != self.whole]
        stands = Standing(
            tuple(length for length in lengths if length),
            sum(not lengths[shard] for shard in behind),
            bool(behind),
            0.0,
        )
        soonest = max(self.now, self.started + self.setting.rest)
        for when in (soonest, max(soonest, self.refreshed + self.policy.every)):
            since = self.policy.every if when >= self.refreshed + self.policy.every else when - self.refreshed
            if due(self.policy, replace(stands, since=since)):
                return when
        return math.inf

    def _next(self) -> None:
        """Take up the first node that is missing, or end the refresh."""
        self.training, self.until, self.spoilt = None, math.inf, False
        first = next((at for at in self.order if not self.alive[at[0]] >> at[1] & 1), None)
        if first is None:
            self.refreshed = self.now
            return
        prefix = self.setting.prefixes[first[1]]
        rows = sum(self.counts[first[0]][piece] for piece in self.setting.plan.pieces(prefix))
        passes = self.setting.plan.stages[len(prefix) - 1].epochs * rows
        seconds = passes * self.setting.seconds[len(prefix)]
        self.training, self.until = first, self.now + seconds
        for name, value in (("nodes", 1.0), ("record_passes", passes), ("seconds", seconds)):
            self.sums[name] += value

    def _trained(self) -> None:
        assert self.training is not None
        shard, place = self.training
        if not self.spoilt:
            self.alive[shard] |= 1 << place
        self._next()

    def _request(self) -> None:
        if not self.left:
            return
        at = int(self.rng.integers(self.left))
        self.left -= 1
        for shard, row in enumerate(self.counts):
            for piece, count in enumerate(row):
                if at < count:
                    row[piece] -= 1
                    self.alive[shard] &= ~self.hit[piece]
                    if self.training and self.training[0] == shard:
                        self.spoilt |= bool(self.hit[piece] >> self.training[1] & 1)
                    return
                at -= count
