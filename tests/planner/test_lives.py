"""Simulated lives agree with what is exact, and with what a life by hand gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from s3t.capacity import Demand
from s3t.errors import LayoutError
from s3t.orders import cyclic
from s3t.plan import Plan, s3t_plan
from s3t.planner.lives import DAY, Setting, measured, simulate_lives, untouched
from s3t.planner.work import after_requests
from s3t.records import Layout, Recipe
from s3t.refreshing import NEVER, Policy

RECIPE = Recipe(rank=1, epochs=2.0)
FREE = {1: 0.0, 2: 0.0, 3: 0.0}


def _plan(shards: int = 2, slices: int = 3, budget: int = 3) -> Plan:
    return s3t_plan(Layout(shards, slices, budget), RECIPE, 6)


def _setting(plan: Plan | None = None, **how: float) -> Setting:
    amounts = {"records": 600, "per_day": 1.0, "years": 0.1, **how}
    return Setting(plan or _plan(), seconds=FREE, **amounts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "records", "per_day"),
    [((2, 3, 1), 600, 0.5), ((2, 3, 3), 600, 1.0), ((3, 2, 2), 24, 1.0), ((1, 3, 6), 90, 0.3), ((4, 3, 2), 6000, 2.0)],
)
def test_without_refreshes_lives_are_as_expected(layout: tuple[int, int, int], records: int, per_day: float) -> None:
    setting = _setting(_plan(*layout), records=records, per_day=per_day)
    exact, found = untouched(setting), simulate_lives(setting, NEVER, lives=400, seed=3)
    for name in ("available", "live", "length"):
        assert abs(found[name].deviation(getattr(exact, name))) < 4, (name, found[name], exact)
    assert 0 < exact.live < exact.available < 1 or layout[0] == 1
    assert all(found[name].mean == 0 for name in ("refreshes", "nodes", "record_passes", "seconds"))


def test_the_expectation_by_hand() -> None:
    """One record in one slot: it lives until the first request, for (1 - exp(-m)) / m of the time."""
    plan = s3t_plan(Layout(1, 1, 1), RECIPE, 6)
    exact = untouched(Setting(plan, 1, 0.1, 0.1, {1: 0.0}))
    assert exact.available == pytest.approx((1 - 2.718281828459045**-3.6525) / 3.6525, rel=1e-9)
    assert exact.available == exact.live == exact.length


def test_a_refresh_that_costs_no_time_trains_what_a_request_drops() -> None:
    plan = _plan()
    setting = _setting(plan, records=10**6, years=1.0, rest=1e-9)
    found = simulate_lives(setting, Policy.of("below:3"), lives=30, seed=0)
    work = after_requests(plan, Demand.once(setting.counts), 1, setting.records, 6)
    assert found["live"].mean == pytest.approx(1.0, abs=1e-9)
    assert found["length"].mean == pytest.approx(3.0, abs=1e-9)
    per_day = found["refreshes"].mean / 365.25
    assert per_day == pytest.approx(1.0, abs=0.05)
    assert found["nodes"].mean / found["refreshes"].mean == pytest.approx(work.nodes, rel=1e-9)
    assert found["record_passes"].mean / found["refreshes"].mean == pytest.approx(work.record_passes, rel=1e-3)


def test_seconds_are_passes_times_their_price() -> None:
    plan = replace(s3t_plan(Layout(1, 1, 1), RECIPE, 6))
    setting = Setting(plan, 1000, 1.0, 1.0, {1: 0.5})
    found = simulate_lives(setting, Policy.of("when-dead"), lives=5, seed=0)
    assert found["seconds"].mean == pytest.approx(0.5 * found["record_passes"].mean)
    down = 1.0 - found["available"].mean
    assert down * setting.span == pytest.approx(found["seconds"].mean, rel=1e-3), (
        "the one shard is down while it trains"
    )


def test_a_node_that_never_gets_done_helps_nobody() -> None:
    slow = replace(_setting(), seconds=dict.fromkeys((1, 2, 3), 1e9))
    found = simulate_lives(slow, Policy.of("when-dead"), lives=400, seed=1)
    exact = untouched(slow)
    assert abs(found["live"].deviation(exact.live)) < 4
    assert found["refreshes"].mean == found["nodes"].mean
    assert 0.9 < found["refreshes"].mean <= 1


def test_a_request_that_hits_the_node_under_way_has_it_trained_again() -> None:
    plan = s3t_plan(Layout(1, 1, 1), RECIPE, 6)
    day = Setting(plan, 10**6, 1.0, 1.0, {1: DAY / 2e6})
    found = simulate_lives(day, Policy.of("when-dead"), lives=50, seed=2)
    again = found["nodes"].mean / found["refreshes"].mean
    assert again == pytest.approx(2.718281828, rel=0.1), "a node of a day is hit with 1 - 1/e: geometric, e attempts"


@pytest.mark.parametrize("rest", [60.0, 30 * DAY])
def test_times_between_starts(rest: float) -> None:
    setting = replace(_setting(years=1.0, per_day=10.0, records=10**5), rest=rest)
    for policy, least in (("below:3", rest), ("every:7d", max(rest, 7 * DAY))):
        found = simulate_lives(setting, Policy.of(policy), lives=5, seed=0)
        most = setting.span / least
        assert found["refreshes"].mean <= most + 1
        if least > DAY:
            assert found["refreshes"].mean > 0.9 * most - 1


def test_more_refreshes_keep_more_in_service() -> None:
    setting = replace(_setting(years=1.0, records=60_000), seconds={1: 1e-3, 2: 2e-3, 3: 3e-3})
    ranks = [
        simulate_lives(setting, Policy.of(name), lives=20, seed=0)
        for name in ("never", "when-dead", "below:2", "below:3")
    ]
    for name in ("available", "length", "nodes"):
        means = [found[name].mean for found in ranks]
        assert means == sorted(means), (name, means)
    assert ranks[1]["available"].mean > 0.999
    assert ranks[0]["available"].mean < 0.5


def test_lives_are_those_of_their_seed() -> None:
    one, two, other = (simulate_lives(_setting(), Policy.of("when-dead"), lives=5, seed=seed) for seed in (0, 0, 1))
    assert one == two != other


def test_the_order_is_that_of_the_build() -> None:
    setting = _setting()
    assert setting.prefixes == [order[:i] for order in cyclic(3, 3) for i in (1, 2, 3)]
    assert setting.counts == [[100] * 3] * 2
    assert _setting(records=604).counts == [[101, 101, 101], [101, 100, 100]]


def test_prices_are_means_over_passes() -> None:
    costs = [(1, {"seconds": 1.0, "record_passes": 10}), (1, {"seconds": 5.0, "record_passes": 20})]
    costs += [(2, {"seconds": 8.0, "record_passes": 4})]
    assert measured(costs) == {1: 0.2, 2: 2.0}
    for bad in ([], [(1, {"seconds": 1.0, "record_passes": 0})]):
        with pytest.raises(LayoutError, match="no node with record passes to measure on"):
            measured(bad)


def test_what_cannot_be_is_refused() -> None:
    for name in ("records", "per_day", "years", "rest"):
        for value in (0, -1, float("inf"), float("nan")):
            with pytest.raises(LayoutError, match=f"{name}={value:g} is not possible: give a number above 0"):
                _setting(**{name: value})
    with pytest.raises(LayoutError, match="stage 3 has no seconds; measure a run of 3 slices"):
        replace(_setting(), seconds={1: 0.0, 2: 0.0})
    with pytest.raises(LayoutError, match="lives=0 is not possible"):
        simulate_lives(_setting(), NEVER, lives=0, seed=0)
