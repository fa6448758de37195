"""Analytic heads on what a shard's own chain makes of its records, by the length of the chain: a study, not what serves.

A chain that is cut to k blocks answers with the head that was trained with block k. Here it answers instead with a ridge head
that is solved from exact integer sums over features of that very chain: over the records of the k slices that it has learned
(``own slices``), or over all records of its shard (``whole shard``), also those whose blocks are off. The shards' scores are
averaged, as trained logits are. All comes from one trained run, and nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.design import cut, opened
from benchmarks.workbench import Workbench, describe
from s3t.analytic.choosing import Numbers, Part, accuracy
from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead
from s3t.analytic.solving import Workspace, solve
from s3t.analytic.sums import Features, Sums
from s3t.answers import target
from s3t.backbone import Backbone, Encoded
from s3t.blocks import ChainModel
from s3t.building import load_state
from s3t.engine.numerics import Numerics
from s3t.ensembling import combine, mixed
from s3t.partition import slot
from s3t.plan import Plan
from s3t.records import Layout, Record
from s3t.serving import Serving

if TYPE_CHECKING:
    from s3t.runs import Run
    from s3t.selection import Chain

TRAINED, OWN, WHOLE, FROZEN = "trained head", "own slices", "whole shard", "frozen, all records"
BESIDE = {FROZEN: "trained head + frozen", WHOLE: "trained head + whole shard"}
"""Systems in which an analytic head has half of the weight beside the trained heads, by what that head is."""
SHARE = 0.5
RIDGES = (0.03, 0.1, 0.3)
"""The default of :class:`AnalyticHead`, and one below and above it: told side by side, none is chosen."""
ALL, LAST = "all layers", "last layer"
"""Whose mean-pooled outputs a head reads. Those of the last layer are what the trained head reads."""
ACCURACY = "test accuracy"


@dataclass(frozen=True)
class Read:
    """What one model makes of records, alone each: of a shard's (or of all), and of the test records.

    ``learned`` (records,): which of them the chain has learned.
    """

    records: Part
    test: Features
    learned: NDArray[np.bool_]

    def last(self, hidden: int) -> Read:
        """Return the features of the last layer alone, ``hidden`` of them."""
        chosen = range(self.test.shape[1] - hidden, self.test.shape[1])
        return replace(self, records=self.records.columns(chosen), test=np.ascontiguousarray(self.test[:, chosen]))

    def of(self, chosen: NDArray[np.bool_]) -> Read:
        """Return the same with the chosen records alone."""
        records = Part(self.records.rows[chosen], self.records.answers[chosen])
        return Read(records, self.test, self.learned[chosen])

    def sums(self, classes: int, *, learned: bool) -> Sums:
        """Return the sums over the learned records, or over all."""
        return self.records.sums(classes, np.flatnonzero(self.learned) if learned else None)


@dataclass(frozen=True)
class Found:
    """Accuracy of one ``system`` on chains of ``length`` blocks (0: the frozen backbone): the mean of the shards' scores.

    ``probabilities``: by the mean of their probabilities instead, where heads of several shards answer alone. ``layers``:
    whose outputs its analytic heads read, and their ``ridge``; ``records``: behind each of them, in order of shards.
    """

    system: str
    length: int
    value: float
    layers: str = ""
    ridge: float | None = None
    records: tuple[int, ...] = ()
    probabilities: float | None = None


def measure(bench: Workbench, folder: Path, layout: Layout, data: str, seed: int) -> list[Found]:
    """Train a run in ``folder`` and return what every system reaches at every length."""
    recipe, dataset = bench.profile.recipe("s3t"), bench.dataset(data)
    how: dict[str, Any] = {"engine": bench.mode.engine, "precision": bench.mode.precision}
    system = describe(folder, "s3t", layout, recipe, bench.backbone, dataset, seed, **how)
    try:
        system.fit(dataset.train)
    finally:
        system.close()
    return list(found(folder, bench.backbone, dataset.train, dataset.test))


def found(folder: Path, backbone: Backbone, train: Sequence[Record], test: Sequence[Record]) -> Iterator[Found]:
    """Yield what every system reaches on ``test``; ``train``: the records of the healthy run in ``folder``."""
    with opened(folder) as (run, facts):
        config, classes = run.config, len(run.config.classes)
        rows = backbone.encode([record.inputs for record in train], config.recipe.max_length)
        asked = backbone.encode([record.inputs for record in test], config.recipe.max_length)
        answers, wanted = (
            np.array([target(record.label, config.classes) for record in part], np.float64) for part in (train, test)
        )
        slots = [slot(run.key, record.id, config.plan.layout) for record in train]
        shards = np.array([shard for shard, _ in slots])
        slices = np.array([piece for _, piece in slots])
        judge = Judge(config.plan, config.recipe.ensemble, wanted, classes, backbone.hidden)
        serving, numerics = Serving(run, backbone), Numerics.of(config.kernel)

        frozen = _read(backbone, rows, asked, answers, np.zeros(len(train), bool))
        floor = judge.scores({0: frozen}, learned=False)
        yield from judge.alone(FROZEN, 0, floor, [len(train)])
        parts = {shard: frozen.of(shards == shard) for shard in facts.chains()}
        counts = [len(part.learned) for part in parts.values()]
        yield from judge.alone(WHOLE, 0, judge.scores(parts, learned=False), counts)
        for length in range(1, config.plan.layout.slices + 1):
            chains, reads = cut(facts, length), {}
            served = numerics.score({s: serving.load(facts, chain) for s, chain in chains.items()}, asked)
            logits = {s: scores.numpy() for s, scores in served.items()}
            trained = combine(logits, dict.fromkeys(logits, 1 / len(logits)), config.recipe.ensemble)
            yield Found(TRAINED, length, accuracy(trained.astype(np.float64), wanted))
            for shard, chain in chains.items():
                mine = np.flatnonzero(shards == shard)
                learned = np.isin(slices[mine], chain.nodes[-1].node.prefix)
                model = adapted(run, facts.plan, chain, backbone)
                reads[shard] = _read(model, [rows[i] for i in mine], asked, answers[mine], learned)
            own, whole = (judge.scores(reads, learned=learned) for learned in (True, False))
            yield from judge.alone(OWN, length, own, [int(read.learned.sum()) for read in reads.values()])
            yield from judge.alone(WHOLE, length, whole, counts)
            yield from judge.beside(FROZEN, length, trained, floor)
            yield from judge.beside(WHOLE, length, trained, whole)


def adapted(run: Run, plan: Plan, chain: Chain, backbone: Backbone) -> Backbone:
    """Return the base model with the adapters of ``chain`` in it, by PEFT in float32, for a reader to hook."""
    model = ChainModel(backbone, plan.stages[: len(chain.nodes)], run.config.recipe, len(run.config.classes))
    model.mount(load_state(run, plan, chain))
    return replace(backbone, model=model.body.get_base_model())


def _read(
    backbone: Backbone, rows: Sequence[Encoded], asked: Sequence[Encoded], answers: Numbers, learned: NDArray[np.bool_]
) -> Read:
    reader = Reader(backbone, AnalyticHead(), 0)  # no random features, so the seed has no influence
    return Read(Part(reader.read(rows), answers), reader.read(asked), learned)


Told = dict[tuple[str, float], dict[int, Numbers]]
"""By layers and ridge, the scores (test records, classes) of each shard's head."""


class Judge:
    """Solves heads and judges them, alone and beside trained ones. ``wanted``: the test records' answers."""

    def __init__(self, plan: Plan, ensemble: str, wanted: Numbers, classes: int, hidden: int) -> None:
        self._plan, self._ensemble = plan, ensemble
        self._wanted, self._classes, self._hidden = wanted, classes, hidden
        self._work: dict[int, Workspace] = {}

    def scores(self, reads: Mapping[int, Read], *, learned: bool) -> Told:
        """Return what the heads of the shards answer to the test records, for all layers and ridges."""
        out: Told = {}
        for shard, whole in reads.items():
            for layers, read in ((ALL, whole), (LAST, whole.last(self._hidden))):
                size = read.test.shape[1]
                work = self._work.get(size) or self._work.setdefault(size, Workspace(size))
                sums = read.sums(self._classes, learned=learned)
                for ridge in RIDGES:
                    scores = solve(sums, AnalyticHead(ridge=ridge), work).scores(read.test)
                    out.setdefault((layers, ridge), {})[shard] = scores
        return out

    def alone(self, system: str, length: int, answered: Told, records: Sequence[int]) -> Iterator[Found]:
        """Yield the accuracies of a system whose analytic heads answer alone; ``records``: behind each, by shard."""
        for (layers, ridge), told in answered.items():
            hot = {shard: AnalyticHead().temperature * scores for shard, scores in told.items()}
            values = [self._right(_mean(told)), self._right(_mean(hot, "mean-probabilities"))]
            yield Found(system, length, values[0], layers, ridge, tuple(records), values[1])

    def beside(self, kind: str, length: int, trained: NDArray[np.float32], beside: Told) -> Iterator[Found]:
        """Yield the accuracies of trained heads with analytic ones beside them, as a run with that share serves them."""
        for (layers, ridge), told in beside.items():
            plan = self._plan.with_head(AnalyticHead(ridge=ridge), SHARE)
            scores = mixed(trained, _mean(told).astype(np.float64), plan, self._ensemble, SHARE)
            yield Found(BESIDE[kind], length, self._right(scores), layers, ridge)

    def _right(self, scores: NDArray[Any]) -> float:
        return accuracy(scores.astype(np.float64), self._wanted)


def _mean(told: Mapping[int, NDArray[Any]], rule: str = "mean-logits") -> NDArray[np.float32]:
    return combine(told, dict.fromkeys(told, 1 / len(told)), rule)


def tabulated(rows: pd.DataFrame, layers: str = ALL, ridge: float = 0.1) -> pd.DataFrame:
    """Return mean accuracy over seeds: data set and system down, lengths of chains across. ``rows``: as read."""
    told = rows[(rows["question"] == "adapted") & (rows["metric"] == ACCURACY) & (rows["status"] == "ok")]
    extra = pd.DataFrame(list(told["extra"]), index=told.index)
    fits = (extra["system"] == TRAINED) | ((extra["layers"] == layers) & (extra["ridge"] == ridge))
    named = told.assign(system=extra["system"], length=extra["length"])[fits]
    return named.pivot_table("value", ["data", "system"], "length", sort=False)
