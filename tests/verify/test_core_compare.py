"""Differences, word for word."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from verify.compare import Difference, bits, compare_tensor, compare_tensors, max_ulps, nan_count

ZERO = torch.zeros(2)
EXACT: list[tuple[Any, Any, Difference]] = [
    (ZERO, None, Difference("t", "missing", "the tensor is expected but absent")),
    (None, ZERO, Difference("t", "unexpected", "the tensor is present but nothing derives it")),
    (ZERO, ZERO.double(), Difference("t", "dtype", "dtype is torch.float64, expected torch.float32")),
    (ZERO, ZERO[:1], Difference("t", "shape", "shape is (1,), expected (2,)")),
    (
        ZERO.cfloat(),
        ZERO.cfloat(),
        Difference("t", "dtype", "dtype torch.complex64 cannot be compared by ULP; store real tensors"),
    ),
    (
        torch.tensor([math.nan, math.nan]),
        torch.tensor([math.nan, 0]),
        Difference("t", "nan", "2 NaN in the expected tensor", 2),
    ),
    (ZERO, torch.tensor([0, math.nan]), Difference("t", "nan", "1 NaN in the actual tensor", 1)),
    (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[1.0, 2.0], [3.0000002, 5.0]]),
        Difference(
            "t",
            "bits",
            "2 of 4 elements differ, first at [1, 0], at most 2097152 ULP apart",
            2,
            (1, 0),
            2097152,
        ),
    ),
    (
        torch.tensor([1, 2, 3]),
        torch.tensor([1, 2, 4]),
        Difference("t", "bits", "1 of 3 elements differ, first at [2]", 1, (2,)),
    ),
]


@pytest.mark.parametrize("number", range(len(EXACT)))
def test_each_difference_says_exactly_this(number: int) -> None:
    expected, actual, difference = EXACT[number]
    left, right = ({} if tensor is None else {"t": tensor} for tensor in (expected, actual))
    assert compare_tensors(left, right) == [difference]
    if left and right:
        assert compare_tensor("t", expected, actual) == difference


def test_all_differences_are_told_in_order_of_names() -> None:
    expected = {name: torch.ones(1) for name in "dca"}
    found = compare_tensors(expected, {name: torch.zeros(1) for name in "bdc"})
    assert [(d.tensor, d.reason) for d in found] == [
        ("a", "missing"),
        ("b", "unexpected"),
        ("c", "bits"),
        ("d", "bits"),
    ]


def test_integers_hold_no_nan_and_bits_keep_width_and_shape() -> None:
    assert nan_count(torch.tensor([1, 2])) == 0
    assert nan_count(torch.tensor([[math.nan, 1.0], [math.nan, math.inf]])) == 2
    for dtype, view in ((torch.int8, "u1"), (torch.bfloat16, "u2"), (torch.float32, "u4"), (torch.float64, "u8")):
        raw = bits(torch.ones(2, 3, dtype=dtype, requires_grad=dtype.is_floating_point))
        assert (raw.dtype, raw.shape) == (np.dtype(view), (2, 3))
    assert bits(torch.tensor([-0.0])).tolist() == [1 << 31]


def test_the_distance_of_nothing_is_zero_and_both_zeros_are_one_number() -> None:
    empty = np.array([], dtype=np.uint32)
    assert max_ulps(empty, empty) == 0
    zeros = np.array([0, 1 << 31], dtype=np.uint32)
    assert max_ulps(zeros, zeros[::-1]) == 0
    assert max_ulps(np.array([1], dtype=np.uint32), np.array([(1 << 31) + 1], dtype=np.uint32)) == 2
    assert max_ulps(np.array([5, 9], dtype=np.uint16), np.array([7, 2], dtype=np.uint16)) == 7


def test_a_tensor_that_is_not_contiguous_or_needs_gradients() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    assert compare_tensor("t", base.T, base.T.contiguous().requires_grad_()) is None


def test_an_unexpected_integer_next_to_a_float() -> None:
    assert compare_tensors({}, {}) == []
    assert compare_tensors({"a": ZERO, "b": ZERO}, {"a": ZERO.clone(), "b": ZERO + 1})[0].tensor == "b"
    found = compare_tensor("t", torch.tensor([True, False]), torch.tensor([True, True]))
    assert found is not None
    assert (found.ulps, found.message) == (None, "1 of 2 elements differ, first at [1]")
