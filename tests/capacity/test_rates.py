"""Deletion rates: closed forms, integrals, fractions and an exact Markov chain must tell the same story."""

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
    deletion_rate,
    deletion_rate_exact,
    deletion_rate_from,
    deletion_rate_once,
    deviation_to_dead,
    harmonic,
    requests_to_dead,
    requests_to_dead_exact,
)
from s3t.errors import LayoutError
from s3t.orders import cyclic

CELLS = [(m, slices, b) for m in (1, 2, 5, 10) for slices in range(1, 7) for b in range(1, slices + 1)]
Chain = Callable[..., Fraction]
SKEWS = [
    (1, 2, 3, 4, 5, 6),
    (1, 1, 1, 1, 1, 95),
    (1, 10, 100, 1000, 10_000, 100_000),
    (1, 10**6, 10**3, 10**9, 1, 10**12),
]
ORDER_SETS = [[(0, 1, 2)], [(0, 1, 2), (0, 2, 1)], [(2, 0, 1), (1, 0, 2)], cyclic(3, 3), cyclic(3, 6)]


def test_harmonic_numbers() -> None:
    assert [harmonic(n) for n in range(5)] == pytest.approx([0, 1, 1.5, 11 / 6, 25 / 12])
    for n in (100_000, 100_001, 10**9):
        assert harmonic(n) == pytest.approx(math.log(n) + 0.5772156649015329 + 1 / (2 * n), rel=1e-11)


def test_published_setting() -> None:
    values = [round(deletion_rate(5, 6, budget), 2) for budget in range(1, 7)]
    assert values == [68.50, 87.87, 99.55, 107.93, 114.48, 119.85]
    assert deletion_rate(5, 6, 7) == deletion_rate(5, 6, 720) == deletion_rate(5, 6, 6)


@pytest.mark.parametrize(("shards", "slices"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 2), (8, 1)])
def test_closed_forms_equal_the_exact_markov_chain(shards: int, slices: int, exact_capacity: Chain) -> None:
    uniform = [Fraction(1, shards * slices)] * (shards * slices)
    for budget in range(1, math.factorial(slices) + 1):
        for dead in range(1, shards + 1):
            exact = exact_capacity(shards, cyclic(slices, budget), uniform, dead)
            assert deletion_rate_exact(shards, slices, budget, shards_dead=dead) == exact
        assert deletion_rate(shards, slices, budget) == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize(("shards", "slices", "records"), [(1, 1, 3), (1, 3, 2), (2, 2, 2), (3, 2, 1), (3, 1, 3)])
def test_closed_forms_without_replacement_equal_all_histories(
    shards: int, slices: int, records: int, played: Any
) -> None:
    for budget in range(1, slices + 1):
        play = played([[Fraction(records)] * slices] * shards, cyclic(slices, budget), False)
        for dead in range(1, shards + 1):
            histories = itertools.islice(play.after(), shards * slices * records + 1)
            exact = sum(c for states in histories for hits, c in states.items() if play.dead(hits) < dead)
            assert deletion_rate_exact(shards, slices, budget, shards_dead=dead, records=records) == exact
        assert deletion_rate_once(shards, slices, budget, records) == pytest.approx(float(exact), rel=1e-14)


def test_the_rank_is_what_all_permutations_of_the_records_say() -> None:
    """Six records in two shards of two slices, every one of the 720 sequences of requests."""
    slot = [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1)]
    for orders in (cyclic(2, 1), cyclic(2, 2)):
        for dead in (1, 2):
            ranks = 0
            for requests in itertools.permutations(slot):
                hit: set[tuple[int, int]] = set()
                for rank, one in enumerate(requests, 1):
                    hit.add(one)
                    if sum(all((s, order[0]) in hit for order in orders) for s in (0, 1)) >= dead:
                        ranks += rank
                        break
            exact = Fraction(ranks, math.factorial(6))
            weights = [[2, 1], [1, 2]]
            assert requests_to_dead_exact(weights, orders, dead, replacement=False) == exact
            assert requests_to_dead(Demand.once(weights), orders, dead) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("shards", "slices", "budget"), CELLS)
def test_integrals_agree_with_closed_forms(shards: int, slices: int, budget: int) -> None:
    first_slices = [1 / (shards * slices)] * (shards * budget)
    assert deletion_rate_from(first_slices) == pytest.approx(deletion_rate(shards, slices, budget), rel=1e-12)
    orders = cyclic(slices, budget)
    once = Demand.once(np.full((shards, slices), 7))
    for dead in {1, (shards + 1) // 2, shards}:
        exact = deletion_rate_exact(shards, slices, budget, shards_dead=dead)
        assert requests_to_dead(Demand.uniform(shards, slices), orders, dead) == pytest.approx(float(exact), rel=1e-12)
        exact = deletion_rate_exact(shards, slices, budget, shards_dead=dead, records=7)
        assert requests_to_dead(once, orders, dead) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("weights", SKEWS)
@pytest.mark.parametrize("orders", ORDER_SETS)
def test_integrals_equal_the_exact_markov_chain_for_skewed_requests(
    weights: tuple[int, ...], orders: list[tuple[int, ...]], exact_capacity: Chain
) -> None:
    probabilities = [Fraction(weight, sum(weights)) for weight in weights]
    rows = [probabilities[:3], probabilities[3:]]
    for dead in (1, 2):
        exact = exact_capacity(2, orders, probabilities, dead)
        assert requests_to_dead_exact(rows, orders, dead) == exact
        assert requests_to_dead(Demand.of(np.array(rows, dtype=float)), orders, dead) == pytest.approx(
            float(exact), rel=1e-12
        )
    first = [float(row[f]) for row in rows for f in {order[0] for order in orders}]
    assert deletion_rate_from(first) == pytest.approx(float(exact), rel=1e-12)


@given(
    st.lists(st.lists(st.integers(1, 10**6), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from(ORDER_SETS),
    st.booleans(),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_integrals_equal_fractions_for_any_demand(
    counts: list[list[int]], orders: list[tuple[int, ...]], replacement: bool, elsewhere: int
) -> None:
    total = sum(map(sum, counts)) + elsewhere
    exact = [[Fraction(n, total) for n in row] for row in counts] if replacement else counts
    demand = Demand.of(np.array(counts) / total) if replacement else Demand.once(counts)
    values = []
    for dead in range(1, len(counts) + 1):
        values.append(requests_to_dead(demand, orders, dead))
        expected = requests_to_dead_exact(exact, orders, dead, replacement=replacement)
        assert values[-1] == pytest.approx(float(expected), rel=1e-11)
    assert values == sorted(values), "the k-th shard does not die before the one before it"
    fewer = orders[:-1] or orders
    assert requests_to_dead(demand, fewer) <= values[-1] * (1 + 1e-12), "more orders never die sooner"


def test_poisson_binomial_of_many_unequal_shards_is_a_binomial_where_they_are_nearly_equal() -> None:
    """600 shards, whose slots differ by 1e-9: Fourier products against the incomplete beta function."""
    shards, slices = 600, 3
    equal = np.full((shards, slices), 1.0 / (shards * slices))
    nearly = equal * (1 + 1e-9 * np.linspace(-1, 1, shards)[:, None])
    for dead in (2, 300, 599):
        exact = requests_to_dead(Demand.of(equal), cyclic(3, 2), dead)
        assert requests_to_dead(Demand.of(nearly), cyclic(3, 2), dead) == pytest.approx(exact, rel=1e-8)


def test_ten_thousand_shards() -> None:
    demand = Demand.uniform(10_000, 6)
    assert requests_to_dead(demand, cyclic(6, 3)) == pytest.approx(deletion_rate(10_000, 6, 3), rel=1e-12)
    first, half = (requests_to_dead(demand, cyclic(6, 3), dead) for dead in (1, 5_000))
    assert 1 < first < half < deletion_rate(10_000, 6, 3)
    once = Demand.once(np.full((10_000, 6), 17_000))
    expected = deletion_rate_once(10_000, 6, 3, 17_000)
    assert requests_to_dead(once, cyclic(6, 3)) == pytest.approx(expected, rel=1e-12)


def test_without_replacement_tends_to_with_replacement() -> None:
    limit = deletion_rate(3, 4, 2)
    gaps = [limit - deletion_rate_once(3, 4, 2, records) for records in (10, 100, 1000, 10_000)]
    assert all(gap > 0 for gap in gaps), "a slot that is hit has fewer records left, so fresh ones are hit sooner"
    assert gaps[-1] < 1e-3 * limit
    assert [a / b for a, b in itertools.pairwise(gaps)] == pytest.approx([10, 10, 10], rel=0.2)
    assert deletion_rate_once(3, 4, 2, 10**12) == pytest.approx(limit, rel=1e-10)


def test_all_orders_bear_no_more_than_one_per_slice() -> None:
    demand = Demand.of([[0.1, 0.2, 0.05], [0.3, 0.05, 0.1]])
    assert requests_to_dead(demand, cyclic(3, 6)) == requests_to_dead(demand, cyclic(3, 3))


def test_slots_that_are_never_hit_keep_their_shard() -> None:
    assert deletion_rate_from([0.5, 0.0]) == math.inf
    assert deletion_rate_from(0.25) == pytest.approx(4.0)
    for demand in (Demand.of([[0.0, 0.5], [0.25, 0.25]]), Demand.once([[0, 5], [3, 3]])):
        assert requests_to_dead(demand, [(0, 1)]) == math.inf
        assert math.isnan(deviation_to_dead(demand, [(0, 1)]))
        assert math.isfinite(requests_to_dead(demand, [(0, 1)], 1))
        assert math.isfinite(requests_to_dead(demand, [(1, 0)]))
    assert requests_to_dead(Demand.of([[0.0, 0.5], [0.25, 0.25]]), [(0, 1)], 1) == pytest.approx(4.0)
    assert requests_to_dead(Demand.once([[0, 5], [3, 3]]), [(0, 1)], 1) == pytest.approx(12 / 4)
    assert deletion_rate_once(2, 2, 1, 0) == math.inf
    assert requests_to_dead_exact([[0, 5], [3, 3]], [(0, 1)], replacement=False) == math.inf


@pytest.mark.parametrize("replacement", [True, False])
def test_deviation_equals_all_histories(replacement: bool, played: Any) -> None:
    counts = [[2, 1], [1, 2]]
    weights = [[Fraction(n, 6 if replacement else 1) for n in row] for row in counts]
    demand = Demand.of(np.array(weights, dtype=float)) if replacement else Demand.once(counts)
    for dead in (1, 2):
        play = played(weights, cyclic(2, 2), replacement)
        mean = square = 0.0  # E[R] = sum of P(R > r), E[R^2] = sum of (2r + 1) P(R > r)
        for r, states in enumerate(itertools.islice(play.after(), 250 if replacement else 7)):
            alive = float(sum(c for hits, c in states.items() if play.dead(hits) < dead))
            mean, square = mean + alive, square + (2 * r + 1) * alive
        assert deviation_to_dead(demand, cyclic(2, 2), dead) == pytest.approx(math.sqrt(square - mean**2), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: harmonic(-1), r"harmonic number of -1"),
        (lambda: deletion_rate(0, 4, 1), r"shards=0 is not possible"),
        (lambda: deletion_rate(5, 3, 7), r"budget=7 exceeds the 6 orders"),
        (lambda: deletion_rate_once(5, 3, 2, -1), r"records=-1 is not possible"),
        (lambda: deletion_rate_exact(5, 3, 2, shards_dead=6), r"shards_dead=6 is not possible: give 1\.\.5"),
        (lambda: deletion_rate_exact(5, 3, 2, records=0), r"records=0 is not possible here"),
        (lambda: deletion_rate_from([]), r"no probabilities given"),
        (lambda: deletion_rate_from([0.2, -0.1]), r"probability -0\.1 is out of range: give 0 to 1"),
        (lambda: deletion_rate_from([0.2, math.nan]), r"probability nan is out of range"),
        (lambda: deletion_rate_from([0.7, 0.7]), r"probabilities sum to 1\.4: they may sum to 1 at most"),
        (lambda: requests_to_dead(Demand.uniform(2, 2), []), r"no orders given"),
        (lambda: requests_to_dead(Demand.uniform(2, 2), [(0, 2)]), r"order \(0, 2\) is not a permutation"),
        (lambda: requests_to_dead(Demand.uniform(2, 2), [(0, 1, 2)]), r"not a permutation of the slices 0\.\.1"),
        (lambda: requests_to_dead(Demand.uniform(2, 2), [(0, 1)], 0), r"shards_dead=0 is not possible: give 1\.\.2"),
        (lambda: deviation_to_dead(Demand.uniform(2, 2), [(0, 1)], 3), r"shards_dead=3 is not possible: give 1\.\.2"),
        (lambda: requests_to_dead_exact([[Fraction(1)]] * 17, [(0,)]), r"sum to 1 at most"),
        (lambda: requests_to_dead_exact([[1]] * 17, [(0,)], replacement=False), r"17 slots are too many"),
        (lambda: requests_to_dead_exact([[1, 1], [1]], [(0, 1)], replacement=False), r"as many slices in every shard"),
        (lambda: requests_to_dead_exact([[Fraction(1, 2)]], [(0,)], replacement=False), r"whole numbers of records"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
