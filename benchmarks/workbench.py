"""What the benchmarks share: data, base model and trained runs per seed, made once; and the rows they collect.

Runs with a larger budget are grown from the smaller ones, as the system itself offers (shared prefixes are trained once),
so every budget's cost and model are those of training at that budget.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from baselines.methods import UNDIVIDED, make_plan
from benchmarks.flops import Peak
from benchmarks.metering import Usage, costs
from benchmarks.profiles import Profile
from benchmarks.rows import Row, RowSet, header, rewrite, write
from benchmarks.synthetic import synthetic
from s3t import data as sources
from s3t import runs
from s3t.backbone import Backbone, load
from s3t.design import Design
from s3t.engine.mode import Mode, choose
from s3t.planner.lives import measured
from s3t.records import Dataset, Layout, Recipe
from s3t.system import System


class Workbench:
    """Everything that lasts for one session of benchmarks. ``most_seeds``: of more seeds in the profile the first so many."""

    def __init__(self, profile: Profile, scratch: Path, most_seeds: int | None = None) -> None:
        self.profile = profile if most_seeds is None else replace(profile, seeds=profile.seeds[:most_seeds])
        self.most_seeds = most_seeds
        self.scratch = scratch
        self.rows: list[Row] = []
        self._datasets: dict[str, Dataset] = {}
        self._copies = 0
        self._files: dict[str, Path] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The base model, loaded once."""
        return load(self.profile.model)

    @cached_property
    def tiny(self) -> Backbone:
        """The tiny base model, where what is measured does not depend on the model."""
        return load("tiny")

    @cached_property
    def mode(self) -> Mode:
        """The mode in which runs are trained, where a benchmark does not compare modes."""
        return choose(self.profile.engine, self.profile.precision)

    def dataset(self, name: str) -> Dataset:
        """Return a data set at the profile's size."""
        if name not in self._datasets:
            limits = self.profile.limits
            if name == "synthetic":
                self._datasets[name] = synthetic(*(limits or (96, 24, 48)))
            else:
                whole = sources.load(name)
                self._datasets[name] = whole.subset(*limits) if limits else whole
        return self._datasets[name]

    def sized(self, name: str, train: int, test: int) -> Dataset:
        """Return a data set with so many training and test records, or all where there are fewer, and no validation."""
        whole = synthetic(train, 0, test) if name == "synthetic" else sources.load(name)
        return whole.subset(train, 0, test)

    def trained(self, method: str, budget: int, data: str, seed: int) -> System:
        """Return a freshly trained system of its own; equal requests are served as copies of one trained run."""
        home = self.scratch / f"{data}-{seed}-{method}-b{budget}"
        if not home.exists():
            system = self._grown(method, budget, data, seed) if budget > 1 else self.fresh(home, method, 1, data, seed)
            if budget == 1:
                system.fit(self.dataset(data).train)
            system.close()
        self._copies += 1
        copy = self.scratch / f"copy-{self._copies:04d}"
        shutil.copytree(home, copy)
        return System.open(copy, self.backbone)

    def _grown(self, method: str, budget: int, data: str, seed: int) -> System:
        smaller = max(b for m, b in (*self.profile.cases, (method, 1)) if m == method and b < budget)
        self.trained(method, smaller, data, seed).close()
        home = self.scratch / f"{data}-{seed}-{method}-b{budget}"
        shutil.copytree(self.scratch / f"{data}-{seed}-{method}-b{smaller}", home)
        system = System.open(home, self.backbone)
        system.extend(budget)
        return system

    def stage_seconds(self, budget: int) -> dict[int, float]:
        """Return the seconds of a record pass by a stage's number, measured on an S3T run of this session with ``budget``."""
        system = self.trained("s3t", budget, self.profile.data[0], self.profile.seeds[0])
        system.close()
        with closing(runs.open_run(system.path)) as run:
            return measured((len(entry.body["prefix"]), entry.body["cost"]) for entry in run.ledger.entries("train"))

    def fresh(self, folder: Path, method: str, budget: int, data: str, seed: int) -> System:
        """Return a system that is described but not fitted."""
        recipe, layout = self.profile.recipe(method), self.layout(method, budget)
        mode: dict[str, Any] = {"engine": self.mode.engine, "precision": self.mode.precision}
        return describe(folder, method, layout, recipe, self.backbone, self.dataset(data), seed, **mode)

    def layout(self, method: str, budget: int) -> Layout:
        """Return the layout of a method here: one shard of one slice for the undivided ones."""
        return Layout(1, 1, 1) if method in UNDIVIDED else Layout(self.profile.shards, self.profile.slices, budget)

    @contextmanager
    def answering(self, **about: Any) -> Iterator[None]:
        """Run a measurement; if it fails, a row says so before the error goes on."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.add(**{"unit": "", "n": 0, "kind": "measured", **about}, value=None, status="failed", reason=reason)
            raise

    def add(self, **fields: Any) -> None:
        """Add one row."""
        self.rows.append(Row(profile=self.profile.name, **fields))  # type: ignore[arg-type]

    def add_metered(
        self,
        usage: Usage,
        *,
        records: int,
        flops: int | None = None,
        peak: Peak | None = None,
        extra: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Add one row with its cost accounting (:func:`benchmarks.metering.costs`) beside ``extra``."""
        self.add(extra={**costs(usage, records=records, flops=flops, peak=peak), **(extra or {})}, **fields)

    def write(self, folder: Path) -> list[Path]:
        """Write the rows, one file per question, and return the files; a session's later rows join those in its files."""
        head = header()
        for question in dict.fromkeys(row.question for row in self.rows):
            rows = RowSet(head, tuple(row for row in self.rows if row.question == question))
            known = self._files.get(question)
            self._files[question] = rewrite(rows, known) if known else write(rows, folder)
        return list(self._files.values())


def describe(
    folder: Path,
    method: str,
    layout: Layout,
    recipe: Recipe,
    backbone: Backbone,
    data: Dataset,
    seed: int,
    design: Design | None = None,
    **how: Any,
) -> System:
    """Return a system of any method on ``data``, with :func:`slot_key`. ``how``: further arguments of System.create.

    ``design``: how S3T's blocks lie, as in the paper if None.
    """
    return System.create(
        folder,
        make_plan(method, layout, recipe, backbone.layers, design=design),
        recipe,
        model=backbone,
        classes=data.classes,
        seed=seed,
        key=slot_key(seed),
        data=data.name,
        source=data.source,
        digest=data.digest,
        allow_empty=True,
        **how,
    )


def slot_key(seed: int) -> bytes:
    """Return the slot key of the benchmarks' runs, derived from the seed, so that rows can be reproduced."""
    return hashlib.sha256(f"s3t benchmark key {seed}".encode()).digest()
