"""Bitwise comparison of named tensors: no tolerance, no float comparison, NaN never passes.

Tensors are viewed as unsigned integers of the same width, so that -0.0 differs from 0.0. The distance in ULP (units in
the last place) is reported beside a difference and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """One tensor that is not the same: ``count`` elements differ, the first at ``index``, by at most ``ulps``.

    ``reason`` is one of missing, unexpected, dtype, shape, nan, bits.
    """

    tensor: str
    reason: str
    message: str
    count: int = 0
    index: tuple[int, ...] = ()
    ulps: int | None = None


def compare_tensors(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> list[Difference]:
    """Return every difference between two mappings, in sorted order of tensor names; empty means the same bits."""
    found: list[Difference] = []
    for name in sorted(set(expected) | set(actual)):
        if name not in actual:
            found.append(Difference(name, "missing", "the tensor is expected but absent"))
        elif name not in expected:
            found.append(Difference(name, "unexpected", "the tensor is present but nothing derives it"))
        else:
            difference = compare_tensor(name, expected[name], actual[name])
            if difference is not None:
                found.append(difference)
    return found


def compare_tensor(name: str, expected: Tensor, actual: Tensor) -> Difference | None:
    """Return how ``actual`` differs from ``expected``, or None for the same dtype, shape and bits without NaN."""
    if expected.dtype != actual.dtype:
        return Difference(name, "dtype", f"dtype is {actual.dtype}, expected {expected.dtype}")
    if expected.shape != actual.shape:
        return Difference(name, "shape", f"shape is {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if expected.dtype.is_complex:
        return Difference(name, "dtype", f"dtype {actual.dtype} cannot be compared by ULP; store real tensors")
    for side, tensor in (("expected", expected), ("actual", actual)):
        unordered = nan_count(tensor)
        if unordered:
            return Difference(name, "nan", f"{unordered} NaN in the {side} tensor", unordered)
    left, right = bits(expected), bits(actual)
    unequal = left != right
    count = int(unequal.sum())
    if not count:
        return None
    index = tuple(int(i) for i in np.argwhere(unequal)[0])
    ulps = max_ulps(left[unequal], right[unequal]) if expected.dtype.is_floating_point else None
    far = f", at most {ulps} ULP apart" if ulps is not None else ""
    return Difference(
        name, "bits", f"{count} of {left.size} elements differ, first at {list(index)}{far}", count, index, ulps
    )


def nan_count(tensor: Tensor) -> int:
    """Return how many elements are NaN (0 for integer tensors)."""
    return int(tensor.isnan().sum()) if tensor.dtype.is_floating_point else 0


def bits(tensor: Tensor) -> NDArray[Any]:
    """Return the elements as unsigned integers of the same width and shape."""
    import torch

    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    plain = tensor.detach().cpu().contiguous()
    raw: NDArray[Any] = plain.view(views[plain.element_size()]).numpy()
    return raw.view(f"u{plain.element_size()}")


def max_ulps(left: NDArray[Any], right: NDArray[Any]) -> int:
    """Return the largest distance in representable floats between bit patterns; both zeros count as one number."""
    a, b = _ordered(left), _ordered(right)
    return int(np.where(a >= b, a - b, b - a).max(initial=0))


def _ordered(raw: NDArray[Any]) -> NDArray[np.uint64]:
    """Map float bit patterns to integers in the order of the floats."""
    width = raw.dtype.itemsize * 8
    wide = raw.astype(np.uint64)
    middle = np.uint64(1 << (width - 1))
    magnitude = wide & (middle - np.uint64(1))
    return np.where(wide >= middle, middle - magnitude, middle + magnitude).astype(np.uint64)
