"""Deletion rates: closed forms, integrals and an exact Markov chain must tell the same story."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest

from s3t.capacity import deletion_rate, deletion_rate_from, harmonic
from s3t.errors import LayoutError
from s3t.orders import cyclic

CELLS = [(m, slices, b) for m in (1, 2, 5, 10) for slices in range(1, 7) for b in range(1, slices + 1)]
Chain = Callable[[int, list[tuple[int, ...]], list[Fraction]], Fraction]


def test_harmonic_numbers() -> None:
    assert [harmonic(n) for n in range(5)] == pytest.approx([0, 1, 1.5, 11 / 6, 25 / 12])
    assert harmonic(100_000) == pytest.approx(math.log(100_000) + 0.5772156649015329 + 1 / 200_000, abs=1e-9)


def test_published_setting() -> None:
    values = [round(deletion_rate(5, 6, budget), 2) for budget in range(1, 7)]
    assert values == [68.50, 87.87, 99.55, 107.93, 114.48, 119.85]
    assert deletion_rate(5, 6, 7) == deletion_rate(5, 6, 720) == deletion_rate(5, 6, 6)


@pytest.mark.parametrize(("shards", "slices"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 2), (8, 1)])
def test_closed_form_equals_the_exact_markov_chain(shards: int, slices: int, exact_capacity: Chain) -> None:
    uniform = [Fraction(1, shards * slices)] * (shards * slices)
    for budget in range(1, math.factorial(slices) + 1):
        exact = exact_capacity(shards, cyclic(slices, budget), uniform)
        assert deletion_rate(shards, slices, budget) == pytest.approx(float(exact), rel=1e-13)


@pytest.mark.parametrize(("shards", "slices", "budget"), CELLS)
def test_integral_agrees_with_closed_form(shards: int, slices: int, budget: int) -> None:
    first_slices = [1 / (shards * slices)] * (shards * budget)
    assert deletion_rate_from(first_slices) == pytest.approx(deletion_rate(shards, slices, budget), rel=1e-9)


@pytest.mark.parametrize("weights", [(1, 2, 3, 4, 5, 6), (1, 1, 1, 1, 1, 95), (1, 10, 100, 1000, 10_000, 100_000)])
def test_integral_equals_the_exact_markov_chain_for_skewed_requests(
    weights: tuple[int, ...], exact_capacity: Chain
) -> None:
    probabilities = [Fraction(weight, sum(weights)) for weight in weights]
    for budget in (1, 2, 3):
        orders = cyclic(3, budget)
        first = [float(probabilities[3 * shard + order[0]]) for shard in range(2) for order in orders]
        assert deletion_rate_from(first) == pytest.approx(float(exact_capacity(2, orders, probabilities)), rel=1e-9)


def test_integral_is_infinite_where_a_first_slice_is_never_hit() -> None:
    assert deletion_rate_from([0.5, 0.0]) == math.inf
    assert deletion_rate_from(0.25) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: harmonic(-1), r"harmonic number of -1"),
        (lambda: deletion_rate(0, 4, 1), r"shards=0 is not possible"),
        (lambda: deletion_rate(5, 3, 7), r"budget=7 exceeds the 6 orders"),
        (lambda: deletion_rate_from([]), r"no probabilities given"),
        (lambda: deletion_rate_from([0.2, -0.1]), r"probability -0\.1 is out of range: give 0 to 1"),
        (lambda: deletion_rate_from([0.2, math.nan]), r"probability nan is out of range"),
        (lambda: deletion_rate_from([0.7, 0.7]), r"probabilities sum to 1\.4: they may sum to 1 at most"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
