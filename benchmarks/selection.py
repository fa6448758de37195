"""Rules for orders under families of priors: the expected length of the best chain, against the best orders of a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from s3t.orders import Choice, choose, conditional, cyclic, matching, random
from s3t.orders.value import Unhit, kept_lengths
from s3t.records import Order

Prior = NDArray[np.float64]
CONCENTRATIONS = (0.3, 1.0, 3.0)
"""Of the Dirichlet priors, in turn: strongly skewed, uniform over all priors, mildly skewed."""


def _zipf(slices: int) -> Prior:
    weights = 1.0 / np.arange(1, slices + 1)
    return np.asarray(weights / weights.sum())


def _halves(slices: int) -> Prior:
    weights = 0.5 ** np.arange(slices)
    return np.asarray(weights / weights.sum())


def _one_hot_spot(slices: int) -> Prior:
    return np.array([0.9, *[0.1 / (slices - 1)] * (slices - 1)])


FAMILIES: Mapping[str, Callable[[int], Prior]] = {
    "uniform": lambda slices: np.full(slices, 1.0 / slices),
    "Zipf": _zipf,
    "halves": _halves,
    "nine in ten in one slice": _one_hot_spot,
}
DRAWN = "Dirichlet"

RULES: Mapping[str, Callable[[Prior, int, int, int], list[Order]]] = {
    "cyclic": lambda p, horizon, budget, seed: cyclic(p.size, budget),
    "matching (paper)": lambda p, horizon, budget, seed: matching(p, horizon, "paper", budget),
    "matching (expected_length)": lambda p, horizon, budget, seed: matching(p, horizon, "expected_length", budget),
    "conditional": lambda p, horizon, budget, seed: conditional(p, budget, seed),
    "random": lambda p, horizon, budget, seed: random(p.size, budget, seed),
}


def priors(family: str, slices: int, draws: int) -> Iterator[Prior]:
    """Yield priors of a family, the names of the slices shuffled, for cyclic orders go by the names."""
    for draw in range(draws):
        rng = np.random.default_rng([2024, slices, draw])
        drawn = family == DRAWN
        prior = rng.dirichlet(np.full(slices, CONCENTRATIONS[draw % 3])) if drawn else FAMILIES[family](slices)
        yield rng.permutation(prior)


@cache
def _optimum(ascending: tuple[float, ...], budget: int, horizon: int) -> Choice:
    return choose(ascending, budget, horizon)


def value_of(law: Unhit, orders: list[Order]) -> float:
    """Return the expected length of the best chain, on the law's scale."""
    return float(law.mean(kept_lengths(orders).max(axis=0)))


def shares_of_the_optimum(
    family: str, slices: int, budget: int, horizon: int, draws: int
) -> tuple[dict[str, list[float]], int]:
    """Return each rule's value over the optimum, one per prior, and for how many priors the optimum is proven."""
    shares: dict[str, list[float]] = {name: [] for name in RULES}
    proven = 0
    for seed, prior in enumerate(priors(family, slices, draws)):
        ranks = np.argsort(prior, kind="stable")
        best = _optimum(tuple(prior[ranks].tolist()), budget, horizon)
        proven += best.proven
        law = Unhit.after(prior, horizon)
        optimum = value_of(law, [tuple(ranks[list(order)].tolist()) for order in best.orders])
        for name, rule in RULES.items():
            shares[name].append(min(1.0, value_of(law, rule(prior, horizon, budget, seed)) / optimum))
    return shares, proven
