"""The fairest form of the opponent: every combination of the Trainer's options timed on the same rows, the fastest taken."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import get_args

import torch

from baselines.stock.model import Base, Classifier
from baselines.stock.options import Attention, Options, Precision
from baselines.stock.training import Examples, own_randomness, train_stage
from s3t.errors import DataError
from s3t.plan import Plan
from s3t.records import Recipe


@dataclass(frozen=True)
class Trial:
    """One combination. ``records_per_second``: of each round, over all stages of one chain, the Trainer's start included.

    ``same_schedule``: trains with the recipe's batch size, so that quality is comparable.
    """

    options: Options
    records_per_second: tuple[float, ...]
    same_schedule: bool

    @property
    def best(self) -> float:
        """The fastest round."""
        return max(self.records_per_second)


@dataclass(frozen=True)
class Tuned:
    """``options``: the fastest of those with the same schedule. ``trials``: all that were timed, fastest first."""

    options: Options
    trials: tuple[Trial, ...]


def grid(recipe: Recipe, *, by_length: bool = True, workers: Sequence[int] = (0, 2)) -> list[Options]:
    """Return precision (float32, bfloat16, bfloat16 with a bfloat16 base) x attention (sdpa, eager) x grouping by length x
    workers at the recipe's batch size, then twice that size."""
    kinds: tuple[tuple[Precision, bool], ...] = (("float32", False), ("bfloat16", False), ("bfloat16", True))
    grouping = (False, True) if by_length else (False,)
    found = [
        Options(precision, grouped, count, half_base=half, attention=attention)
        for (precision, half), attention, grouped, count in product(kinds, get_args(Attention), grouping, workers)
    ]
    double = 2 * recipe.batch_size
    return [*found, *(replace(o, batch_size=double) for o in found if o.workers == workers[0])]


def tune(
    base: Base,
    plan: Plan,
    recipe: Recipe,
    examples: Examples,
    classes: int,
    *,
    options: Sequence[Options] | None = None,
    records: int = 512,
    rounds: int = 2,
    seed: int = 0,
) -> Tuned:
    """Time each combination on one epoch of every stage over ``records`` rows, drawn once and the same for all.

    Rounds alternate between the combinations, so that a slow spell of the machine meets all. The first round of each is
    preceded by a few untimed steps. Raises DataError without rows.
    """
    if not len(examples) or records < 1 or rounds < 1:
        raise DataError(
            f"tuning on {min(len(examples), records)} rows in {rounds} rounds is not possible: give at least one"
        )
    base.check(plan)
    draw = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:records].tolist()
    tried = list(grid(recipe, by_length=base.by_length) if options is None else options)
    speeds: list[list[float]] = [[] for _ in tried]
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds + 1):
            for place, option in enumerate(tried):
                rows = draw if number else draw[: 2 * recipe.batch_size]
                speed = _speed(base, plan, recipe, examples, rows, classes, option, Path(scratch), seed)
                if number:
                    speeds[place].append(speed)
    trials = [
        Trial(option, tuple(speed), option.batch_size in (None, recipe.batch_size))
        for option, speed in zip(tried, speeds, strict=True)
    ]
    trials.sort(key=lambda trial: -trial.best)
    comparable = [trial for trial in trials if trial.same_schedule]
    if not comparable:
        raise DataError(
            f"none of the {len(tried)} combinations has the recipe's batches of {recipe.batch_size}; add one"
        )
    return Tuned(comparable[0].options, tuple(trials))


def _speed(
    base: Base,
    plan: Plan,
    recipe: Recipe,
    examples: Examples,
    rows: Sequence[int],
    classes: int,
    options: Options,
    folder: Path,
    seed: int,
) -> float:
    once, seconds = replace(recipe, epochs=1.0), 0.0
    base = base.prepared(options)
    with own_randomness(seed):
        model = Classifier(base, once, classes)
        for stage in plan.stages:
            model.grow(stage)
            began = time.perf_counter()
            train_stage(model, examples, rows, once, folder, options, seed)
            seconds += time.perf_counter() - began
    return len(rows) * len(plan.stages) / seconds
