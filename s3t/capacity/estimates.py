"""Simulated means with their standard errors, and what a simulation returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from s3t.errors import LayoutError


@dataclass(frozen=True)
class Estimate:
    """A simulated mean over ``trials`` independent trials.

    ``standard_error``: of the mean; NaN for a single trial. ``never``: trials in which the event did not occur; with any
    of them the mean is infinite and the standard error NaN.
    """

    mean: float
    standard_error: float
    trials: int
    never: int = 0

    @classmethod
    def of(cls, samples: NDArray[np.float64]) -> Estimate:
        """Return the estimate from one number per trial; infinity stands for "never"."""
        trials, never = len(samples), int(np.isinf(samples).sum())
        if never:
            return cls(math.inf, math.nan, trials, never)
        error = float(samples.std(ddof=1)) / math.sqrt(trials) if trials > 1 else math.nan
        return cls(float(samples.mean()), error, trials)

    @classmethod
    def of_sums(cls, total: float, squares: float, trials: int) -> Estimate:
        """Return the estimate from a sum and a sum of squares over ``trials``."""
        mean = total / trials
        variance = max(squares - total * mean, 0.0) / (trials - 1) if trials > 1 else math.nan
        return cls(mean, math.sqrt(variance / trials), trials)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the normal interval of the mean. LayoutError unless 0 < confidence < 1."""
        if not 0.0 < confidence < 1.0:
            raise LayoutError(f"confidence={confidence} is not possible: give a level between 0 and 1")
        half = float(ndtri((1 + confidence) / 2)) * self.standard_error
        return self.mean - half, self.mean + half

    def deviation(self, exact: float) -> float:
        """Return how many standard errors the mean lies above ``exact``; 0 where both are the same number or infinity."""
        if math.isinf(self.mean) or math.isinf(exact):
            return 0.0 if self.mean == exact else math.inf
        if math.isclose(self.mean, exact, rel_tol=1e-12, abs_tol=1e-12):
            return 0.0
        gap = self.mean - exact
        return gap / self.standard_error if self.standard_error > 0.0 else math.copysign(math.inf, gap)


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a simulation found.

    ``deaths``: requests until the first shard is dead, half of them (ceil(shards / 2)) and the last, shape (3, trials),
    the deadly request counted; infinity where none was by the end. ``after``: the numbers of requests at which these are
    estimated: ``best_length``, slices behind the served chain, mean over all shards (0 for a dead one); ``in_service``, slices
    behind served chains as a share of all slices; ``records_in_service``, records there as a share of all; ``live``, the
    number of live shards.
    """

    deaths: NDArray[np.float64]
    after: tuple[int, ...] = ()
    best_length: tuple[Estimate, ...] = ()
    in_service: tuple[Estimate, ...] = ()
    records_in_service: tuple[Estimate, ...] = ()
    live: tuple[Estimate, ...] = ()

    @property
    def trials(self) -> int:
        """How many independent lives were simulated."""
        return int(self.deaths.shape[1])

    @cached_property
    def first(self) -> Estimate:
        """Requests until the first shard is dead."""
        return Estimate.of(self.deaths[0])

    @cached_property
    def half(self) -> Estimate:
        """Requests until half of the shards are dead."""
        return Estimate.of(self.deaths[1])

    @cached_property
    def last(self) -> Estimate:
        """Requests until no shard is live: the deletion capacity."""
        return Estimate.of(self.deaths[2])
