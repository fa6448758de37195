"""Dead shards after so many requests: Cauchy's integral against fractions and every history."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.capacity import (
    Demand,
    expected_live_shards,
    probability_dead,
    probability_dead_exact,
    probability_live,
    requests_to_dead,
    requests_until,
)
from s3t.errors import LayoutError
from s3t.orders import cyclic

SMALL = [
    ([[1, 2], [3, 1]], cyclic(2, 2)),
    ([[1, 2], [3, 1]], cyclic(2, 1)),
    ([[2, 0, 1], [1, 1, 2]], [(0, 1, 2), (2, 1, 0)]),
    ([[0, 2], [2, 3]], cyclic(2, 1)),
    ([[4]], cyclic(1, 1)),
    ([[1], [2], [2]], cyclic(1, 1)),
]


def demand_of(counts: list[list[int]], replacement: bool, elsewhere: int = 0) -> tuple[Demand, list[list[Fraction]]]:
    """Return a demand and its weights as fractions."""
    total = sum(map(sum, counts)) + elsewhere
    weights = [[Fraction(n, total if replacement else 1) for n in row] for row in counts]
    return (Demand.of(np.array(counts) / total) if replacement else Demand.once(counts)), weights


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize(("counts", "orders"), SMALL)
def test_probabilities_equal_every_history(
    counts: list[list[int]], orders: list[tuple[int, ...]], replacement: bool, played: Any
) -> None:
    demand, weights = demand_of(counts, replacement, elsewhere=2)
    play = played(weights, orders, replacement)
    last = 12 if replacement else sum(map(sum, counts))
    for requests, states in enumerate(itertools.islice(play.after(), last + 1)):
        live = Fraction(0)
        for dead in range(1, len(counts) + 1):
            exact = sum((c for hits, c in states.items() if play.dead(hits) >= dead), Fraction(0))
            live += 1 - exact
            assert probability_dead_exact(weights, orders, requests, dead, replacement=replacement) == exact
            assert probability_dead(demand, orders, requests, dead) == pytest.approx(float(exact), rel=1e-10, abs=1e-15)
        assert expected_live_shards(demand, orders, requests) == pytest.approx(float(live), abs=1e-12)
        for shard, chance in enumerate(probability_live(demand, orders, requests)):
            exact = sum((c for hits, c in states.items() if play.served(shard, hits)), Fraction(0))
            assert chance == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize(("counts", "requests"), [((1010, 1, 1), 1), ((9000, 2, 1), 2), ((10**5, 3, 3), 4)])
def test_almost_all_records_in_one_slot(counts: tuple[int, ...], requests: int) -> None:
    """The saddle lies so far out that no first slice is unhit there with a probability that a float can hold."""
    demand, orders = Demand.once([counts]), [(0, 1, 2)]
    missed = Fraction(math.comb(sum(counts[1:]), requests), math.comb(sum(counts), requests))
    assert probability_dead(demand, orders, requests) == pytest.approx(float(1 - missed), abs=1e-12)


@given(
    st.lists(st.lists(st.integers(1, 10**4), min_size=3, max_size=3), min_size=1, max_size=3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 10**4),
    st.integers(0, 3000),
)
@settings(deadline=None, max_examples=60)
def test_probabilities_equal_fractions_for_any_demand(
    counts: list[list[int]], budget: int, replacement: bool, elsewhere: int, requests: int
) -> None:
    demand, weights = demand_of(counts, replacement, elsewhere)
    requests = requests if replacement else min(requests, int(demand.total))
    orders = cyclic(3, budget)
    values = []
    for dead in range(1, len(counts) + 1):
        values.append(probability_dead(demand, orders, requests, dead))
        exact = probability_dead_exact(weights, orders, requests, dead, replacement=replacement)
        assert values[-1] == pytest.approx(float(exact), abs=1e-11)
        assert values[-1] == pytest.approx(float(exact), rel=1e-8, abs=1e-280), "small probabilities are right as well"
    assert all(second <= first + 1e-11 for first, second in itertools.pairwise(values))
    assert sum(values) + expected_live_shards(demand, orders, requests) == pytest.approx(len(counts), abs=1e-10)


@pytest.mark.parametrize("demand", [Demand.uniform(3, 4), Demand.once(np.full((3, 4), 9))], ids=["with", "without"])
@pytest.mark.parametrize("dead", [1, 2, 3])
def test_the_distribution_has_the_mean_of_the_integral(demand: Demand, dead: int) -> None:
    orders = cyclic(4, 3)
    mean = 0.0
    for requests in itertools.count():
        if not demand.replacement and requests > demand.total:
            break
        alive = 1.0 - probability_dead(demand, orders, requests, dead)
        mean += alive
        if alive < 1e-13:
            break
    assert mean == pytest.approx(requests_to_dead(demand, orders, dead), rel=1e-10)


def test_many_requests_to_many_shards() -> None:
    """1,000 equal shards with one first slice each, at the median of coupon collecting: Gumbel's limit."""
    shards = 1000
    requests = int(shards * (math.log(shards) - math.log(math.log(2))))
    for demand in (Demand.uniform(shards, 1), Demand.once(np.full((shards, 1), 10**9))):
        assert probability_dead(demand, [(0,)], requests) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("digits", [3, 6, 9, 12, 15])
def test_as_many_requests_as_you_like(digits: int) -> None:
    """One slot, requested once in 10^digits requests; and one of 5 records among 10^digits."""
    seldom, requests = Demand.of([[10.0**-digits]]), 10**digits
    expected = -math.expm1(requests * math.log1p(-(10.0**-digits)))
    assert probability_dead(seldom, [(0,)], requests) == pytest.approx(expected, abs=1e-13)
    few, draws = Demand.once([[5, 10**digits]]), 10**digits // 7
    assert probability_dead(few, [(0, 1)], draws) == pytest.approx(1.0 - float(few.unhit(5, draws)), abs=1e-10)


def test_many_unequal_shards_are_counted_as_equal_ones_where_they_nearly_are() -> None:
    """300 shards whose slots differ by 1e-9: Fourier products at complex times against binomial sums."""
    equal = np.full((300, 2), 1 / 600)
    nearly = equal * (1 + 1e-9 * np.linspace(-1, 1, 300)[:, None])
    for dead, requests in ((2, 20), (75, 300), (150, 400), (150, 700), (299, 2500)):
        expected = probability_dead(Demand.of(equal), cyclic(2, 2), requests, dead)
        assert probability_dead(Demand.of(nearly), cyclic(2, 2), requests, dead) == pytest.approx(expected, abs=1e-8)


def test_records_that_fill_one_slot() -> None:
    """Half of 183 records requested, 181 of them in one slot: powers of 180 at points near zero on the circle."""
    weights = [[1, 1, 181]]
    for requests in (3, 93, 181, 182):
        for budget in (2, 3):
            exact = probability_dead_exact(weights, cyclic(3, budget), requests, replacement=False)
            found = probability_dead(Demand.once(weights), cyclic(3, budget), requests)
            assert found == pytest.approx(float(exact), rel=1e-10)
            assert probability_live(Demand.once(weights), cyclic(3, budget), requests) == pytest.approx(
                1 - float(exact)
            )


def test_never_and_for_certain() -> None:
    demand = Demand.once([[0, 4], [2, 2]])
    assert [probability_dead(demand, [(0, 1)], r) for r in (0, 8)] == [0, 0]
    assert probability_dead(demand, [(0, 1)], 8, 1) == 1.0
    assert probability_live(demand, [(0, 1)], 8).tolist() == [1.0, 0.0]
    assert requests_until(demand, [(0, 1)], 0.5) == math.inf
    one = Demand.of([[1.0]])
    assert [probability_dead(one, [(0,)], r) for r in (0, 1, 50)] == pytest.approx([0, 1, 1])


@pytest.mark.parametrize("demand", [Demand.uniform(3, 2), Demand.once([[4, 3], [2, 2], [5, 1]])])
def test_quantiles_are_where_the_distribution_crosses(demand: Demand) -> None:
    for probability, dead in itertools.product((0.05, 0.5, 0.999), (1, 3)):
        at = int(requests_until(demand, cyclic(2, 2), probability, dead))
        assert probability_dead(demand, cyclic(2, 2), at, dead) >= probability
        assert probability_dead(demand, cyclic(2, 2), at - 1, dead) < probability


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probability_dead(Demand.uniform(2, 2), cyclic(2, 1), -1), r"requests=-1 is not possible"),
        (lambda: probability_dead(Demand.uniform(2, 2), cyclic(2, 1), 1.5), r"requests=1\.5 is not possible"),
        (lambda: probability_dead(Demand.once([[1, 2]]), cyclic(2, 1), 4), r"exceeds the 3 records"),
        (lambda: probability_dead(Demand.uniform(2, 2), cyclic(2, 1), 4, 3), r"shards_dead=3 is not possible"),
        (lambda: probability_live(Demand.uniform(2, 2), [], 4), r"no orders given"),
        (lambda: probability_live(Demand.once([[1, 2]]), cyclic(2, 1), 4), r"exceeds the 3 records"),
        (lambda: requests_until(Demand.uniform(2, 2), cyclic(2, 1), 1.0), r"probability=1\.0 is not possible"),
        (lambda: probability_dead_exact([[1, 2]], cyclic(2, 1), 4, replacement=False), r"exceeds the 3 records"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
