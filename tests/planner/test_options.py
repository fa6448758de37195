"""Options, the Pareto set and the pick: against brute force, at the limits, and with what cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baselines.methods import find
from s3t.backbone import Backbone
from s3t.capacity import deletion_rate, requests_to_dead
from s3t.capacity.demand import Demand
from s3t.cli import app
from s3t.contract import Cost
from s3t.errors import DataError, LayoutError
from s3t.orders import cyclic
from s3t.planner import price as prices
from s3t.planner.curve import Curve, read_curve
from s3t.planner.options import Needs, Option, misses, options, pareto, pick
from s3t.planner.price import Price
from s3t.records import Dataset, Recipe, Record

PRICE = Price("tiny", 6, 1e-6, 1000.0, 2000.0, 9e5)
RIVALS = {name: find(name) for name in ("sisa-lora", "retrain-lora")}
NEEDS = Needs(records=6000, per_day=1.0, recipe=Recipe(epochs=1.0), most_shards=6)


@pytest.fixture(scope="module")
def found() -> list[Option]:
    return list(options(NEEDS, PRICE, RIVALS))


def test_every_layout_that_fits_is_an_option(found: list[Option]) -> None:
    assert {o.shards for o in found} == {1, 2, 3, 4, 5, 6} and {o.slices for o in found} == set(range(1, 7))
    assert all(o.records_per_shard / o.slices >= NEEDS.per_slice for o in found)
    assert all(len(set(o.orders)) == o.budget == len(o.orders) for o in found)
    assert len({o.name for o in found}) == len(found)
    few = list(options(dataclasses.replace(NEEDS, records=100, per_slice=30), PRICE, RIVALS))
    assert {(o.shards, o.slices) for o in few} == {(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)}


def test_an_option_says_what_theory_says(found: list[Option]) -> None:
    one = next(o for o in found if (o.shards, o.slices, o.budget) == (4, 3, 3))
    demand = Demand.once([[500] * 3] * 4)
    orders = cyclic(3, 3)
    assert [one.first, one.half, one.last] == [requests_to_dead(demand, orders, k) for k in (1, 2, 4)]
    assert one.last == pytest.approx(deletion_rate(4, 3, 3), rel=0.02), "few of many records: nearly with replacement"
    assert one.rebuilds_per_year == pytest.approx(365.25 / one.first)
    assert 0.3 < one.share < 1
    assert one.rivals["retrain-lora"] == pytest.approx(6000 * 12 * PRICE.seconds_per_layer_pass)
    assert one.rivals["sisa-lora"] < one.per_deletion < one.rivals["retrain-lora"], (
        "three orders are rebuilt, off the path"
    )


def test_one_slice_and_one_shard_is_dead_at_once(found: list[Option]) -> None:
    one = next(o for o in found if (o.shards, o.slices) == (1, 1))
    assert (one.first, one.half, one.last, one.share) == pytest.approx((1, 1, 1, 1))


def beaten(one: Option, found: list[Option]) -> bool:
    """Slow and obvious."""

    def goods(o: Option) -> list[float]:
        return [-o.rebuilds_per_year, -o.upfront, -o.bytes, o.records_per_shard * o.share]

    return any(
        all(a >= b for a, b in zip(goods(other), goods(one), strict=True)) and goods(other) != goods(one)
        for other in found
    )


def test_the_pareto_set_is_what_no_other_beats(found: list[Option]) -> None:
    front = pareto(found)
    assert {o.name for o in front} == {o.name for o in found if not beaten(o, found)}
    assert 1 < len(front) < len(found)
    assert pareto(front) == front


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [("rebuilds", 30.0, "rebuilds a year of 30"), ("disk", 60_000.0, "of 6e"), ("hours", 3e-5, "hours of 3e-05")],
)
def test_the_pick_keeps_every_limit(found: list[Option], limit: str, value: float, words: str) -> None:
    needs = dataclasses.replace(NEEDS, **{limit: value})
    best, why = pick(found, needs)
    assert not misses(best, needs) and best.name in why
    assert any(words in miss for o in found for miss in misses(o, needs))
    within = [o for o in found if not misses(o, needs)]
    assert len(within) < len(found)
    good = [o for o in within if o.behind >= 0.9 * max(other.behind for other in within)]

    def yearly(o: Option) -> float:
        return o.upfront + 365.25 * o.per_deletion

    assert (
        best in good
        and yearly(best) == min(yearly(o) for o in good)
        and f"none of the {len(good) - 1} others as good" in why
    )


def test_no_layout_within_the_limits_names_the_nearest(found: list[Option]) -> None:
    with pytest.raises(
        LayoutError, match=r"no layout is within the limits; nearest is .+ rebuilds a year of 1e-06.*more disk"
    ):
        pick(found, dataclasses.replace(NEEDS, rebuilds=1e-6))


def test_a_known_curve_decides() -> None:
    curve = Curve({(2, 2): ((0.0, 0.1), (1.0, 0.9)), (3, 2): ((0.0, 0.2), (1.0, 0.95))})
    found = list(options(NEEDS, PRICE, RIVALS, curve))
    assert {(o.shards, o.slices) for o in found if o.accuracy is not None} == {(2, 2), (3, 2)}
    best, why = pick(found, NEEDS)
    assert (best.shards, best.slices) == (
        3,
        2,
    ) and f"of {sum(o.accuracy is not None for o in found)} layouts with a known curve" in why
    assert best.accuracy == pytest.approx(0.2 + 0.75 * best.share)
    assert best.accuracy >= max(o.accuracy for o in found if o.accuracy is not None) - 0.005
    assert curve.at(2, 2, 1.1) is None and curve.at(9, 9, 0.5) is None


def test_a_prior_brings_orders_by_matching() -> None:
    needs = dataclasses.replace(NEEDS, prior=(0.7, 0.2, 0.1), most_shards=2)
    found = list(options(needs, PRICE, RIVALS))
    assert {o.rule for o in found} == {"cyclic", "matching"} and {o.slices for o in found} == {3}
    one = {o.rule: o for o in found if o.shards == 2 and o.budget == 1}
    assert one["matching"].orders[0][-1] == 0, "what is asked for most is trained last"
    assert one["matching"].first > one["cyclic"].first


@pytest.mark.parametrize("field", ["records", "per_day", "disk", "rebuilds", "hours", "per_slice", "most_shards"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_impossible_needs(field: str, value: float) -> None:
    with pytest.raises(LayoutError, match=f"{field}={value:g} is not possible: give a number above 0"):
        dataclasses.replace(NEEDS, **{field: value})


def test_an_unknown_trigger() -> None:
    with pytest.raises(LayoutError, match="rebuild_at='never' is unknown: give one of first, half, last"):
        dataclasses.replace(NEEDS, rebuild_at="never")


# ---- prices ----


def test_a_price_is_measured_on_the_model(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tuple(Record(f"r{i}", {"text": f"cat {i}"}, i % 2) for i in range(70))
    data = Dataset("mine", ("a", "b"), records, (), ())
    costs: list[Cost] = []
    fitted = prices._fitted
    monkeypatch.setattr(prices, "_fitted", lambda *given: (costs.append(fitted(*given)), costs[-1])[1])
    price = prices.measure("tiny", data, Recipe(rank=2))
    assert (price.model, price.layers) == ("tiny", 6)
    assert [cost.nodes for cost in costs] == [1, 1, 2]
    timed = costs[1] + costs[2]
    assert price.seconds_per_layer_pass == timed.seconds / timed.layer_passes
    assert price.bytes_per_layer == pytest.approx(2 * 2 * 2 * 32 * 4 + 600, rel=0.2), (
        "A, B of query, value; their names"
    )
    assert price.bytes_per_node + 6 * price.bytes_per_layer == pytest.approx(costs[1].bytes)
    assert price.bytes_per_model == sum(p.numel() * 4 for p in tiny.model.parameters())
    with pytest.raises(DataError, match="70 training records are too few to measure on; give at least 71"):
        prices.measure("tiny", data, Recipe(), records=71)


def test_a_price_is_written_and_read(tmp_path: Path) -> None:
    prices.write(PRICE, tmp_path / "price.json")
    assert prices.read(tmp_path / "price.json") == PRICE
    for raw in ("", "[]", "{}", '{"model": "x"}', json.dumps(dataclasses.asdict(PRICE) | {"layers": -1})):
        (tmp_path / "bad.json").write_text(raw)
        with pytest.raises(DataError, match="is no price of work"):
            prices.read(tmp_path / "bad.json")
    with pytest.raises(DataError, match="is no price of work"):
        prices.read(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shards,slices,share\n", "has columns .* not shards, slices, share, accuracy"),
        ("shards,slices,share,accuracy\n", "has no points"),
        ("shards,slices,share,accuracy\n4,3,x,0.5\n", "line 2: could not convert"),
        ("shards,slices,share,accuracy\n4,3,0.5,0.5\n4,3,1.5,0.5\n", "line 3: a share and an accuracy lie within 0..1"),
        ("shards,slices,share,accuracy\n4,3\n", "line 2"),
    ],
)
def test_a_curve_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_curve(tmp_path / "curve.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_curve(tmp_path / "missing.csv")


# ---- the command ----


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Any]:
    prices.write(PRICE, tmp_path / "price.json")

    def call(*more: str) -> Any:
        given = ["plan", "--records", "6000", "--requests-per-day", "2", "--price", str(tmp_path / "price.json"), *more]
        return CliRunner().invoke(app, given)

    return call


def test_the_command_prints_the_front_and_one_sentence(plan: Callable[..., Any]) -> None:
    done = plan("--max-shards", "4", "--max-rebuilds-per-year", "40")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n* ") == 1 and "layouts that no other beats" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("Take ")


def test_the_command_as_json_with_a_figure_and_a_curve(plan: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("shards,slices,share,accuracy\n2,2,0,0.1\n2,2,1,0.9\n")
    figure = tmp_path / "front.png"
    done = plan("--max-shards", "4", "--json", "--figure", str(figure), "--curve", str(tmp_path / "curve.csv"))
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["pick"]["shards"] == 2
    assert told["pick"]["accuracy"] is not None and told["needs"]["disk"] is None
    assert len(told["pareto"]) < told["options"]
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max-rebuilds-per-year", "0.000001"), "no layout is within the limits"),
        (("--max-rebuilds-per-year", "0"), "rebuilds=0 is not possible"),
        (("--min-records-per-slice", "7000"), "6000 records leave no layout with 7000 records per slice"),
        (("--rebuild-at", "never"), "rebuild_at='never' is unknown"),
        (("--figure", "front.txt"), "unknown ending '.txt'"),
        (("--curve", "missing.csv"), "missing.csv cannot be read"),
    ],
)
def test_bad_input_is_one_line(plan: Callable[..., Any], more: tuple[str, ...], message: str) -> None:
    done = plan("--max-shards", "2", *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
