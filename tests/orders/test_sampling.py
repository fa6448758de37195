"""Sampled orders: distinct for every budget, distributed as drawn slice by slice, the same for the same seed."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from s3t.errors import LayoutError
from s3t.orders import conditional, random, sampling


def by_hand(weights: list[float], order: tuple[int, ...]) -> float:
    """The probability of an order when its slices are drawn one by one without replacement."""
    chance, left = 1.0, sum(weights)
    for item in order:
        chance, left = chance * weights[item] / left, left - weights[item]
    return chance


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5])
def test_every_budget_gives_distinct_orders_and_contains_the_smaller_ones(slices: int) -> None:
    most = math.factorial(slices)
    prior = np.random.default_rng(slices).dirichlet(np.ones(slices))
    for rule in (lambda budget: conditional(prior, budget, 7), lambda budget: random(slices, budget, 7)):
        everything = rule(most)
        assert sorted(everything) == sorted(itertools.permutations(range(slices)))
        for budget in range(1, most + 1):
            assert rule(budget) == everything[:budget]


@pytest.mark.parametrize("rule", ["listed", "drawn"])
def test_the_first_order_is_drawn_slice_by_slice(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if rule == "drawn":
        monkeypatch.setattr(sampling, "LISTED", 0)
    prior, count = [0.7, 0.2, 0.1], 6000
    seen = Counter(conditional(prior, 1, seed)[0] for seed in range(count))
    orders = list(itertools.permutations(range(3)))
    expected = [count * by_hand([0.3, 0.8, 0.9], order) for order in orders]
    assert chisquare([seen[order] for order in orders], expected).pvalue > 1e-4


@pytest.mark.parametrize("rule", ["listed", "drawn"])
def test_the_second_order_is_drawn_until_it_is_another(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if rule == "drawn":
        monkeypatch.setattr(sampling, "LISTED", 0)
    prior, count = [0.7, 0.2, 0.1], 6000
    orders = list(itertools.permutations(range(3)))
    chance = {order: by_hand([0.3, 0.8, 0.9], order) for order in orders}
    second = Counter(conditional(prior, 2, seed)[1] for seed in range(count))
    expected = [count * sum(chance[a] * chance[b] / (1 - chance[a]) for a in orders if a != b) for b in orders]
    assert chisquare([second[order] for order in orders], expected).pvalue > 1e-4


def test_random_orders_are_uniform() -> None:
    seen = Counter(random(3, 1, seed)[0] for seed in range(6000))
    assert chisquare([seen[order] for order in itertools.permutations(range(3))]).pvalue > 1e-4


def test_many_slices_are_drawn_and_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(conditional(np.full(30, 1 / 30), 50, 0))) == 50
    monkeypatch.setattr(sampling, "LISTED", 0)
    monkeypatch.setattr(sampling, "REPEATS", 3)
    everything = conditional([0.9, 0.05, 0.05, 0.0], 24, 1)
    assert sorted(everything) == sorted(itertools.permutations(range(4)))
    assert conditional([0.9, 0.05, 0.05, 0.0], 20, 1) == everything[:20]


@pytest.mark.parametrize("listed", [0, 7])
def test_a_certain_slice_comes_last_while_it_can(listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LISTED", listed)
    found = conditional([0.0, 1.0, 0.0], 6, 3)
    assert {order[-1] for order in found[:2]} == {1}
    assert len(set(found)) == 6
    assert conditional([1.0], 1, 0) == [(0,)]


def test_seeds_matter() -> None:
    assert len({tuple(random(5, 3, seed)) for seed in range(10)}) == 10
    assert len({tuple(conditional([0.2] * 5, 3, seed)) for seed in range(10)}) == 10


def test_refuses() -> None:
    with pytest.raises(LayoutError, match="slices=0 is not possible"):
        random(0, 1, 0)
    with pytest.raises(LayoutError, match="budget=7 exceeds the 6 orders that 3 slices have"):
        random(3, 7, 0)
    with pytest.raises(LayoutError, match="budget=3 exceeds the 2 orders"):
        conditional([0.5, 0.5], 3, 0)
    with pytest.raises(LayoutError, match="probability nan"):
        conditional([math.nan], 1, 0)
