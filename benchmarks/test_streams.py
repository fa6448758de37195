"""Streams of requests on real systems: capacity, slices in service and accuracy, beside formula and simulation.

All three are of the very partition that is measured: the slots that the run's key gives its records.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.profiles import PROFILES, Profile
from benchmarks.rows import interval
from benchmarks.streams import Played, play, population
from benchmarks.synthetic import synthetic
from benchmarks.workbench import Workbench, describe
from s3t.capacity import Simulation, expected_share, requests_to_dead, simulate_stream
from s3t.records import Layout, Order, Recipe, Record
from s3t.streams import Adaptive, Population, Stream, make_stream
from s3t.system import System

CASES = (("s3t", 3), ("sisa-lora-lazy", 1))
"""Methods that serve what survives, with their budgets; SISA serves the checkpoint before the deleted slice."""
HORIZON = 400
"""Most requests of a real life; a capacity beyond it is not measured, and a row says so."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark per method, budget and stream of the profile."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    real = metafunc.function is test_accuracy_under_a_stream
    streams = profile.accuracy_streams if real else profile.request_streams
    metafunc.parametrize(("method", "budget", "stream"), [(*case, name) for case in CASES for name in streams])


def test_capacity_under_a_stream(
    benchmark: Any, bench: Workbench, tmp_path: Path, method: str, budget: int, stream: str
) -> None:
    """Real lives of a tiny model, of which only the slots matter; what an adaptive attacker sees are its real scores."""
    benchmark.group = "streams: capacity"
    profile = bench.profile
    layout = Layout(profile.shards, profile.slices, budget)
    data = synthetic(60 * layout.shards * layout.slices, 1, 1)
    about = _about(method, layout, stream, data.name, "tiny")
    with bench.answering(question="streams", metric="requests to dead system", **about):
        recipe = Recipe(epochs=0.05, batch_size=64)
        system = describe(tmp_path / "run", method, layout, recipe, bench.tiny, data, 0)
        system.fit(data.train)
        people, orders = population(system, data.train), system.config.plan.orders
        system.close()
        law = make_stream(stream)
        simulated = _simulated(law, people, orders, profile)
        if simulated.last.mean > HORIZON / 2 or simulated.last.never:
            bench.add(
                question="streams",
                metric="requests to dead system",
                unit="requests",
                value=None,
                n=0,
                kind="measured",
                status="not-run",
                reason=f"expected to take {simulated.last.mean:.0f} requests; real lives end at {HORIZON}",
                **about,
            )

        def lives() -> list[Played]:
            return [_life(bench, tmp_path, law, people, data.train, seed) for seed in range(profile.stream_lives)]

        played = benchmark.pedantic(lives, rounds=1, iterations=1)
    _capacity(bench, about, law, people, orders, simulated, played)
    _shares(bench, about, law, people, orders, simulated, played)


def test_accuracy_under_a_stream(benchmark: Any, bench: Workbench, method: str, budget: int, stream: str) -> None:
    """The profile's model and data: accuracy and slices in service after the same requests, for every seed."""
    benchmark.group = "streams: accuracy"
    profile, law = bench.profile, make_stream(stream)
    data = bench.dataset(profile.data[0])
    about = _about(method, Layout(profile.shards, profile.slices, budget), stream, data.name, profile.model)
    points = profile.stream_checkpoints

    def lives() -> list[tuple[int, Population, Sequence[Order], Played]]:
        found: list[tuple[int, Population, Sequence[Order], Played]] = []
        for seed in profile.seeds[: profile.stream_seeds]:
            system = bench.trained(method, budget, profile.data[0], seed)
            people, orders = population(system, data.train), system.config.plan.orders
            rng = np.random.default_rng([seed, 4])
            told = play(system, law, people, data.train, rng, checkpoints=points, horizon=max(points), test=data.test)
            system.close()
            found.append((seed, people, orders, told))
        return found

    with bench.answering(question="streams", metric="test accuracy", **about):
        played = benchmark.pedantic(lives, rounds=1, iterations=1)
    for seed, people, orders, told in played:
        here = {**about, "seed": seed, "question": "streams"}
        for stand in told.stands:
            at = {"deletions": stand.requests, "kind": "measured", **here}
            bench.add(metric="test accuracy", unit="share", value=stand.accuracy, n=len(data.test), **at)
            bench.add(metric="share in service", unit="share", value=stand.share, n=1, **at)
        _predicted_shares(bench, here, law, people, orders, _simulated(law, people, orders, profile))


def _about(method: str, layout: Layout, stream: str, data: str, model: str) -> dict[str, Any]:
    sizes = {"method": method, "budget": layout.budget, "shards": layout.shards, "slices": layout.slices}
    return {**sizes, "data": data, "model": model, "extra": {"stream": stream}}


def _simulated(law: Stream, people: Population, orders: Sequence[Order], profile: Profile) -> Simulation:
    after = [point for point in profile.stream_checkpoints if point]
    return simulate_stream(
        law, people, orders, trials=profile.stream_trials, seed=0, after=after, horizon=20 * HORIZON, threads=1
    )


def _life(
    bench: Workbench, folder: Path, law: Stream, people: Population, records: Sequence[Record], seed: int
) -> Played:
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(folder / "run", folder / "copy")
    system = System.open(folder / "copy", bench.tiny)
    try:
        points, rng = bench.profile.stream_checkpoints, np.random.default_rng([seed, 3])
        return play(system, law, people, records, rng, checkpoints=points, horizon=HORIZON)
    finally:
        system.close()


def _capacity(
    bench: Workbench,
    about: dict[str, Any],
    law: Stream,
    people: Population,
    orders: Sequence[Order],
    simulated: Simulation,
    played: Sequence[Played],
) -> None:
    about = {**about, "question": "streams", "metric": "requests to dead system", "unit": "requests"}
    demand, last = law.demand(people), simulated.last
    if last.never or last.mean > HORIZON / 2:
        return
    low, high = last.interval()
    bench.add(**about, value=last.mean, low=low, high=high, confidence=0.95, n=last.trials, kind="simulated", seed=0)
    if demand is not None:
        exact = requests_to_dead(demand, orders)
        bench.add(**about, value=exact, n=1, kind="derived")
        assert abs(last.deviation(exact)) < 5
    deaths = [float(life.death) for life in played if life.death is not None]
    assert len(deaths) == len(played), "a life outlived the horizon"
    mean, lower, upper = interval(deaths)
    bench.add(**about, value=mean, low=lower, high=upper, confidence=0.95, n=len(deaths), kind="measured")
    if not isinstance(law, Adaptive):  # what it sees in simulation is no score
        spread = float(simulated.deaths[2].std()) / len(deaths) ** 0.5
        assert abs(mean - last.mean) <= 5 * spread + 1e-9


def _shares(
    bench: Workbench,
    about: dict[str, Any],
    law: Stream,
    people: Population,
    orders: Sequence[Order],
    simulated: Simulation,
    played: Sequence[Played],
) -> None:
    about = {**about, "question": "streams"}
    _predicted_shares(bench, about, law, people, orders, simulated)
    wanted: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
        ("share in service", "share", lambda stand: stand.share),
        ("live shards", "shards", lambda stand: stand.live),
    )
    for number, stand in enumerate(played[0].stands):
        for metric, unit, value in wanted:
            mean, low, high = interval([value(life.stands[number]) for life in played])
            bench.add(
                **about,
                metric=metric,
                unit=unit,
                value=mean,
                low=low,
                high=high,
                confidence=0.95,
                n=len(played),
                kind="measured",
                deletions=stand.requests,
            )


def _predicted_shares(
    bench: Workbench,
    about: dict[str, Any],
    law: Stream,
    people: Population,
    orders: Sequence[Order],
    simulated: Simulation,
) -> None:
    demand = law.demand(people)
    for requests, share in zip(simulated.after, simulated.in_service, strict=True):
        at = {**about, "metric": "share in service", "unit": "share", "deletions": requests}
        low, high = share.interval()
        bench.add(**at, value=share.mean, low=low, high=high, confidence=0.95, n=share.trials, kind="simulated")
        if demand is not None:
            exact = expected_share(demand, orders, requests)
            bench.add(**at, value=exact, n=1, kind="derived")
            assert abs(share.deviation(exact)) < 5
