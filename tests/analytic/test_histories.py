"""Ten thousand random histories of additions and removals: sums and solved tensors have the bits of scratch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.analytic import histories
from s3t.analytic.head import AnalyticHead

HEADS = tuple(AnalyticHead(form=form, ridge=ridge) for form in ("ridge", "balanced", "prototypes") for ridge in (0.01, 1.0))  # type: ignore[arg-type]  # fmt: skip


def played(make: Any, count: int, seed: int) -> int:
    """Play histories over small sets of several shapes in turn, classes and numbers; each must end as scratch."""
    sets = [
        make(*shape, seed=seed, wide=wide)
        for shape in ((12, 3, 3), (20, 7, 2), (9, 5, 1), (30, 2, 4))
        for wide in (5, 900, 9000)
    ]
    equal = 0
    for number, made in enumerate(sets):
        share = count // len(sets) + (number < count % len(sets))
        heads = HEADS[:2] if made.classes == 1 else HEADS
        equal += histories(made.rows, made.answers, made.classes, heads, share, np.random.default_rng([seed, number]))
    return equal


def test_three_hundred_histories(make: Any) -> None:
    assert played(make, 300, 1) == 300


@pytest.mark.slow
def test_ten_thousand_histories(make: Any) -> None:
    assert played(make, 10_000, 2) == 10_000
