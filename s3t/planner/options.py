"""Layouts weighed against each other: what each costs and bears, which are not beaten by another, and which one to take.

An option is a number of shards and slices, and a rule and budget of orders. S3T serves what survives and is rebuilt when the
first shard, half of them or the last one is dead (``Needs.rebuild_at``); then all that is missing is trained at once.
Capacity is exact (:mod:`s3t.capacity`), each record being requested at most once; work is counted (:mod:`s3t.planner.work`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from s3t.capacity.demand import Demand
from s3t.capacity.rates import requests_to_dead
from s3t.capacity.survival import expected_share
from s3t.errors import LayoutError
from s3t.orders import cyclic, matching
from s3t.plan import MakePlan, s3t_plan
from s3t.planner.curve import Curve
from s3t.planner.price import Price
from s3t.planner.work import after_requests, upfront
from s3t.records import Layout, Order, Recipe

Trigger = Literal["first", "half", "last"]
YEAR = 365.25
"""Days."""
HALF_A_POINT, A_TENTH = 0.005, 0.1
"""Differences that do not decide: of accuracy, and of the records behind a served model."""


@dataclass(frozen=True)
class Needs:
    """What the service is to bear: ``records`` trained on, ``per_day`` deletion requests, each for one record.

    ``disk``: bytes for trained nodes; ``rebuilds``: at most so many a year; ``hours``: of training up front.
    ``per_slice``: fewest records of a slice. ``prior``: request probability of each slice of a shard, by slice; then only
    that many slices, and orders by matching as well. Raises LayoutError for an amount that cannot be.
    """

    records: int
    per_day: float
    recipe: Recipe
    disk: float = math.inf
    rebuilds: float = math.inf
    hours: float = math.inf
    per_slice: int = 20
    most_shards: int = 32
    rebuild_at: Trigger = "first"
    prior: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("records", "per_day", "disk", "rebuilds", "hours", "per_slice", "most_shards"):
            value = getattr(self, name)
            if not value > 0:
                raise LayoutError(f"{name}={value:g} is not possible: give a number above 0")
        if self.rebuild_at not in get_args(Trigger):
            raise LayoutError(f"rebuild_at={self.rebuild_at!r} is unknown: give one of {', '.join(get_args(Trigger))}")


@dataclass(frozen=True)
class Option:
    """One layout with all that a decision needs. Requests are expected numbers; ``share``: of the slices in service half way
    to the rebuild, ``accuracy``: expected there, where a curve is known. Seconds are of one machine, node after node.

    ``per_deletion``: seconds of training per deletion, rebuilds spread over the requests they serve; ``rivals``: the same for
    methods that train again at each deletion, in this layout, by name.
    """

    shards: int
    slices: int
    budget: int
    rule: str
    orders: tuple[Order, ...]
    first: float
    half: float
    last: float
    rebuilds_per_year: float
    upfront: float
    bytes: float
    records_per_shard: float
    share: float
    accuracy: float | None
    per_deletion: float
    rivals: Mapping[str, float]

    @property
    def behind(self) -> float:
        """Expected records behind the model of a shard, half way to the rebuild: what there is to learn from."""
        return self.records_per_shard * self.share

    @property
    def name(self) -> str:
        """Such as ``4 x 3 x 3 cyclic``: shards, slices, budget, rule."""
        return f"{self.shards} x {self.slices} x {self.budget} {self.rule}"


def options(needs: Needs, price: Price, rivals: Mapping[str, MakePlan], curve: Curve | None = None) -> Iterator[Option]:
    """Yield every option that the records and the model's layers allow; no limit of ``needs`` is applied yet.

    ``rivals``: the plans of the methods to compare with, of one order, by name.
    """
    for shards, slices in _layouts(needs, price.layers):
        demand = _demand(needs, shards, slices)
        for rule, orders in _orders(needs, slices):
            yield _option(needs, price, rivals, curve, demand, rule, orders)


def pareto(found: Sequence[Option]) -> list[Option]:
    """Return the options that no other one beats: none is as good in everything and better in something.

    Fewer rebuilds, less training up front, fewer bytes, and more accuracy if all curves are known, else more records behind
    a served model half way to the rebuild. Sorted by training up front.
    """
    known = all(option.accuracy is not None for option in found)
    goods = np.array([_goods(option, known) for option in found])
    kept = [
        option
        for option, good in zip(found, goods, strict=True)
        if not ((goods >= good).all(axis=1) & (goods > good).any(axis=1)).any()
    ]
    return sorted(kept, key=lambda option: (option.upfront, option.bytes, option.name))


def _goods(option: Option, known: bool) -> tuple[float, ...]:
    quality = option.accuracy if known and option.accuracy is not None else option.behind
    return (-option.rebuilds_per_year, -option.upfront, -option.bytes, quality)


def misses(option: Option, needs: Needs) -> list[str]:
    """Return each limit of ``needs`` that ``option`` breaks, as words."""
    return [words.format(value, limit) for value, limit, words in _limits(option, needs) if value > limit]


def _limits(option: Option, needs: Needs) -> tuple[tuple[float, float, str], ...]:
    return (
        (option.bytes, needs.disk, "takes {:.3g} bytes of {:.3g}"),
        (option.rebuilds_per_year, needs.rebuilds, "needs {:.3g} rebuilds a year of {:.3g}"),
        (option.upfront / 3600, needs.hours, "trains {:.3g} hours of {:.3g}"),
    )


def pick(found: Sequence[Option], needs: Needs) -> tuple[Option, str]:
    """Return the option to take and one sentence why.

    Of those within the limits: those within HALF_A_POINT of the best accuracy where curves are known, else within A_TENTH
    of the most records behind a served model half way to the rebuild; of these the one with the least training in a year,
    rebuilds included. LayoutError if none is within the limits.
    """
    within = [option for option in found if not misses(option, needs)]
    if not within:
        near = min(found, key=lambda option: max(v / limit for v, limit, _ in _limits(option, needs)), default=None)
        why = f"; nearest is {near.name}, which " + " and ".join(misses(near, needs)) if near else ""
        raise LayoutError(
            f"no layout is within the limits{why}; give more disk, hours or rebuilds, or --rebuild-at last"
        )
    known = [option for option in within if option.accuracy is not None]
    if known:
        top = max(option.accuracy or 0.0 for option in known)
        good = [option for option in known if (option.accuracy or 0.0) >= top - HALF_A_POINT]
        reason = f"of {len(known)} layouts with a known curve none is expected to be more accurate by over half a point"
    else:
        most = max(option.behind for option in within)
        good = [option for option in within if option.behind >= (1 - A_TENTH) * most]
        reason = f"of {len(within)} layouts none keeps over a tenth more records behind a served model"
    chosen = min(good, key=lambda option: (_yearly(option, needs), option.bytes, option.name))
    bears = _trigger(chosen, needs)
    sentence = (
        f"Take {chosen.name}: within the limits, {reason}, and none of the {len(good) - 1} others as good trains less in a "
        f"year; it bears {bears:,.0f} requests ({bears / needs.per_day:,.1f} days) until its {needs.rebuild_at} dead shard."
    )
    return chosen, sentence


def _yearly(option: Option, needs: Needs) -> float:
    return option.upfront + option.per_deletion * needs.per_day * YEAR


def _trigger(option: Option, needs: Needs) -> float:
    return {"first": option.first, "half": option.half, "last": option.last}[needs.rebuild_at]


def _layouts(needs: Needs, layers: int) -> Iterator[tuple[int, int]]:
    slices = [len(needs.prior)] if needs.prior else range(1, min(layers, 8) + 1)
    for pieces in slices:
        for shards in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128):
            if shards <= needs.most_shards and needs.records / (shards * pieces) >= needs.per_slice:
                yield shards, pieces


def _orders(needs: Needs, slices: int) -> Iterator[tuple[str, list[Order]]]:
    for budget in range(1, min(slices, 8) + 1):
        yield "cyclic", cyclic(slices, budget)
        if needs.prior:
            yield "matching", matching(needs.prior, score="expected_length", budget=budget)
    if slices > 2:
        yield "cyclic", cyclic(slices, 2 * slices)


def _demand(needs: Needs, shards: int, slices: int) -> Demand:
    """Each record is requested at most once; with a prior, requests fall by it, with replacement."""
    if needs.prior:
        return Demand.of(np.tile(np.array(needs.prior) / sum(needs.prior) / shards, (shards, 1)))
    return Demand.once(_equal(needs.records, shards, slices))


def _equal(records: int, shards: int, slices: int) -> NDArray[np.int64]:
    counts = np.full(shards * slices, records // (shards * slices))
    counts[: records % (shards * slices)] += 1
    return counts.reshape(shards, slices)


def _option(
    needs: Needs,
    price: Price,
    rivals: Mapping[str, MakePlan],
    curve: Curve | None,
    demand: Demand,
    rule: str,
    orders: Sequence[Order],
) -> Option:
    shards, slices, budget = demand.shards, demand.slices, len(orders)
    plan = replace(s3t_plan(Layout(shards, slices, budget), needs.recipe, price.layers), orders=tuple(orders))
    first, half, last = (requests_to_dead(demand, orders, k) for k in (1, (shards + 1) // 2, shards))
    until = {"first": first, "half": half, "last": last}[needs.rebuild_at]
    work = upfront(plan, needs.records, price.layers)
    share = expected_share(demand, orders, round(until / 2))
    rebuild = after_requests(plan, demand, until, needs.records, price.layers)

    def eager(make: MakePlan) -> float:
        other = make(Layout(shards, slices, 1), needs.recipe, price.layers)
        whole = Demand.uniform(other.layout.shards, other.layout.slices)
        return price.seconds(after_requests(other, whole, 1, needs.records, price.layers))

    return Option(
        shards,
        slices,
        budget,
        rule,
        tuple(orders),
        first,
        half,
        last,
        needs.per_day * YEAR / until,
        price.seconds(work),
        price.bytes(work),
        needs.records / shards,
        share,
        curve.at(shards, slices, share) if curve else None,
        price.seconds(rebuild) / until,
        {name: eager(make) for name, make in rivals.items()},
    )
