"""All that one node is trained from, wherever that happens, and how it is trained there.

A node's tensors are a function of its task alone: in which process it is trained, and what else that process trained, cannot
matter. Whoever trains it never sees the run's databases: rows and parents come with the assignment, tensors go back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3t.backbone import Backbone
from s3t.engine.activations import Activations
from s3t.engine.numerics import Numerics
from s3t.errors import DivergedError
from s3t.training import Keep, Task, Trained


@dataclass(frozen=True)
class Assignment:
    """A task, the kernel to do it with, and where its slices' activations go: ``keys`` by slice, taken at ``depths``."""

    kernel: str
    task: Task
    depths: Sequence[int]
    keys: Mapping[int, str]


def perform(given: Assignment, backbone: Backbone, activations: Activations) -> Trained:
    """Train the node of an assignment in this process."""
    return Numerics.of(given.kernel).train(backbone, given.task, _keeping(given, activations))


def perform_together(
    given: Sequence[Assignment], backbone: Backbone, activations: Activations
) -> list[Trained | DivergedError]:
    """Train the nodes of several assignments of one stage as a group, in this process."""
    tasks, keeps = [one.task for one in given], [_keeping(one, activations) for one in given]
    return Numerics.of(given[0].kernel).train_group(backbone, tasks, keeps)


def _keeping(given: Assignment, activations: Activations) -> Keep:
    def keep(piece: int, depth: int, make: Any) -> Any:
        return activations.get(given.keys[piece], depth, lambda: make(given.depths))

    return keep
