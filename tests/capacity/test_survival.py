"""Survival of orders: exact against all sequences of requests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest

from s3t.capacity import expected_surviving_length, survival
from s3t.errors import LayoutError


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: survival(4, 5, 1), r"j=5 first slices do not fit an order of 4: give 0\.\.4"),
        (lambda: survival(4, 2, -1), r"requests=-1 is not possible"),
        (lambda: expected_surviving_length((0, 0), [0.5, 0.5], 1), r"order \(0, 0\) is not a permutation"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
