"""Nodes trained as a group against the same nodes one after the other, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from benchmarks.comparing import ratio, rotated, summary
from benchmarks.large import CACHE, Work, node_task
from benchmarks.workbench import Workbench
from s3t.engine.activations import Activations
from s3t.engine.fast import train_node_fast
from s3t.engine.grouped import train_group
from s3t.engine.mode import GROUP
from s3t.errors import DivergedError


@dataclass(frozen=True)
class OneByOne:
    """The fast engine in bfloat16, node after node; with ``graphs`` its steps are replayed."""

    graphs: bool = False

    @property
    def mode(self) -> str:
        """What tells it from the others."""
        return "graphs, bfloat16" if self.graphs else "fast, bfloat16"

    def train(self, work: Work, tasks: Sequence[Any]) -> None:
        """Train the nodes."""
        for task, keep in tasks:
            train_node_fast(work.backbone, task, precision="bfloat16", keep=keep, graphs=self.graphs)


@dataclass(frozen=True)
class Together:
    """The engine ``grouped`` in bfloat16: all nodes in the same steps."""

    mode: str = "grouped, bfloat16"

    def train(self, work: Work, tasks: Sequence[Any]) -> None:
        """Train the nodes. DivergedError if one of them does."""
        given, keeps = [task for task, _ in tasks], [keep for _, keep in tasks]
        for done in train_group(work.backbone, given, precision="bfloat16", keeps=keeps):
            if isinstance(done, DivergedError):
                raise done


SIDES = (OneByOne(), OneByOne(graphs=True), Together())
"""The first is what the others are compared with."""


def in_turn(work: Work, sides: Sequence[OneByOne | Together], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each side takes for a group's nodes, round by round, each round from another side on.

    The nodes are first ones of their chains, on one slice, of seeds of their own; the slice's activations are there already.
    """
    seconds: dict[str, list[float]] = {side.mode: [] for side in sides}
    encoded, cache = work.resident(), Activations(CACHE)
    try:
        for number in range(rounds):
            tasks = [node_task(work, encoded, 1, None, cache, GROUP * number + i) for i in range(GROUP)]
            for side in rotated(sides, number):
                _wait(work)
                began = perf_counter()
                side.train(work, tasks)
                _wait(work)
                seconds[side.mode].append(perf_counter() - began)
    finally:
        cache.close()
    return seconds


def _wait(work: Work) -> None:
    if work.backbone.device.type == "cuda":
        torch.cuda.synchronize(work.backbone.device)


def add_rows(bench: Workbench, runs: Mapping[str, Sequence[float]], about: dict[str, Any], per_slice: int) -> None:
    """Add the seconds per node of each side, and how many times faster the later ones are than the first."""
    device = about.pop("device")
    common = {"method": "s3t", "kind": "measured", **about}
    usual, *_ = runs
    for mode, seconds in runs.items():
        extra = {"mode": mode, "group": GROUP, "records": per_slice, "device": device}
        bench.add(
            metric="seconds per node of a group",
            unit="s",
            extra=extra,
            **summary([s / GROUP for s in seconds]),
            **common,
        )
        if mode == usual:
            continue
        extra = {"mode": mode, "against": usual, "interval": "of the logarithms", "device": device}
        bench.add(
            metric="times faster than nodes one by one",
            unit="ratio",
            extra=extra,
            **ratio(runs[usual], seconds),
            **common,
        )
