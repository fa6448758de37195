"""Demand: where deletion requests fall, with or without replacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3t.capacity.checks import counts_of, probabilities_of
from s3t.capacity.hypergeometric import log_miss
from s3t.errors import LayoutError
from s3t.records import Layout


@dataclass(frozen=True, eq=False)
class Demand:
    """Where requests fall. ``weights``: shape (shards, slices), indexed by shard and slice.

    With replacement they are the probabilities that a request falls in each slot; they may sum to less than 1 (the rest
    falls elsewhere). Without replacement they are counts of records: every request picks one of the records not
    requested yet, all equally likely, and there are as many requests as records. Raises LayoutError for anything else.
    """

    weights: NDArray[np.float64]
    replacement: bool = True

    def __post_init__(self) -> None:
        check, what = (probabilities_of, "probabilities") if self.replacement else (counts_of, "records")
        weights = check(self.weights)
        if weights.ndim != 2:
            raise LayoutError(f"{what} of shape {weights.shape} do not fit: give one per slot, shape (shards, slices)")
        weights = weights.copy()
        weights.flags.writeable = False
        object.__setattr__(self, "weights", weights)

    @classmethod
    def uniform(cls, shards: int, slices: int) -> Demand:
        """Every slot equally likely, for ever. LayoutError for an impossible layout."""
        Layout(shards, slices)
        return cls(np.full((shards, slices), 1.0 / (shards * slices)))

    @classmethod
    def of(cls, probabilities: ArrayLike) -> Demand:
        """Slots with the given probabilities, shape (shards, slices). LayoutError for impossible ones."""
        return cls(np.asarray(probabilities, dtype=np.float64))

    @classmethod
    def once(cls, records: ArrayLike) -> Demand:
        """Each record requested at most once; ``records``: how many lie in each slot, shape (shards, slices)."""
        return cls(np.asarray(records), replacement=False)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return int(self.weights.shape[0])

    @property
    def slices(self) -> int:
        """The number of slices of a shard."""
        return int(self.weights.shape[1])

    @property
    def total(self) -> float:
        """The sum of all weights: without replacement the number of records, and so of requests there can be."""
        return float(self.weights.sum())

    def check(self, requests: int) -> None:
        """Raise LayoutError where this demand cannot make so many requests."""
        if not self.replacement and requests > self.total:
            raise LayoutError(f"requests={requests} exceeds the {self.total:.0f} records: each is requested once")

    def unhit(self, weight: ArrayLike, requests: ArrayLike) -> NDArray[np.float64]:
        """Return the probability that the first ``requests`` requests all miss a set of slots with total ``weight``.

        (1 - w)^r with replacement; C(N - w, r) / C(N, r) without, to 1e-12 of its value for any N. The arguments
        broadcast. LayoutError for more requests than there are records.
        """
        w, r = np.broadcast_arrays(np.asarray(weight, dtype=np.float64), np.asarray(requests, dtype=np.float64))
        if not self.replacement:
            if r.size:
                self.check(int(r.max()))
            return np.asarray(np.exp(log_miss(self.total, w, r)))
        certain = w >= 1.0
        return np.asarray(np.where(certain, r == 0, np.exp(r * np.log1p(-np.where(certain, 0.0, w)))))
