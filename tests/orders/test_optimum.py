"""The best orders: against every set of orders for few slices, the chains behind the proof, and searches beyond."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from s3t.errors import LayoutError
from s3t.orders import best, choose, conditional, expected_best, levels, matching, random
from s3t.orders.checks import prior_of
from s3t.orders.levels import FamilySearch, chains_through, sets_of_size
from s3t.orders.value import Unhit, kept_lengths

Order = tuple[int, ...]


def exhausted(prior: np.ndarray, budget: int, horizon: int) -> float:
    """The largest value of all sets of ``budget`` orders, one by one."""
    slices = len(prior)
    law = Unhit.after(prior_of(prior), horizon)
    tables = kept_lengths(list(itertools.permutations(range(slices))))
    sets = np.array(list(itertools.combinations(range(math.factorial(slices)), budget)))
    values = [float(law.mean(tables[some].max(axis=1)).max()) for some in np.array_split(sets, 1 + len(sets) // 2000)]
    return max(values) * math.exp(law.log_scale)


def skewed(slices: int, seed: int) -> np.ndarray:
    return np.random.default_rng([slices, seed]).dirichlet(np.full(slices, 0.7)) * (1.0 if seed % 2 else 0.8)


@pytest.mark.parametrize(("slices", "most"), [(1, 1), (2, 2), (3, 6), (4, 3)])
@pytest.mark.parametrize("horizon", [0, 2, 10, 100])
def test_nothing_is_better_among_all_sets_of_orders(slices: int, most: int, horizon: int) -> None:
    for seed, budget in itertools.product(range(4), range(1, most + 1)):
        prior = skewed(slices, seed)
        found = choose(prior, budget, horizon, starts=1)
        assert found.proven
        assert len(set(found.orders)) == budget
        assert found.value == pytest.approx(exhausted(prior, budget, horizon), rel=1e-8)
        assert found.value == pytest.approx(expected_best(found.orders, prior, horizon), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [3, 20])
def test_nothing_is_better_among_all_sets_of_up_to_five_orders_of_four_slices(horizon: int) -> None:
    for seed, budget in itertools.product(range(3), (4, 5)):
        found = choose(skewed(4, seed), budget, horizon)
        assert found.proven
        assert found.value == pytest.approx(exhausted(skewed(4, seed), budget, horizon), rel=1e-8)


@pytest.mark.parametrize("budget", [2, 3])
def test_five_slices_and_a_bad_start(budget: int) -> None:
    """The proof does not lean on the local search: from a poor floor it finds the optimum itself."""
    prior = np.sort(skewed(5, 1))
    law = Unhit.after(prior, 6)
    search = FamilySearch(law, budget, floor=0.0)
    assert search.run()
    value = float(law.mean(kept_lengths(search.found).max(axis=0)))
    assert value == pytest.approx(search.floor, rel=1e-9)
    assert value * math.exp(law.log_scale) == pytest.approx(choose(prior, budget, 6).value, rel=1e-8)
    if budget == 2:
        assert value * math.exp(law.log_scale) == pytest.approx(exhausted(prior, 2, 6), rel=1e-8)


@pytest.mark.parametrize("slices", [3, 4, 5])
def test_every_budget_up_to_five_slices_is_proven_and_beats_every_rule(slices: int) -> None:
    for seed, budget in itertools.product(range(2), range(1, math.comb(slices, slices // 2) + 3)):
        if budget > math.factorial(slices):
            continue
        prior, horizon = skewed(slices, seed), 8
        found = choose(prior, budget, horizon, starts=1)
        assert found.proven
        for other in (
            matching(prior, horizon, "paper", budget),
            matching(prior, horizon, "expected_length", budget),
            conditional(prior, budget, 1),
            random(slices, budget, 1),
        ):
            assert expected_best(other, prior, horizon) <= found.value * (1 + 1e-9)


@pytest.mark.parametrize("slices", range(2, 9))
def test_as_many_orders_as_the_lattice_is_wide_keep_every_unhit_slice(slices: int) -> None:
    width = math.comb(slices, slices // 2)
    chains = chains_through([tuple(sets_of_size(slices, size)) for size in range(1, slices)], slices)
    assert len(chains) == len(set(chains)) == width
    assert {frozenset(c[:j]) for c in chains for j in range(1, slices)} == {
        frozenset(some) for j in range(1, slices) for some in itertools.combinations(range(slices), j)
    }
    prior = skewed(slices, 1)
    found = choose(prior, width, 6)
    assert found.proven
    assert found.value == pytest.approx(((1 - prior) ** 6).sum(), rel=1e-12)


def test_the_fewest_chains_through_families() -> None:
    """Against every set of permitted chains, the smallest that goes through all sets."""
    rng = np.random.default_rng(3)
    linked = 0
    for _ in range(60):
        families = [
            tuple(sorted(rng.choice(some, size=rng.integers(1, min(4, len(some)) + 1), replace=False).tolist()))
            for some in (sets_of_size(4, size) for size in (1, 2, 3))
        ]
        inside = [
            o for o in itertools.permutations(range(4)) if all(m in f for m, f in zip(masks(o), families, strict=False))
        ]
        wanted = {one for family in families for one in family}
        fewest = next(
            (n for n in range(1, 7) for some in itertools.combinations(inside, n) if covered(some) >= wanted), 0
        )
        found = chains_through(families, 4)
        assert len(found) == fewest
        assert not found or covered(found) == wanted
        linked += fewest > 1
    assert linked > 5


def masks(order: Order) -> list[int]:
    return [sum(1 << item for item in order[:j]) for j in range(1, len(order))]


def covered(orders: list[Order] | tuple[Order, ...]) -> set[int]:
    return {mask for order in orders for mask in masks(order)}


def test_more_slices_are_searched_without_proof() -> None:
    prior = skewed(8, 3)
    found = choose(prior, 4, 10, starts=2)
    assert not found.proven
    assert found == choose(prior, 4, 10, starts=2)
    assert list(found.orders) == best(prior, 4, 10, starts=2)
    assert found.value >= expected_best(matching(prior, 10, "expected_length", 4), prior, 10)
    assert len(set(found.orders)) == 4


def test_a_search_that_takes_too_many_steps_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    law = Unhit.after(np.sort(skewed(5, 0)), 4)
    assert not FamilySearch(law, 4, floor=0.0, steps=3).run()
    monkeypatch.setattr(levels, "PROVABLE", 3)
    assert not choose(skewed(5, 0), 4, 4).proven


def test_slices_that_are_never_or_always_hit() -> None:
    assert choose([0.0, 0.0, 0.0], 2, 50).value == pytest.approx(3.0)
    assert choose([1.0], 1, 5).value == 0.0
    found = choose([0.0, 1.0, 0.0], 2, 10)
    assert found.value == pytest.approx(2.0)
    assert found.proven
    assert choose([0.5, 0.5], 2, 10**6).orders == ((0, 1), (1, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1 / 13] * 13, 2, 5), "slices=13 are too many to choose the best orders: at most 12"),
        (([0.5, 0.5], 3, 5), "budget=3 exceeds the 2 orders"),
        (([0.5, 0.5], 0, 5), "budget=0 is not possible"),
        (([], 1, 5), "at least one"),
        (([0.5, 0.5], 1, -5), "horizon=-5 is not possible"),
        (([0.5, 0.5], 1, 5, 0, 0), "starts=0 is not possible"),
    ],
)
def test_refuses(arguments, message) -> None:
    with pytest.raises(LayoutError, match=message):
        best(*arguments)
