"""Analytic heads by their core alone, without a run: features of a data set, random histories, deletions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch

from s3t.analytic.choosing import Numbers, Part, read
from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead, Pooling
from s3t.analytic.solving import Linear, Workspace, solve
from s3t.analytic.sums import Features, Sums
from s3t.backbone import Backbone
from s3t.records import Dataset

STEPS = 6
"""Times that records come or go in a history."""


@dataclass(frozen=True)
class Featured:
    """A data set's splits as a head reads them; ``seconds``: what reading a record took, mean over all."""

    head: AnalyticHead
    classes: int
    train: Part
    validation: Part
    test: Part
    seconds: float

    @property
    def records(self) -> int:
        """How many records were read."""
        return sum(len(part.rows) for part in (self.train, self.validation, self.test))

    def narrowed(self, poolings: tuple[Pooling, ...], backbone: Backbone) -> Featured:
        """Return what a head with some of the poolings reads: no record is read again. Random features are not kept."""
        layers, poolings_read = len(self.head.layers) or backbone.layers, self.head.poolings
        grid = np.arange(layers * len(poolings_read) * backbone.hidden).reshape(layers, len(poolings_read), -1)
        chosen = grid[:, [poolings_read.index(pooling) for pooling in poolings]].reshape(-1).tolist()
        parts = {name: getattr(self, name).columns(chosen) for name in ("train", "validation", "test")}
        return replace(self, head=replace(self.head, poolings=poolings, random=0), **parts)


def featured(backbone: Backbone, data: Dataset, head: AnalyticHead, max_length: int, seed: int) -> Featured:
    """Read the records of all splits, each by itself, cut to ``max_length`` tokens."""
    reader, started = Reader(backbone, head, seed), perf_counter()
    train, validation, test = (
        read(reader, backbone, records, data.classes, max_length)
        for records in (data.train, data.validation, data.test)
    )
    seconds = (perf_counter() - started) / sum(len(one.rows) for one in (train, validation, test))
    return Featured(head, len(data.classes), train, validation, test, seconds)


def histories(
    rows: Features,
    answers: Numbers,
    classes: int,
    heads: Sequence[AnalyticHead],
    count: int,
    draw: np.random.Generator,
    most: int | None = None,
) -> int:
    """Play random histories and return how many end with the bits of scratch: sums, and what a head, each in turn, solves.

    In a history records come and go, any number at a time and in any order, out of ``most`` drawn for it (None: of all); then
    sums are taken of the retained records alone. Where none is retained the sums must be those of no record.
    """
    equal = 0
    for number in range(count):
        pool, head = draw.permutation(len(rows))[:most], heads[number % len(heads)]
        sums, inside = Sums.empty(rows.shape[1], classes), np.zeros(len(rows), bool)
        for _ in range(STEPS):
            adding = bool(draw.random() < 0.6)
            able = draw.permutation(pool[inside[pool] != adding])
            chosen = able[: draw.integers(0, len(able), endpoint=True)]
            (sums.add if adding else sums.remove)(rows[chosen], answers[chosen])
            inside[chosen] = adding
        scratch = Part(rows, answers).sums(classes, np.flatnonzero(inside))
        equal += sums.same(scratch) and (not inside.any() or same(solve(sums, head), solve(scratch, head)))
    return equal


def same(one: Linear, other: Linear) -> bool:
    """Say whether two solutions agree in every bit."""
    theirs = other.tensors()
    return all(
        torch.equal(tensor.view(torch.int64), theirs[n].view(torch.int64)) for n, tensor in one.tensors().items()
    )


@dataclass(frozen=True)
class Deletion:
    """Seconds of one deletion: out of the sums, and the solution of what is left."""

    update: float
    solution: float


def deletions(part: Part, classes: int, head: AnalyticHead, victims: Sequence[int]) -> list[Deletion]:
    """Delete records one by one, with the solution after each as a server makes it, timed.

    The first, which warms up, is not counted.
    """
    sums, found = part.sums(classes), []
    workspace = Workspace(part.rows.shape[1])
    for victim in victims:
        started = perf_counter()
        sums.remove(part.rows[victim : victim + 1], part.answers[victim : victim + 1])
        removed = perf_counter()
        solve(sums, head, workspace)
        found.append(Deletion(removed - started, perf_counter() - removed))
    return found[1:]
