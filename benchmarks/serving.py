"""Systems that serve made-up tensors, ways to score the same chains, and streams of requests; nothing here is trained.

What serving costs depends on the shapes of tensors and not on their values, so nodes get random ones. Files, formats and code
paths are those of every other run.
"""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparing import rotated
from s3t.backbone import Backbone, Encoded
from s3t.blocks import ModelState
from s3t.building import Builder
from s3t.describing import describe
from s3t.engine import lora
from s3t.engine.encoder import Encoder
from s3t.engine.mode import Mode
from s3t.engine.numerics import Numerics, Served
from s3t.facts import Facts
from s3t.graph import Node
from s3t.partition import slot
from s3t.plan import Plan, s3t_plan
from s3t.records import Inputs, Layout, Recipe, Record
from s3t.resources import Resources
from s3t.rows import StoredRow
from s3t.runs import Run
from s3t.serving import Serving
from s3t.system import System
from s3t.training import Trained

KEY = hashlib.sha256(b"s3t serving benchmark key").digest()
CLASSES = ("a", "b", "c", "d", "e", "f")
WORDS = ("river", "city", "island", "valley", "dog", "horse", "seven", "twelve", "what", "about", "the", "near")


class MadeUp(Builder):
    """A builder whose nodes are random tensors of the right shapes, from a generator seeded with the node's name."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        """Return the node's tensors; no row is looked at."""
        stage, recipe = self.stage(plan, node), self.run.config.recipe
        seed = int(hashlib.sha256(node.name.encode()).hexdigest()[:8], 16)
        generator = torch.Generator().manual_seed(seed)

        def made(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) * 0.02

        shapes = lora.fresh(Encoder.of(self.backbone, "float32"), stage, recipe, 0)
        head = {"weight": made(len(CLASSES), self.backbone.hidden), "bias": made(len(CLASSES))}
        return Trained({name: made(*tensor.shape) for name, tensor in shapes.items()}, head, 0, 0, 0)


class Timed(Serving):
    """Serving that notes how long each switch of chains took."""

    def __init__(self, run: Run, backbone: Backbone) -> None:
        super().__init__(run, backbone)
        self.switches: list[float] = []

    def drop(self, facts: Facts) -> None:
        """Switch, with whatever the engine leaves for later done at once, and note the seconds if a shard got another chain."""
        before, began = self.models, time.perf_counter()
        super().drop(facts)
        after = self.snapshot()[0]
        seconds = time.perf_counter() - began
        if any(shard in after and after[shard][0] != pair[0] for shard, pair in before.items()):
            self.switches.append(seconds)


class MadeUpSystem(System):
    """A system of random tensors whose switches are timed."""

    def _builder(self, run: Run, facts: Facts) -> Builder:
        return MadeUp(run, self._loaded(), facts, Resources())

    def _serving_for(self, run: Run) -> Serving:
        return Timed(run, self._loaded())

    @property
    def serving(self) -> Timed:
        """What serves now, in line with the ledger."""
        found = self.served()
        assert isinstance(found, Timed)
        return found

    @property
    def hit(self) -> int:
        """How many slots deletions have hit."""
        return len(self._opened()[1].hits)


class Runs:
    """Runs of one layout by kernel, each made once and served as copies."""

    def __init__(self, folder: Path, backbone: Backbone, layout: Layout, recipe: Recipe) -> None:
        self._folder, self._backbone, self._layout, self._recipe = folder, backbone, layout, recipe
        self._copies = 0
        self.records = [Record(f"r-{i:03d}", {"text": text(8, i)}, i % len(CLASSES)) for i in range(self._count())]

    def _count(self) -> int:
        """Return the fewest hundreds of records that leave no slot empty."""
        slots = {(shard, piece) for shard in range(self._layout.shards) for piece in range(self._layout.slices)}
        count = 0
        while slots:
            slots -= {slot(KEY, f"r-{i:03d}", self._layout) for i in range(count, count + 100)}
            count += 100
        return count

    def system(self, mode: Mode) -> MadeUpSystem:
        """Return a healthy system of its own."""
        home = self._folder / mode.kernel.replace(":", "-")
        plan = s3t_plan(self._layout, self._recipe, self._backbone.layers)
        config = describe(plan, self._recipe, self._backbone, {"classes": list(CLASSES)}, 0, mode)
        if not home.exists():
            made = MadeUpSystem(home, config, key=KEY, backbone=self._backbone)
            made.fit(self.records)
            made.close()
        self._copies += 1
        copy = self._folder / f"copy-{self._copies:04d}"
        shutil.copytree(home, copy)
        system = MadeUpSystem(copy, config, key=KEY, backbone=self._backbone)
        system.fit(self.records)
        return system


def text(words: int, seed: int) -> str:
    """Return a text of so many words."""
    stream = random.Random(seed)
    return " ".join(stream.choice(WORDS) for _ in range(words))


def texts(count: int, tokens: int, seed: int) -> list[Inputs]:
    """Return texts of 0.7 to 1 times ``tokens`` words each, two left out for the special tokens."""
    stream = random.Random(seed)
    return [{"text": text(max(1, round(tokens * stream.uniform(0.7, 1.0)) - 2), seed + i)} for i in range(count)]


def damage(system: MadeUpSystem, records: Sequence[Record], seed: int, slots: int) -> int:
    """Delete records drawn at random until ``slots`` slots are hit; return how many were deleted."""
    drawn = random.Random(seed).sample([record.id for record in records], len(records))
    count = 0
    while system.hit < slots:
        system.delete([drawn[count]])
        count += 1
    return count


@dataclass(frozen=True)
class Sides:
    """Ways to score the same chains: all in one pass, each in a pass of its own, and each with the reference engine."""

    numerics: Numerics
    chains: Mapping[int, Served]
    reference: Mapping[int, Served]

    @staticmethod
    def of(system: MadeUpSystem, backbone: Backbone) -> Sides:
        """Return the sides for what ``system`` serves now, on the same tensors."""
        config, models = system.config, system.serving.models
        plain, reference = Numerics(Mode()), {}
        for shard, (chain, model) in models.items():
            stages = config.plan.stages[: len(chain.nodes)]
            state = ModelState({s.adapter: model.adapter_tensors(s.adapter) for s in stages}, model.head_tensors())
            reference[shard] = plain.chain(backbone, stages, state, config.recipe, len(config.classes))
        chains = {shard: model for shard, (_, model) in models.items()}
        return Sides(Numerics.of(config.kernel), chains, reference)

    def ways(self, rows: Sequence[Encoded]) -> dict[str, Callable[[], dict[int, Tensor]]]:
        """Return each way as a function of nothing."""

        def apart() -> dict[int, Tensor]:
            return {s: self.numerics.score({s: chain}, rows)[s] for s, chain in self.chains.items()}

        return {
            "one pass": lambda: self.numerics.score(self.chains, rows),
            "separate passes": apart,
            "reference engine": lambda: Numerics(Mode()).score(self.reference, rows),
        }


def in_turn(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return seconds per way and round; each round runs every way once, starting one place later than the round before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for number in range(rounds):
        for name in rotated(list(ways), number):
            began = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass
class Requests:
    """A thread that asks one question after the other; what each took, and what failed."""

    ask: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def during(self, steps: Iterator[Any], *, apart: int) -> None:
        """Ask while ``steps`` are taken, at least ``apart`` answers after each of them."""
        ended = threading.Event()

        def loop() -> None:
            while not ended.is_set():
                began = time.perf_counter()
                try:
                    self.ask()
                except Exception as error:  # whatever a request fails with is what is counted here
                    self.failures.append(f"{type(error).__name__}: {error}")
                self.seconds.append(time.perf_counter() - began)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            for _ in steps:
                due = len(self.seconds) + apart
                while len(self.seconds) < due:
                    ended.wait(0.001)
        finally:
            ended.set()
            thread.join()
