"""Ways to train the same schedule on the same records: S3T's engines and the stock pipeline, each metered the same way.

What a run includes on either side: partition, tokens, training of every node, everything written. What it does not: loading
packages and the base model, which both sides share.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks import ablation as ablated
from benchmarks.flops import count_flops
from benchmarks.life import accuracy
from benchmarks.metering import Meter, Usage
from benchmarks.workbench import describe, slot_key
from s3t.backbone import Backbone
from s3t.plan import s3t_plan
from s3t.records import Dataset, Layout, Recipe
from s3t.resources import Resources

if TYPE_CHECKING:
    from baselines.stock.options import Options


@dataclass(frozen=True)
class Job:
    """What is to be trained: all of S3T's nodes on ``data``, below ``folder``, which the run empties afterwards."""

    data: Dataset
    layout: Layout
    recipe: Recipe
    seed: int
    backbone: Backbone
    folder: Path

    @property
    def nodes(self) -> int:
        """How many stages the stock pipeline trains: a node per stage, order and shard."""
        return self.layout.shards * self.layout.budget * self.layout.slices


@dataclass(frozen=True)
class Outcome:
    """What a run used and trained, and the share of the test records that it answers rightly (None without any)."""

    usage: Usage
    record_passes: int
    layer_passes: int
    steps: int
    accuracy: float | None


class Side(Protocol):
    """One way to train a job."""

    @property
    def method(self) -> str:
        """``s3t`` or ``stock``."""

    @property
    def mode(self) -> str:
        """What tells it from others of the same method."""

    @property
    def precision(self) -> str:
        """The type of its matrix products."""

    def run(self, job: Job) -> Outcome:
        """Train, measure, predict the test records, and leave nothing behind."""


@dataclass(frozen=True)
class Ours:
    """S3T's own training. ``around``: entered around the run, for ablations that switch a part of the engine off."""

    mode: str
    engine: str = "reference"
    precision: str = "float32"
    resources: Resources = field(default_factory=Resources)
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    method: str = "s3t"

    def run(self, job: Job) -> Outcome:
        """Fit a system of this mode."""
        plan = {"layout": job.layout, "recipe": job.recipe, "backbone": job.backbone, "data": job.data}
        how = {"engine": self.engine, "precision": self.precision, "resources": self.resources}
        system = describe(job.folder / "run", "s3t", **plan, seed=job.seed, **how)  # type: ignore[arg-type]
        try:
            with self.around():
                with Meter(children=self.resources.workers > 1) as meter:
                    cost = system.fit(job.data.train)
                found = accuracy(system, job.data.test)[0] if job.data.test else None
        finally:
            system.close()
            shutil.rmtree(job.folder, ignore_errors=True)
        return Outcome(meter.usage, cost.record_passes, cost.layer_passes, cost.optimizer_steps, found)


@dataclass(frozen=True)
class Stock:
    """The stock pipeline with the Trainer's ``options``."""

    mode: str
    options: Options
    method: str = "stock"

    @property
    def precision(self) -> str:
        """The type of its matrix products."""
        return str(self.options.precision)

    def run(self, job: Job) -> Outcome:
        """Fit all chains."""
        from baselines.stock.text import partition, text_base, text_examples
        from baselines.stock.training import fit

        base, classes = text_base(job.backbone), len(job.data.classes)
        plan = s3t_plan(job.layout, job.recipe, job.backbone.layers)
        try:
            with Meter(children=self.options.workers > 0) as meter:
                examples = text_examples(job.backbone, job.data.train, job.recipe)
                slots = partition(slot_key(job.seed), job.data.train, job.layout)
                fitted = fit(
                    base, plan, job.recipe, examples, slots, classes, job.folder, options=self.options, seed=job.seed
                )
            found = None
            if job.data.test:
                answers = fitted.predict(text_examples(job.backbone, job.data.test, job.recipe)).argmax(axis=1)
                found = float(np.mean(answers == np.array([record.label for record in job.data.test])))
        finally:
            shutil.rmtree(job.folder, ignore_errors=True)
        return Outcome(meter.usage, fitted.records, fitted.layer_passes, fitted.steps, found)


def ours() -> list[Ours]:
    """Return S3T's modes: the reference engine, and the fast one in both precisions."""
    return [
        Ours("reference"),
        Ours("fast, float32", "fast", "float32"),
        Ours("fast, bfloat16", "fast", "bfloat16"),
    ]


def together() -> Ours:
    """Return the fast engine in bfloat16 with two worker processes, started anew for each run as a user's are."""
    return Ours("fast, bfloat16, 2 workers", "fast", "bfloat16", ablated.WORKERS)


def ablation(*, precision: str = "bfloat16", small: bool = False) -> list[Ours]:
    """Return the modes of the ablation table: the whole fast engine, then one part at a time switched off or replaced.

    ``small``: without workers and compiled layers, which take long to begin.
    """
    whole = Ours(f"fast, {precision}", "fast", precision)
    chosen = ablated.PARTS if small else ablated.PARTS | ablated.LONG
    parts = [dataclasses.replace(whole, mode=name, around=around) for name, around in chosen.items()]
    files = dataclasses.replace(whole, mode="activations in files", resources=ablated.IN_FILES)
    pooled = dataclasses.replace(whole, mode="2 workers", resources=ablated.WORKERS)
    return [
        whole,
        *parts,
        files,
        *([] if small else [pooled]),
        *(mode for mode in reversed(ours()) if mode.mode != whole.mode),
    ]


def counted(side: Side, job: Job) -> float:
    """Return the operations per record pass of ``side`` on ``job``, from an untimed run of it without test records."""
    bare = Dataset(job.data.name, job.data.classes, job.data.train, (), ())
    passes: list[int] = []

    def work() -> None:
        passes.append(side.run(Job(bare, job.layout, job.recipe, job.seed, job.backbone, job.folder)).record_passes)

    total = count_flops(work)
    return total / passes[0]


def top_operations(side: Side, job: Job, count: int = 15) -> list[dict[str, Any]]:
    """Run ``side`` under torch's profiler; return its operations by their own time, with the share of the run's seconds.

    The last entry is what passed outside torch's operations (Python, files). On a GPU the device's time is taken.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = job.backbone.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        outcome = side.run(job)
        if cuda:
            torch.cuda.synchronize()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6

    events = sorted((event for event in profiler.key_averages() if own(event) > 0), key=own, reverse=True)
    seconds = outcome.usage.seconds
    named = [{"op": e.key, "calls": int(e.count), "seconds": own(e), "share": own(e) / seconds} for e in events]
    rest = max(0.0, seconds - sum(own(event) for event in events))
    outside = {"op": "outside torch's operations", "calls": 0, "seconds": rest, "share": rest / seconds}
    return [*named[:count], outside]
