"""The paper's formulas against the exact ones: where they agree, where they bound, and where they do neither."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from s3t.capacity import (
    deletion_rate,
    gap,
    gap_of_the_paper,
    growth_of_the_paper,
    paper,
)
from s3t.errors import LayoutError
from s3t.orders import cyclic


def test_gap_equals_all_sequences_of_requests() -> None:
    for orders, j, requests in itertools.product((cyclic(3, 2), cyclic(3, 3), cyclic(3, 6)), (1, 2, 3), range(5)):
        histories = list(itertools.product(range(3), repeat=requests))
        some = sum(any(set(order[:j]).isdisjoint(h) for order in orders) for h in histories)
        one = sum(set(orders[0][:j]).isdisjoint(h) for h in histories)
        assert gap(orders, j, requests) == pytest.approx(float(Fraction(some - one, len(histories))), abs=1e-14)


def test_the_papers_gap_is_a_lower_bound_where_prefixes_are_disjoint() -> None:
    for slices, budget, requests in itertools.product(range(2, 9), range(2, 9), range(12)):
        for j in range(1, slices + 1):
            orders = [tuple((j * b + i) % slices for i in range(slices)) for b in range(min(budget, slices // j))]
            if len(orders) < 2:
                continue
            assert not paper.prefixes_overlap(orders, j)
            exact, claimed = gap(orders, j, requests), gap_of_the_paper(slices, j, len(orders), requests)
            assert claimed <= exact + 1e-12
            if requests > 0 and 0 < j < slices:
                assert claimed < exact


def test_cyclic_orders_overlap_from_two_slices_on_and_then_the_papers_gap_is_no_bound() -> None:
    for slices in range(3, 9):
        assert not paper.prefixes_overlap(cyclic(slices, slices), 1)
        for j in range(2, slices):
            assert paper.prefixes_overlap(cyclic(slices, slices), j)
    below, above = ((gap(cyclic(6, 6), 3, r), gap_of_the_paper(6, 3, 6, r)) for r in (1, 4))
    assert below[1] < below[0] - 0.01 and above[1] > above[0] + 0.02


def test_beyond_one_order_per_slice_the_papers_gap_misses_the_new_prefixes() -> None:
    assert gap_of_the_paper(4, 2, 24, 2) == gap_of_the_paper(4, 2, 4, 2)
    assert gap(cyclic(4, 24), 2, 2) == pytest.approx(0.75) and gap(cyclic(4, 4), 2, 2) == pytest.approx(0.5)


def test_one_order_has_no_gap() -> None:
    for j, requests in itertools.product(range(5), range(4)):
        assert gap(cyclic(4, 1), j, requests) == pytest.approx(0.0, abs=1e-15)
        assert gap_of_the_paper(4, j, 1, requests) == pytest.approx(0.0, abs=1e-15)


def test_order_of_growth_lies_below_the_rate_and_approaches_it() -> None:
    ratios = [deletion_rate(m, 4, 4) / growth_of_the_paper(m, 4, 4) for m in (1, 10, 100, 1000, 10_000)]
    assert ratios == sorted(ratios, reverse=True) and all(ratio > 1 for ratio in ratios)
    assert growth_of_the_paper(1, 4, 1) == 0.0 and deletion_rate(1, 4, 1) == 4.0


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"no orders given"):
        gap([], 1, 1)
    with pytest.raises(LayoutError, match=r"j=5 first slices do not fit"):
        gap(cyclic(4, 2), 5, 1)
    with pytest.raises(LayoutError, match=r"budget=7 exceeds the 6 orders"):
        gap_of_the_paper(3, 1, 7, 1)
    with pytest.raises(LayoutError, match=r"requests=-1"):
        gap_of_the_paper(3, 1, 2, -1)
