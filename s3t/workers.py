"""Worker processes that train nodes at the same time, each on its share of the threads.

A node's tensors are a function of its task alone: which worker trains it, and what else that worker trained, cannot matter.
Workers never see the run's databases; they get rows and parents with the assignment and give tensors back.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3t.backbone import Backbone, load
from s3t.blocks import ModelState
from s3t.engine.activations import Activations
from s3t.engine.numerics import Numerics
from s3t.errors import DivergedError, RunError
from s3t.training import Keep, Task, Trained

Arrays = dict[str, NDArray[np.float32]]


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


class Workers:
    """``number`` processes, each with the base model and activations of its own. Use as a context manager.

    ``folder``: where activations beyond ``cache_bytes`` (of all workers together) are mapped, each worker in its own part.
    Raises RunError at the first result if the base model cannot be loaded again by its name, or is another one then.
    """

    def __init__(self, number: int, backbone: Backbone, cache_bytes: int, folder: Path) -> None:
        self.threads = max(1, torch.get_num_threads() // number)
        context = multiprocessing.get_context("spawn")
        about = (backbone.name, str(backbone.device), backbone.digest, self.threads, cache_bytes // number)
        self._pools = [
            ProcessPoolExecutor(1, context, _begin, (*about, str(folder / f"worker-{i}"))) for i in range(number)
        ]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, worker: int, given: Assignment) -> Future[Any]:
        """Hand an assignment to one of the workers; its result goes through :func:`outcome`. RunError if its process died."""
        packed = (_packed_state(given.task.parent), replace(given, task=replace(given.task, parent=None)))
        with _alive():
            return self._pools[worker].submit(_work, packed)


def outcome(future: Future[Any]) -> Trained:
    """Return a finished assignment's outcome, or raise what it raised. RunError if its process died."""
    with _alive():
        adapter, head, counts = future.result()
    return Trained(_unpacked(adapter), _unpacked(head), *counts)


@contextmanager
def _alive() -> Iterator[None]:
    """Say what it means that a pool is broken: at a result, or already when the next task is handed over."""
    try:
        yield
    except BrokenProcessPool as error:
        raise RunError("a worker process died (out of memory?); what is finished is kept: try fewer workers") from error


_here: dict[str, Any] = {}


def _begin(name: str, device: str, digest: str, threads: int, cache_bytes: int, folder: str) -> None:
    torch.set_num_threads(threads)
    Finalize(None, os._exit, (0,), exitpriority=0)  # taking all modules apart would take two seconds, and give nothing
    _here["failure"] = None
    try:
        _here["backbone"] = load(name, torch.device(device))
        if _here["backbone"].digest != digest:
            _here["failure"] = f"base model {name!r} is another one when it is loaded again; train with one worker"
    except Exception as error:  # an initialiser that raises breaks the pool and says nothing
        _here["failure"] = f"base model {name!r} cannot be loaded by a worker ({error}); train with one worker"
    _here["activations"] = Activations(cache_bytes, Path(folder))


def _work(packed: tuple[Any, Assignment]) -> tuple[Arrays, Arrays, tuple[int, int, int]]:
    if _here["failure"]:
        raise RunError(_here["failure"])
    parent, given = packed
    state = (
        None if parent is None else ModelState({n: _unpacked(t) for n, t in parent[0].items()}, _unpacked(parent[1]))
    )
    whole = replace(given, task=replace(given.task, parent=state))
    done = perform(whole, _here["backbone"], _here["activations"])
    return _packed(done.adapter), _packed(done.head), (done.optimizer_steps, done.record_passes, done.layer_passes)


def _packed_state(state: ModelState | None) -> tuple[dict[str, Arrays], Arrays] | None:
    return None if state is None else ({n: _packed(t) for n, t in state.adapters.items()}, _packed(state.head))


def _packed(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _unpacked(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
