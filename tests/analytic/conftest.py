"""Small made-up records for heads: quantised features with answers that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from s3t.analytic.sums import Sums


@dataclass(frozen=True)
class Made:
    """``rows`` (records, features), int16; ``answers`` (records,); ``classes``: 1 for numbers."""

    rows: Any
    answers: Any
    classes: int

    def sums(self, chosen: Any = None) -> Sums:
        """Return the sums over the chosen records, or all, in ascending order."""
        kept = np.arange(len(self.rows)) if chosen is None else np.sort(np.asarray(chosen, dtype=np.int64))
        return Sums.over(self.rows.shape[1], self.classes, [(self.rows[kept], self.answers[kept])])


def make(records: int, features: int, classes: int, seed: int = 0, wide: int = 900) -> Made:
    """Return records whose features lie around their class's mean, or whose number is linear in them."""
    draw = np.random.default_rng([seed, records, features, classes])
    if classes == 1:
        rows = draw.integers(-wide, wide, (records, features)).astype(np.int16)
        slope = draw.normal(size=features) / (wide * features)
        return Made(rows, np.clip(0.1 + rows @ slope, -1, 1), 1)
    answers = np.arange(records) % classes
    means = draw.integers(-wide, wide, (classes, features))
    rows = (means[answers] + draw.normal(0, wide / 2, (records, features))).round().astype(np.int16)
    return Made(rows, answers.astype(float), classes)


@pytest.fixture(name="make")
def _make() -> Any:
    """Makes records: :func:`make`."""
    return make
