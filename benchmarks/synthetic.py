"""A small made-up task for the smoke profile: which of three topics a sentence is about. It shows nothing about quality.

And features of any number of records that are no records, to be summed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from s3t.analytic.head import LEVELS
from s3t.analytic.sums import ROWS, Features
from s3t.records import Dataset, Record

_TOPICS = {
    "animals": ("cat", "dog", "horse", "whale", "sparrow"),
    "places": ("river", "city", "island", "valley", "harbour"),
    "numbers": ("seven", "twelve", "hundred", "dozen", "million"),
}
_FRAMES = ("what about the {} and the {}", "tell me of a {} near that {}", "is any {} like this {}")


def synthetic(train: int, validation: int, test: int) -> Dataset:
    """Return a data set of the given sizes, the same each time."""
    stream = random.Random(7)
    names = tuple(sorted(_TOPICS))

    def record(position: int) -> Record:
        label = stream.randrange(len(names))
        words = [stream.choice(_TOPICS[names[label]]) for _ in range(2)]
        return Record(f"made-{position:05d}", {"text": stream.choice(_FRAMES).format(*words)}, label)

    everything = [record(i) for i in range(train + validation + test)]
    cut = train + validation
    return Dataset("synthetic", names, tuple(everything[:train]), tuple(everything[train:cut]), tuple(everything[cut:]))


def made_features(records: int, features: int, classes: int) -> Iterator[tuple[Features, NDArray[np.float64]]]:
    """Yield chunks of quantised features (rows, features) of any size, and classes (rows,), the same each time."""
    draw = np.random.default_rng(7)
    for start in range(0, records, ROWS):
        rows = min(ROWS, records - start)
        made = draw.integers(-LEVELS, LEVELS, (rows, features), np.int16, endpoint=True)
        yield made, draw.integers(0, classes, rows).astype(np.float64)
