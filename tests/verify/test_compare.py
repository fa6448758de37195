"""Comparison: one flipped bit is a difference, NaN never passes, and the distance counts representable floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from verify.compare import compare_tensor, compare_tensors, max_ulps

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.uint8, torch.bool])
def test_same_bits_are_no_difference(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    assert compare_tensors({"a": tensor}, {"a": tensor.clone()}) == []
    assert compare_tensors({"a": tensor.T}, {"a": tensor.T.contiguous()}) == []


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_bit_is_found_and_located(dtype: torch.dtype, bit: int) -> None:
    tensor = torch.ones(2, 3, dtype=dtype)
    other = tensor.clone()
    width = tensor.element_size()
    other.view(torch.uint8)[1, 2 * width] ^= 1 << bit
    found = compare_tensor("a", tensor, other)
    assert found is not None
    assert (found.reason, found.count, found.index, found.ulps) == ("bits", 1, (1, 2), 1 << bit)
    assert f"at most {1 << bit} ULP" in found.message


def test_smallest_step_from_one() -> None:
    one = torch.tensor([1.0])
    found = compare_tensor("a", one, torch.nextafter(one, torch.tensor([2.0])))
    assert found is not None
    assert found.ulps == 1
    assert torch.allclose(one, torch.nextafter(one, torch.tensor([2.0])))


def test_zeros_of_either_sign_differ_at_distance_zero() -> None:
    found = compare_tensor("a", torch.tensor([0.0, 0.0]), torch.tensor([0.0, -0.0]))
    assert found is not None
    assert (found.count, found.index, found.ulps) == (1, (1,), 0)


@pytest.mark.parametrize(("left", "right"), [(math.nan, math.nan), (1.0, math.nan), (math.nan, 1.0)])
def test_nan_never_passes(left: float, right: float) -> None:
    found = compare_tensor("a", torch.tensor([left, 1.0]), torch.tensor([right, 1.0]))
    assert found is not None
    assert found.reason == "nan"


def test_infinities_are_numbers() -> None:
    inf = torch.tensor([math.inf])
    assert compare_tensor("a", inf, inf.clone()) is None
    found = compare_tensor("a", inf, -inf)
    assert found is not None
    assert found.ulps == 2 * 0x7F800000


@pytest.mark.parametrize(
    ("expected", "actual", "reason"),
    [
        ({"a": torch.zeros(2)}, {}, "missing"),
        ({}, {"a": torch.zeros(2)}, "unexpected"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.float64)}, "dtype"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2, 1)}, "shape"),
        ({"a": torch.zeros(0)}, {"a": torch.zeros(1)}, "shape"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, {"a": torch.zeros(1, dtype=torch.complex64)}, "dtype"),
    ],
)
def test_names_dtypes_and_shapes_count(
    expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor], reason: str
) -> None:
    assert [d.reason for d in compare_tensors(expected, actual)] == [reason]


def test_differences_come_in_order_of_names() -> None:
    found = compare_tensors({"b": torch.zeros(1), "a": torch.zeros(1)}, {"b": torch.ones(1), "a": torch.ones(1)})
    assert [d.tensor for d in found] == ["a", "b"]


def test_ulps_agree_with_counting_every_float16() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    values = patterns.view(np.float16)
    patterns, values = patterns[np.isfinite(values)], values[np.isfinite(values)]
    ordered = np.unique(values)
    rank = {float(v): i for i, v in enumerate(ordered)}
    generator = np.random.default_rng(0)
    for i, j in generator.integers(0, len(values), (300, 2)):
        distance = abs(rank[float(values[i])] - rank[float(values[j])])
        assert max_ulps(patterns[i : i + 1], patterns[j : j + 1]) == distance


def test_ulps_of_float64_do_not_overflow() -> None:
    big = np.array([np.finfo(np.float64).max, -np.finfo(np.float64).max]).view(np.uint64)
    assert max_ulps(big[:1], big[1:]) == 2 * 0x7FEFFFFFFFFFFFFF


def test_scalars_and_empty_tensors() -> None:
    assert compare_tensor("a", torch.tensor(1.0), torch.tensor(1.0)) is None
    assert compare_tensor("a", torch.zeros(0, 3), torch.zeros(0, 3)) is None
    found = compare_tensor("a", torch.tensor(1.0), torch.tensor(2.0))
    assert found is not None
    assert found.index == ()
