"""A worker's side: the base model, kept activations, and what is done with an assignment that arrives.

What travels is packed: tensors by a channel of their own (:mod:`s3t.executors.channels`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import s3t
from s3t.assignments import Assignment, perform
from s3t.backbone import environment, load
from s3t.blocks import ModelState
from s3t.engine.activations import Activations
from s3t.engine.numerics import Numerics
from s3t.errors import RunError, S3TError
from s3t.exchange import Exchange
from s3t.executors.channels import Channel, channel
from s3t.training import Trained

State = tuple[dict[str, Any], Any] | None
"""A parent's adapters and head, as the channel sent them."""
Work = tuple[Assignment, State]
Done = tuple[Any, Any, tuple[int, int, int]]
"""Adapter and head, as the channel sent them; optimizer steps, record passes, layer passes."""
VERSION = "s3t"
"""Under this name a worker tells the version of its code, beside its environment."""


@dataclass(frozen=True)
class Kit:
    """What a worker is set up with: the base model's name and digest, the kernel, threads, memory for activations.

    ``device`` None: the worker's own GPU if it was given one, else the CPU. ``folder``: where activations beyond
    ``cache_bytes`` are mapped; None: they are computed again, and nothing is ever written. ``exchange``: the shared store by
    which tensors travel, None: they come and go with the call.
    """

    model: str
    digest: str
    kernel: str
    device: str | None
    threads: int
    cache_bytes: int
    folder: str | None
    exchange: str | None = None


class Station:
    """One worker. An error while it is set up is told by its first answer: one that dies at its start could not say why."""

    def __init__(self, kit: Kit) -> None:
        torch.set_num_threads(kit.threads)
        self._kit = kit
        self._failure: str | None = None
        self._activations = Activations(kit.cache_bytes, None if kit.folder is None else Path(kit.folder))
        try:
            self._channel = channel(None if kit.exchange is None else Exchange(kit.exchange))
            self._backbone = load(kit.model, None if kit.device is None else torch.device(kit.device))
        except RunError as error:
            self._failure = str(error)
            return
        except Exception as error:  # transformers raises many kinds, and a worker that dies here could not say why
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
            trained = perform(unpack(given, self._channel), self._backbone, self._activations)
            counts = (trained.optimizer_steps, trained.record_passes, trained.layer_passes)
            return self._channel.send(trained.adapter), self._channel.send(trained.head), counts
        except S3TError as error:
            return error


def pack(given: Assignment, by: Channel) -> Work:
    """Return an assignment as it travels."""
    parent = given.task.parent
    state = None if parent is None else ({n: by.send(t) for n, t in parent.adapters.items()}, by.send(parent.head))
    return replace(given, task=replace(given.task, parent=None)), state


def unpack(work: Work, by: Channel) -> Assignment:
    """Return the assignment that :func:`pack` packed."""
    given, state = work
    parent = state and ModelState({n: by.receive(t) for n, t in state[0].items()}, by.receive(state[1]))
    return replace(given, task=replace(given.task, parent=parent))


def received(done: Done | S3TError, by: Channel) -> Trained:
    """Return what a worker made, or raise the error that it answered with."""
    if isinstance(done, S3TError):
        raise done
    adapter, head, counts = done
    return Trained(by.receive(adapter), by.receive(head), *counts)
