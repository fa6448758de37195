"""Matching: always a Latin square, the best assignment at each position, prefixes of larger budgets, ties, extremes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import LayoutError
from s3t.orders import conditional, cyclic, expected_best, matching
from s3t.orders.assignment import assigned, square
from s3t.orders.checks import prior_of
from s3t.orders.value import SCORES, Unhit

Order = tuple[int, ...]


def is_latin(rows: list[Order], slices: int) -> bool:
    everything = list(range(slices))
    return len(rows) == slices and all(sorted(line) == everything for line in [*rows, *zip(*rows, strict=True)])


def priors(most: int = 12) -> st.SearchStrategy[list[float]]:
    weight = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, allow_subnormal=False))
    drawn = st.lists(weight, min_size=1, max_size=most)
    return st.tuples(drawn, st.floats(1.0, 4.0)).map(lambda x: [w / max(sum(x[0]) * x[1], 1.0) for w in x[0]])


@settings(max_examples=120, deadline=None)
@given(priors(), st.sampled_from([0, 1, 5, 100, 10_000, 10**9]), st.sampled_from(SCORES))
def test_is_always_a_latin_square(prior: list[float], horizon: int, score: str) -> None:
    found = matching(prior, horizon, score)
    assert is_latin(found, len(prior))
    assert found == matching(prior, horizon, score)


@settings(max_examples=40, deadline=None)
@given(priors(5), st.sampled_from([0, 3, 100]), st.sampled_from(SCORES))
def test_every_budget_is_a_prefix_of_every_larger_one(prior: list[float], horizon: int, score: str) -> None:
    slices = len(prior)
    everything = matching(prior, horizon, score, math.factorial(slices))
    assert sorted(everything) == sorted(itertools.permutations(range(slices)))
    for budget in {1, slices, min(slices + 1, len(everything)), max(1, len(everything) - 1)}:
        assert matching(prior, horizon, score, budget) == everything[:budget]


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
@pytest.mark.parametrize("horizon", [0, 2, 30])
def test_each_position_has_the_largest_sum_of_scores(slices: int, horizon: int) -> None:
    """Against all permutations at each position, for the square as it stands before that position."""
    for seed in range(20):
        p = np.sort(np.random.default_rng([slices, horizon, seed]).dirichlet(np.ones(slices)))
        rows = square(p, tuple(range(slices)), (), horizon, None)
        for length in range(1, slices):
            known = [row[:length] for row in rows]

            def total(following: tuple[int, ...], known: list[Order] = known, p: np.ndarray = p) -> float:
                pairs = zip(known, following, strict=True)
                return sum(max(0.0, 1 - p[list(row)].sum() - p[s]) ** horizon for row, s in pairs)

            possible = [
                following
                for following in itertools.permutations(range(slices))
                if all(s not in row for row, s in zip(known, following, strict=True))
            ]
            found = total(tuple(row[length] for row in rows))
            assert found == pytest.approx(max(map(total, possible)), rel=1e-8, abs=1e-300)


@pytest.mark.parametrize("slices", [2, 3, 4, 5])
def test_counting_equal_sets_once_never_loses_at_a_position(slices: int) -> None:
    """After the first position, where both squares are the same, P(some 2-prefix is unhit) is at least the paper's."""
    for seed in range(30):
        p = np.sort(np.random.default_rng([slices, seed]).dirichlet(np.ones(slices)))
        law = Unhit.after(p, 10)
        sums = []
        for rows in (square(p, tuple(range(slices)), (), 10, None), square(p, tuple(range(slices)), (), 10, law)):
            sets = {1 << row[0] | 1 << row[1] for row in rows}
            unhit = [any(one & u == one for one in sets) for u in range(1 << slices)]
            sums.append(float(law.mean(np.array(unhit))))
        assert sums[1] >= sums[0] * (1 - 1e-12)


def test_scores_differ_where_orders_share_sets() -> None:
    """The two rarest slices begin two orders; the paper's score pairs them in both, and one request cuts both."""
    prior = [0.1, 0.12, 0.38, 0.4]
    pairs = {score: {frozenset(order[:2]) for order in matching(prior, 20, score)} for score in SCORES}
    assert len(pairs["paper"]) == 2
    assert len(pairs["expected_length"]) == 4
    values = [expected_best(matching(prior, 20, score), prior, 20) for score in SCORES]
    assert values[0] < values[1]


def test_uniform_requests_give_rotations() -> None:
    for slices in range(1, 9):
        uniform = [1 / slices] * slices
        assert sorted(matching(uniform, 5, "paper")) == cyclic(slices, slices)
        together = expected_best(matching(uniform, 5, "expected_length"), uniform, 5)
        assert together >= expected_best(cyclic(slices, slices), uniform, 5) * (1 - 1e-12)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("slices", [3, 5])
def test_each_order_adds_most_of_those_left_in_the_square(slices: int, score: str) -> None:
    for seed in range(10):
        prior = np.random.default_rng([slices, seed]).dirichlet(np.ones(slices))
        rows = matching(prior, 8, score)
        for budget in range(1, slices):
            values = [expected_best([*rows[: budget - 1], row], prior, 8, score) for row in rows[budget - 1 :]]
            assert values[0] == pytest.approx(max(values), rel=1e-8)


def test_names_of_slices_do_not_matter() -> None:
    rng = np.random.default_rng(5)
    for slices in range(2, 8):
        p, names = rng.dirichlet(np.ones(slices)), rng.permutation(slices)
        renamed = np.empty(slices)
        renamed[names] = p
        for score in SCORES:
            found = [tuple(names[list(order)].tolist()) for order in matching(p, 20, score, 2 * slices - 2)]
            assert matching(renamed, 20, score, 2 * slices - 2) == found


def test_scores_far_below_the_largest_still_decide() -> None:
    """After a million requests every score but the largest is 0 as a float; the others are weighed on their own scale."""
    logs = np.log([[1.0, 0.5, 0.5], [0.5, 0.3, 0.2], [0.5, 0.2, 0.1]]) * 1e6
    nothing = np.zeros((3, 3), dtype=bool)
    assert assigned(logs, nothing, np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert assigned(logs[:, [0, 2, 1]], nothing, np.array([0, 1, 2])).tolist() == [0, 2, 1]


def test_the_largest_score_may_be_in_no_assignment() -> None:
    """Row 1 takes nothing but column 0, so the largest score, row 0 in column 0, decides nothing."""
    logs = np.log([[1.0, 1e-30, 1e-31], [1e-30, 1e-30, 1e-30], [1e-30, 1e-32, 1e-30]])
    taken = np.array([[False, False, False], [False, True, True], [False, False, False]])
    assert assigned(logs, taken, np.array([0, 1, 2])).tolist() == [1, 0, 2]


@pytest.mark.parametrize("slices", [17, 24])
def test_more_slices_than_are_tabled(slices: int) -> None:
    prior = np.random.default_rng(1).dirichlet(np.ones(slices))
    for score in SCORES:
        found = matching(prior, 50, score, slices + 5)
        assert is_latin(found[:slices], slices)
        assert len(set(found)) == slices + 5


@pytest.mark.slow
def test_a_thousand_random_priors() -> None:
    """Latin squares for every number of slices up to 12; and how often one draw of conditional sampling is better."""
    worse = dict.fromkeys(SCORES, 0)
    for seed in range(1000):
        rng = np.random.default_rng([1000, seed])
        slices = 1 + seed % 12
        prior = rng.dirichlet(np.ones(slices))
        drawn = expected_best(conditional(prior, slices, seed), prior, 100)
        for score in SCORES:
            rows = matching(prior, 100, score)
            assert is_latin(rows, slices)
            worse[score] += expected_best(rows, prior, 100) < drawn * (1 - 1e-9)
    assert worse["expected_length"] <= 10
    assert worse["paper"] > worse["expected_length"]


@pytest.mark.parametrize(
    ("prior", "more", "message"),
    [
        ([], {}, r"probabilities of shape \(0,\) do not fit: give one number per slice, at least one"),
        ([[0.5, 0.5]], {}, r"shape \(1, 2\) do not fit"),
        (["a", "b"], {}, "no list of numbers"),
        ([0.5, -0.1], {}, "probability -0.1 is out of range"),
        ([0.5, math.nan], {}, "probability nan is out of range"),
        ([0.5, math.inf], {}, "probability inf is out of range"),
        ([0.7, 0.4], {}, "sum to 1.1: they may sum to 1 at most"),
        ([0.5, 0.5], {"budget": 0}, "budget=0 is not possible"),
        ([0.5, 0.5], {"budget": 3}, r"budget=3 exceeds the 2 orders that 2 slices have; give 1\.\.2"),
        ([0.5, 0.5], {"budget": 1.5}, "budget=1.5 is not possible"),
        ([0.5, 0.5], {"horizon": -1}, "horizon=-1 is not possible: give an integer of at least 0"),
        ([0.5, 0.5], {"score": "length"}, "score 'length' is unknown"),
    ],
)
def test_refuses(prior, more, message) -> None:
    with pytest.raises(LayoutError, match=message):
        matching(prior, **more)


def test_sums_below_one_and_rounding_above_are_fine() -> None:
    assert prior_of([0.1, 0.2]).sum() < 1
    assert prior_of([0.1] * 10).size == 10
    assert is_latin(matching([0.0, 0.0, 0.0]), 3)
    assert matching([1.0]) == [(0,)]
    assert is_latin(matching([1.0, 0.0]), 2)
