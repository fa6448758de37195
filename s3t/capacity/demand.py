"""Demand: where deletion requests fall, with or without replacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from s3t.capacity.checks import probabilities_of
from s3t.errors import LayoutError
from s3t.records import Layout


@dataclass(frozen=True, eq=False)
class Demand:
    """Where requests fall. ``weights``: shape (shards, slices), indexed by shard and slice.

    With replacement they are the probabilities that a request falls in each slot; they may sum to less than 1 (the rest
    falls elsewhere). Without replacement they are counts of records: every request picks one of the records not
    requested yet, all equally likely, and there are as many requests as records.
    """

    weights: NDArray[np.float64]
    replacement: bool = True

    @classmethod
    def uniform(cls, shards: int, slices: int) -> Demand:
        """Every slot equally likely, for ever. LayoutError for an impossible layout."""
        Layout(shards, slices)
        return cls(np.full((shards, slices), 1.0 / (shards * slices)))

    @classmethod
    def of(cls, probabilities: ArrayLike) -> Demand:
        """Slots with the given probabilities, shape (shards, slices). LayoutError for impossible ones."""
        p = probabilities_of(probabilities)
        if p.ndim != 2:
            raise LayoutError(f"probabilities of shape {p.shape} do not fit: give one per slot, shape (shards, slices)")
        return cls(p)

    @classmethod
    def once(cls, records: ArrayLike) -> Demand:
        """Each record requested at most once; ``records``: how many lie in each slot, shape (shards, slices)."""
        counts = np.asarray(records)
        if counts.ndim != 2 or counts.size == 0:
            raise LayoutError(
                f"records of shape {counts.shape} do not fit: give a count per slot, shape (shards, slices)"
            )
        wrong = counts[~(counts >= 0)] if counts.dtype.kind in "iuf" else counts.ravel()
        if wrong.size or (counts != np.floor(counts)).any():
            raise LayoutError(
                f"records per slot must be whole numbers of at least 0, not {counts.ravel().tolist()[:8]}"
            )
        return cls(counts.astype(np.float64), replacement=False)

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

    def unhit(self, weight: ArrayLike, requests: ArrayLike) -> NDArray[np.float64]:
        """Return the probability that the first ``requests`` requests all miss a set of slots with total ``weight``.

        (1 - w)^r with replacement; C(N - w, r) / C(N, r) without. The arguments broadcast.
        """
        w, r = np.broadcast_arrays(np.asarray(weight, dtype=np.float64), np.asarray(requests, dtype=np.float64))
        if self.replacement:
            return np.asarray(np.clip(1.0 - w, 0.0, 1.0) ** r)
        n = self.total
        possible = r <= n - w + 0.5
        left, after = np.where(possible, n - w, n), np.where(possible, n - w - r, n - r)
        logs = gammaln(left + 1) - gammaln(after + 1) - gammaln(n + 1) + gammaln(n - r + 1)
        return np.asarray(np.where(possible, np.exp(np.minimum(logs, 0.0)), 0.0))
