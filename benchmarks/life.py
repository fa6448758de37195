"""One life of an unlearning system, through the contract alone: fit, then a stream of deletions, measured as it goes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s3t.contract import Cost, UnlearningSystem
from s3t.errors import OfflineError
from s3t.records import Record


@dataclass(frozen=True)
class Point:
    """State after ``deletions``. ``cost`` is cumulative; ``derived`` if part of it was extrapolated, not spent.

    ``accuracy``: share of the test records answered rightly; an offline system answers none.
    """

    deletions: int
    accuracy: float
    offline: bool
    cost: Cost
    derived: bool


@dataclass(frozen=True)
class Life:
    """The points of a life and what each deletion that was executed on its own cost (record passes, down seconds)."""

    points: tuple[Point, ...]
    per_deletion: tuple[Cost, ...]


def stream(ids: Sequence[str], length: int, seed: int) -> list[str]:
    """Return ``length`` distinct ids, uniformly at random: the same requests for every method with the same seed."""
    return random.Random(f"s3t deletions {seed}").sample(sorted(ids), length)


def accuracy(system: UnlearningSystem, test: Sequence[Record]) -> tuple[float, bool]:
    """Return (share of ``test`` classified rightly, whether the system was offline)."""
    try:
        scores = system.predict([record.inputs for record in test])
    except OfflineError:
        return 0.0, True
    return float(np.mean(scores.argmax(axis=1) == np.array([record.label for record in test]))), False


def live(
    system: UnlearningSystem,
    test: Sequence[Record],
    requests: Sequence[str],
    checkpoints: Sequence[int],
    *,
    individually: int | None,
) -> Life:
    """Delete ``requests`` one by one, measuring at ``checkpoints``.

    ``individually``: after that many, requests are batched up to the next checkpoint (for systems that retrain at each
    deletion: by exactness the outcome is the same, and the cost of single requests is extrapolated from the first ones).
    None: all are executed one by one.
    """
    upfront = system.cost()
    points = [Point(0, *accuracy(system, test), upfront, False)]
    singles: list[Cost] = []
    done = 0
    for checkpoint in [c for c in checkpoints if c > 0]:
        while done < checkpoint:
            single = individually is None or done < individually
            step = requests[done : done + 1] if single else requests[done:checkpoint]
            cost = system.delete(step).cost
            done += len(step)
            if single:
                singles.append(cost)
        derived = len(singles) < done
        points.append(Point(done, *accuracy(system, test), upfront + _total(singles, done), derived))
    return Life(tuple(points), tuple(singles))


def _total(singles: Sequence[Cost], count: int) -> Cost:
    """Return what ``count`` single deletions cost: the sum of those executed, scaled up if there were fewer."""
    total = sum(singles, Cost())
    if len(singles) >= count:
        return total
    scale = count / len(singles)
    return Cost(
        nodes=round(total.nodes * scale),
        record_passes=round(total.record_passes * scale),
        layer_passes=round(total.layer_passes * scale),
        optimizer_steps=round(total.optimizer_steps * scale),
        bytes=round(total.bytes * scale),
        seconds=total.seconds * scale,
        down_seconds=total.down_seconds * scale,
    )
