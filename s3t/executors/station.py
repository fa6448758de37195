"""A worker's side: the base model, kept activations, and what is done with an assignment that arrives.

What travels is packed: tensors as arrays, which any process can hold without sharing memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import s3t
from s3t.assignments import Assignment, perform
from s3t.backbone import environment, load
from s3t.blocks import ModelState
from s3t.engine.activations import Activations
from s3t.engine.numerics import Numerics
from s3t.errors import RunError, S3TError
from s3t.training import Trained

Arrays = dict[str, NDArray[np.float32]]
State = tuple[dict[str, Arrays], Arrays] | None
"""A parent's adapters and head."""
Work = tuple[Assignment, State]
Done = tuple[Arrays, Arrays, tuple[int, int, int]]
"""Adapter, head; optimizer steps, record passes, layer passes."""


VERSION = "s3t"
"""Under this name a worker tells the version of its code, beside its environment."""


@dataclass(frozen=True)
class Kit:
    """What a worker is set up with: the base model's name and digest, the kernel, threads, memory for activations.

    ``device`` None: the worker's own GPU if it was given one, else the CPU. ``folder``: where activations beyond
    ``cache_bytes`` are mapped; None: they are computed again, and nothing is ever written.
    """

    model: str
    digest: str
    kernel: str
    device: str | None
    threads: int
    cache_bytes: int
    folder: str | None


class Station:
    """One worker. An error while it is set up is told by its first answer: one that dies at its start could not say why."""

    def __init__(self, kit: Kit) -> None:
        torch.set_num_threads(kit.threads)
        self._kit = kit
        self._failure: str | None = None
        self._activations = Activations(kit.cache_bytes, None if kit.folder is None else Path(kit.folder))
        try:
            self._backbone = load(kit.model, None if kit.device is None else torch.device(kit.device))
        except Exception as error:
            self._failure = f"base model {kit.model!r} cannot be loaded by a worker ({error}); train without workers"
            return
        if self._backbone.digest != kit.digest:
            self._failure = f"base model {kit.model!r} is another one when a worker loads it; train without workers"

    def introduce(self) -> dict[str, Any]:
        """Return this worker's environment, and the version of its code. RunError if it could not be set up."""
        if self._failure:
            raise RunError(self._failure)
        return environment(self._backbone.device, Numerics.of(self._kit.kernel).mode) | {VERSION: s3t.__version__}

    def work(self, given: Work) -> Done | S3TError:
        """Train the node of an assignment; an error of ours is an answer, so that it travels as what it is."""
        try:
            trained = perform(unpack(given), self._backbone, self._activations)
        except S3TError as error:
            return error
        counts = (trained.optimizer_steps, trained.record_passes, trained.layer_passes)
        return _arrays(trained.adapter), _arrays(trained.head), counts


def pack(given: Assignment) -> Work:
    """Return an assignment as it travels."""
    parent = given.task.parent
    state = None if parent is None else ({n: _arrays(t) for n, t in parent.adapters.items()}, _arrays(parent.head))
    return replace(given, task=replace(given.task, parent=None)), state


def unpack(work: Work) -> Assignment:
    """Return the assignment that :func:`pack` packed."""
    given, state = work
    parent = state and ModelState({n: _tensors(t) for n, t in state[0].items()}, _tensors(state[1]))
    return replace(given, task=replace(given.task, parent=parent))


def received(done: Done | S3TError) -> Trained:
    """Return what a worker made, or raise the error that it answered with."""
    if isinstance(done, S3TError):
        raise done
    adapter, head, counts = done
    return Trained(_tensors(adapter), _tensors(head), *counts)


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
