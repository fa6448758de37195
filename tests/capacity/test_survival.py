"""What survives: exact against all sequences of requests and every history."""

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
    best_length_distribution,
    best_length_distribution_exact,
    best_length_distributions,
    expected_best_length,
    expected_best_lengths,
    expected_share,
    expected_surviving_length,
    probability_in_service,
    probability_live,
    subsets,
    survival,
)
from s3t.errors import LayoutError
from s3t.orders import cyclic

ORDER_SETS = [
    [(0, 1, 2)],
    [(0, 1, 2), (0, 2, 1)],
    [(0, 1, 2), (1, 0, 2)],
    [(2, 0, 1), (1, 0, 2), (2, 1, 0)],
    cyclic(3, 3),
    cyclic(3, 6),
]


def test_survival_equals_exhaustive_enumeration() -> None:
    for slices in range(1, 5):
        for requests in range(5):
            histories = list(itertools.product(range(slices), repeat=requests))
            for j in range(slices + 1):
                kept = sum(all(hit >= j for hit in history) for history in histories)
                assert survival(slices, j, requests) == pytest.approx(kept / len(histories))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_expected_surviving_length_equals_exhaustive_enumeration(order: tuple[int, ...]) -> None:
    probabilities = [0.5, 0.2, 0.1]  # the remaining 0.2 falls in other shards: slice 3, which is no slice here
    everywhere = [*probabilities, 0.2]
    for requests in range(5):
        expected = 0.0
        for history in itertools.product(range(4), repeat=requests):
            weight = math.prod(everywhere[hit] for hit in history)
            expected += weight * len(list(itertools.takewhile(set(range(3)).difference(history).__contains__, order)))
        assert expected_surviving_length(order, probabilities, requests) == pytest.approx(expected)
        assert expected_best_length([order], probabilities, requests) == pytest.approx(expected)


@pytest.mark.parametrize("orders", ORDER_SETS)
def test_best_length_equals_all_sequences_of_requests(orders: list[tuple[int, ...]]) -> None:
    weights = [Fraction(n, 12) for n in (5, 1, 4, 2)]  # the last: other shards
    for requests in range(6):
        expected = [Fraction(0)] * 4
        for history in itertools.product(range(4), repeat=requests):
            best = max(len(list(itertools.takewhile(lambda s: s not in history, order))) for order in orders)  # noqa: B023
            expected[best] += math.prod((weights[hit] for hit in history), start=Fraction(1))
        assert best_length_distribution_exact([weights[:3]], orders, requests) == expected
        probabilities = [float(weight) for weight in weights[:3]]
        distribution = best_length_distribution(orders, probabilities, requests)
        assert distribution == pytest.approx([float(x) for x in expected], abs=1e-13)
        length = float(sum(j * x for j, x in enumerate(expected)))
        assert expected_best_length(orders, probabilities, requests) == pytest.approx(length, abs=1e-13)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("orders", ORDER_SETS)
def test_systems_equal_every_history(orders: list[tuple[int, ...]], replacement: bool, played: Any) -> None:
    counts = [[2, 0, 1], [1, 2, 1]]
    weights = [[Fraction(n, 9 if replacement else 1) for n in row] for row in counts]
    demand = Demand.of(np.array(counts) / 9) if replacement else Demand.once(counts)
    play = played(weights, orders, replacement)
    for requests in range(8):
        lengths = best_length_distributions(demand, orders, requests)
        service = probability_in_service(demand, orders, requests)
        for shard in (0, 1):
            exact = [play.expect(requests, lambda h, s=shard, j=j: len(play.served(s, h)) == j) for j in range(4)]
            assert lengths[shard] == pytest.approx([float(x) for x in exact], abs=1e-13)
            assert best_length_distribution_exact(weights, orders, requests, shard, replacement=replacement) == exact
            for one in range(3):
                chance = play.expect(requests, lambda h, s=shard, one=one: one in play.served(s, h))
                assert service[shard, one] == pytest.approx(float(chance), abs=1e-13)
        assert service.sum(axis=1) == pytest.approx(expected_best_lengths(demand, orders, requests), abs=1e-13)
        assert 1 - lengths[:, 0] == pytest.approx(probability_live(demand, orders, requests), abs=1e-12)

        slices = play.expect(requests, lambda h: Fraction(len(play.served(0, h)) + len(play.served(1, h)), 6))
        assert expected_share(demand, orders, requests) == pytest.approx(float(slices), abs=1e-13)
        held = play.expect(requests, lambda h: sum(counts[s][one] for s in (0, 1) for one in play.served(s, h)))
        given_records = {"records": counts} if replacement else {}
        share = expected_share(demand, orders, requests, "records", **given_records)
        assert share == pytest.approx(float(held / 7), abs=1e-13)
        if not replacement:
            share = expected_share(demand, orders, requests, "retained")
            assert share == pytest.approx(float(held / (7 - requests)) if requests < 7 else 1.0, abs=1e-12)


def test_everything_serves_before_the_first_request_and_nothing_after_the_last() -> None:
    demand = Demand.once([[3, 2], [1, 4]])
    for of in ("slices", "records", "retained"):
        assert expected_share(demand, cyclic(2, 2), 0, of) == pytest.approx(1.0)
    assert expected_share(demand, cyclic(2, 2), 10) == pytest.approx(0.0, abs=1e-15)
    assert expected_share(demand, cyclic(2, 2), 10, "records") == pytest.approx(0.0, abs=1e-15)
    assert expected_share(demand, cyclic(2, 2), 10, "retained") == 1.0, (
        "no record is retained, so none is out of service"
    )


@given(
    st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any),
    st.integers(1, 30),
    st.integers(0, 60),
)
@settings(deadline=None, max_examples=60)
def test_more_orders_and_fewer_requests_keep_more(counts: list[int], budget: int, requests: int) -> None:
    probabilities = np.array(counts) / (sum(counts) + 10)
    here, more = (expected_best_length(cyclic(5, b), probabilities, requests) for b in (budget, budget + 1))
    assert here <= more + 1e-12
    assert expected_best_length(cyclic(5, budget), probabilities, requests + 1) <= here + 1e-12
    one = max(expected_surviving_length(order, probabilities, requests) for order in cyclic(5, budget))
    assert one <= here + 1e-12
    assert best_length_distribution(cyclic(5, budget), probabilities, requests).sum() == pytest.approx(1.0)


def test_without_replacement_tends_to_with_replacement() -> None:
    many = Demand.once(np.full((2, 4), 10**9))
    assert expected_best_lengths(many, cyclic(4, 6), 7) == pytest.approx(
        expected_best_lengths(Demand.uniform(2, 4), cyclic(4, 6), 7), rel=1e-7
    )


@pytest.mark.parametrize("budget", [1, 4, 9, 24])
def test_unions_of_prefixes_say_the_same_as_all_subsets(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    orders, probabilities = cyclic(6, budget), np.array([0.3, 0.0, 0.1, 0.1, 0.2, 0.05])
    by_subsets = best_length_distribution(orders, probabilities, 6)
    subsets._best_at_least.cache_clear()
    monkeypatch.setattr(subsets, "SLICES", 5)
    by_unions = best_length_distribution(orders, probabilities, 6)
    subsets._best_at_least.cache_clear()
    assert by_unions == pytest.approx(by_subsets, abs=1e-13)


def test_many_slices() -> None:
    assert expected_best_length(cyclic(16, 16), np.full(16, 1 / 16), 5) == pytest.approx(
        float(sum(j * x for j, x in enumerate(rotations_by_arcs(16, 5)))), abs=1e-10
    )
    long = [tuple(range(40)), tuple(reversed(range(40)))]
    assert expected_best_length(long, np.full(40, 1 / 40), 0) == pytest.approx(40)
    # After one request to slice s the orders keep s and 39 - s slices: the larger is 20..39, each twice.
    assert expected_best_length(long, np.full(40, 1 / 40), 1) == pytest.approx(29.5)


def rotations_by_arcs(slices: int, requests: int) -> list[Fraction]:
    """The longest run of unhit slices on a circle: placements of the hit slices, counted by the sets they leave."""
    counts = [0] * (slices + 1)
    ways = [0] * (slices + 1)  # sequences of requests that hit exactly a given set of k slices
    for k in range(slices + 1):
        ways[k] = sum((-1) ** i * math.comb(k, i) * (k - i) ** requests for i in range(k + 1))
    for k in range(min(slices, requests) + 1):
        for hit in itertools.combinations(range(slices), k):
            gaps = [(hit[(i + 1) % k] - hit[i] - 1) % slices for i in range(k)] if k > 1 else [slices - k]
            counts[max(gaps)] += ways[k]
    return [Fraction(count, slices**requests) for count in counts]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: survival(4, 5, 1), r"j=5 first slices do not fit an order of 4: give 0\.\.4"),
        (lambda: survival(4, 2, -1), r"requests=-1 is not possible"),
        (lambda: expected_surviving_length((0, 0), [0.5, 0.5], 1), r"order \(0, 0\) is not a permutation"),
        (lambda: expected_best_length([], [0.5, 0.5], 1), r"no orders given"),
        (lambda: expected_best_length([(0, 1), (1,)], [0.5, 0.5], 1), r"order \(1,\) is not a permutation"),
        (lambda: expected_best_length([(0, 1)], [0.5, 0.6], 1), r"sum to 1\.1"),
        (lambda: expected_best_length([(0, 1)], [0.5, math.nan], 1), r"probability nan"),
        (lambda: expected_best_length([(0, 1)], [0.5, 0.5], -2), r"requests=-2 is not possible"),
        (lambda: best_length_distributions(Demand.once([[1, 2]]), [(0, 1)], 4), r"exceeds the 3 records"),
        (lambda: best_length_distribution_exact([[1, 2]], [(0, 1)], 4, replacement=False), r"exceeds the 3 records"),
        (lambda: expected_best_length(cyclic(40, 40), np.full(40, 0.02), 1), r"more than 262144 unions"),
        (lambda: probability_in_service(Demand.uniform(1, 17), cyclic(17, 1), 1), r"slices=17 are too many"),
        (lambda: expected_share(Demand.uniform(1, 2), [(0, 1)], 1, "rows"), r"share of 'rows' is unknown"),
        (lambda: expected_share(Demand.uniform(1, 2), [(0, 1)], 1, "retained"), r"needs requests without replacement"),
        (lambda: expected_share(Demand.uniform(1, 2), [(0, 1)], 1, "records"), r"needs their numbers"),
        (
            lambda: expected_share(Demand.uniform(1, 2), [(0, 1)], 1, "records", records=[[1]]),
            r"shape \(1, 1\) do not fit",
        ),
        (lambda: expected_share(Demand.uniform(1, 1), [(0,)], 1, "records", records=[[0]]), r"there are no records"),
        (lambda: expected_share(Demand.once([[1]]), [(0,)], 1, "records", records=[[2]]), r"given twice, and differ"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
