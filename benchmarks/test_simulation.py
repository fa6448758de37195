"""Speed of the simulation against a plain loop over the same process, and its agreement with theory over a grid."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benchmarks import grid
from benchmarks.process import plain_requests, play
from benchmarks.rows import interval
from benchmarks.workbench import Workbench
from s3t.capacity import Simulation, deletion_rate, simulate
from s3t.capacity.demand import Demand
from s3t.orders import cyclic
from s3t.streams import Population, Zipf

ROUNDS = 7
PLAIN_REQUESTS = 100_000
"""Requests per round, at least, of the plain loop; whole lives are played."""
FAST_REQUESTS = 50_000_000
SIZES = {"smoke": (2, 0.02), "quick": (3, 0.1)}
"""Rounds, and share of the requests, of the small profiles."""


@dataclass(frozen=True)
class Speed:
    """One comparison: a layout, its requests, and whether chains are looked at too (after 10 and 50 requests)."""

    shards: int
    slices: int
    budget: int
    requests: str = "uniform"
    chains: bool = False

    def demand(self) -> Demand:
        """Return the requests' demand; without replacement of 10^9 records in all."""
        shape = (self.shards, self.slices)
        if self.requests == "uniform":
            return Demand.uniform(*shape)
        if self.requests == "once":
            return Demand.once(np.full(shape, 10**9 // (self.shards * self.slices)))
        demand = Zipf(exponent=1.0).demand(Population.synthetic(np.full(shape, 100)))
        assert demand is not None
        return demand


SPEEDS = (
    Speed(5, 6, 1),
    Speed(5, 6, 3),
    Speed(5, 6, 6),
    Speed(20, 10, 3),
    Speed(100, 10, 3),
    Speed(1000, 10, 3),
    Speed(10_000, 10, 3),
    Speed(5, 6, 3, chains=True),
    Speed(100, 10, 3, chains=True),
    Speed(5, 6, 3, "Zipf users"),
    Speed(100, 10, 3, "Zipf users"),
    Speed(5, 6, 3, "once"),
    Speed(100, 10, 3, "once"),
    Speed(10_000, 10, 3, "once"),
    Speed(5, 6, 3, "once", chains=True),
)
AFTER = (10, 50)


def _timed(job: Callable[[], int]) -> float:
    """Return the requests per second of a job that returns how many it simulated."""
    begin = time.perf_counter()
    requests = job()
    return requests / (time.perf_counter() - begin)


@pytest.mark.parametrize("speed", SPEEDS, ids=str)
def test_speed(benchmark: Any, bench: Workbench, speed: Speed) -> None:
    """Both sides in one process, turn by turn; a request counts until the last shard is dead."""
    benchmark.group = "simulation: speed"
    rounds, share = SIZES.get(bench.profile.name, (ROUNDS, 1.0))
    demand, orders = speed.demand(), cyclic(speed.slices, speed.budget)
    after = AFTER if speed.chains else ()
    life = deletion_rate(speed.shards, speed.slices, speed.budget)
    trials = max(10, int(FAST_REQUESTS * share / (4 if speed.chains else 1) / life))
    plain: list[float] = []
    fast: list[float] = []
    rng = random.Random(0)

    def loop() -> int:
        done = 0
        while done < PLAIN_REQUESTS * share:
            done += int(play(speed.shards, orders, plain_requests(demand, rng), after).deaths[2])
        return done

    def simulated() -> int:
        found: Simulation = simulate(demand, orders, trials=trials, seed=len(fast), after=after)
        return int(found.deaths[2].sum())

    def turn() -> None:
        plain.append(_timed(loop))
        fast.append(_timed(simulated))

    about: dict[str, Any] = {
        "question": "simulation",
        "metric": "simulation / plain loop, requests per second",
        "unit": "ratio",
        "method": "s3t",
        "budget": speed.budget,
        "shards": speed.shards,
        "slices": speed.slices,
        "extra": {"requests": speed.requests, "chains": speed.chains},
    }
    with bench.answering(**about):
        benchmark.pedantic(turn, rounds=rounds, iterations=1, warmup_rounds=0)
    mean, low, high = interval([one / other for one, other in zip(fast, plain, strict=True)])
    about["extra"] |= {
        "trials": trials,
        "requests per second": round(float(np.mean(fast))),
        "plain loop, requests per second": round(float(np.mean(plain))),
        "threads": min(4, os.cpu_count() or 1),
    }
    bench.add(**about, value=mean, low=low, high=high, confidence=0.95, n=rounds, kind="measured", seed=0)


def test_grid(benchmark: Any, bench: Workbench) -> None:
    """Every cell where there is theory; how many lie beyond 3 standard errors, and how many chance predicts."""
    benchmark.group = "simulation: grid"
    trials = min(bench.profile.trials, 4_000 if bench.profile.name in SIZES else 20_000)
    about: dict[str, Any] = {
        "question": "simulation",
        "unit": "cells",
        "method": "s3t",
        "budget": 0,
        "shards": 0,
        "slices": 0,
    }

    def run() -> list[grid.Checked]:
        return [grid.check(cell, trials, 0) for cell in grid.cells()]

    with bench.answering(metric="cells beyond 3 standard errors", **about):
        checked = benchmark.pedantic(run, rounds=1, iterations=1)
    allowed = grid.misses_allowed(len(checked))
    found = grid.misses(checked)
    for quantity, count in found.items():
        extra = {
            "quantity": quantity,
            "expected by chance": round(grid.CHANCE * len(checked), 2),
            "allowed": allowed,
            "trials": trials,
        }
        metric = "cells beyond 3 standard errors"
        bench.add(**about, metric=metric, value=count, n=len(checked), kind="simulated", seed=0, extra=extra)
    assert max(found.values()) <= allowed
