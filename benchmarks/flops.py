"""Floating-point operations, counted by torch as they are dispatched, and what the machine's matrix product reaches.

A matrix product (m, k) x (k, n) counts 2 m k n. Matrix products, convolutions and attention are counted, forward and backward
(attention's backward recomputes the scores: five products for the forward's two); elementwise work, normalisation and the
optimizer are not. Kernels that torch does not dispatch one by one (compiled code, replayed CUDA graphs) are not seen: count
such a path uncompiled, on the same shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from s3t.errors import DataError

Shape = tuple[int, int, int]
SQUARE: dict[str, Shape] = {"cpu": (2048, 2048, 2048), "cuda": (8192, 8192, 8192)}
"""A product large enough to fill the device."""

_counted: dict[Hashable, int] = {}


def count_flops(work: Callable[[], object], *, shape: Hashable = None) -> int:
    """Run ``work`` once and return its operations. ``shape``: what they depend on; equal ones are counted once, then known."""
    if shape is not None and shape in _counted:
        return _counted[shape]
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_attention_on_cpu()) as counter:
        work()
    total = int(counter.get_total_flops())
    if shape is not None:
        _counted[shape] = total
    return total


@dataclass(frozen=True)
class Peak:
    """The fastest of several measured products: operations per second, the shape that reached it, and all shapes."""

    flops_per_second: float
    shape: Shape
    measured: dict[Shape, float]
    dtype: str
    threads: int


def model_shapes(tokens: int, hidden: int, intermediate: int) -> list[Shape]:
    """Return the products of a transformer layer on ``tokens`` tokens: projections, and both halves of the MLP."""
    return [(tokens, hidden, hidden), (tokens, hidden, intermediate), (tokens, intermediate, hidden)]


def matmul_peak(
    dtype: str = "float32",
    device: str = "cpu",
    *,
    threads: int | None = None,
    shapes: Sequence[Shape] = (),
    rounds: int = 7,
    square: Shape | None = None,
) -> Peak:
    """Measure what ``torch.mm`` reaches on ``square`` and ``shapes`` (m, k, n): the best of ``rounds`` each.

    ``threads``: for the measurement alone; None leaves torch's. Call it in the process and near the time of what is compared.
    Raises DataError for no rounds.
    """
    import torch

    if rounds < 1:
        raise DataError(f"rounds={rounds} measures nothing; give at least 1")
    square = square or SQUARE[device.split(":")[0]]
    before, kind = torch.get_num_threads(), getattr(torch, dtype)
    torch.set_num_threads(threads or before)
    try:
        used = torch.get_num_threads()
        measured = {shape: _rate(shape, kind, device, rounds) for shape in (square, *shapes)}
    finally:
        torch.set_num_threads(before)
    best = max(measured, key=lambda shape: measured[shape])
    return Peak(measured[best], best, measured, dtype, used)


def _rate(shape: Shape, dtype: Any, device: str, rounds: int) -> float:
    import torch

    m, k, n = shape
    left, right = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
    out = torch.empty(m, n, dtype=dtype, device=device)
    repeats, seconds = 50 if device != "cpu" else max(1, min(50, round(2e9 / (2 * m * k * n)))), []
    for number in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right, out=out)
        if device != "cpu":
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - began)
    return 2.0 * m * k * n * repeats / min(seconds)


def _attention_on_cpu() -> dict[Any, Any]:
    """Attention's CPU kernels, which torch 2.13 does not count; its own formulas for the other kernels serve."""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]

    operators = torch.ops.aten
    return {
        operators._scaled_dot_product_flash_attention_for_cpu: forward,
        operators._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        operators._addmm_activation: lambda bias, left, right, **_: 2 * left[0] * left[1] * right[1],
    }
