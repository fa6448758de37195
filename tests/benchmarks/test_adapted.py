"""Heads on adapted features, by slow ways: the features are those of the very chain, the records those that it has learned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from baselines.methods import make_plan
from benchmarks.adapted import (
    ALL,
    BESIDE,
    FROZEN,
    LAST,
    OWN,
    RIDGES,
    SHARE,
    TRAINED,
    WHOLE,
    Found,
    Read,
    adapted,
    found,
    tabulated,
)
from benchmarks.analytic import Part, same
from benchmarks.design import by_length, cut, opened
from benchmarks.life import accuracy
from benchmarks.synthetic import synthetic
from benchmarks.workbench import slot_key
from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead
from s3t.analytic.solving import solve
from s3t.backbone import Backbone
from s3t.engine.numerics import Numerics
from s3t.partition import slot
from s3t.records import Dataset, Layout, Recipe, Record
from s3t.serving import Serving
from s3t.system import System

LAYOUT = Layout(2, 3, 1)
HEAD = AnalyticHead()


def noisy() -> Dataset:
    """Return the made-up task with many answers drawn at random: a task that is solved would show no difference."""
    data, draw = synthetic(60, 0, 60), Random(3)

    def some(records: tuple[Record, ...]) -> tuple[Record, ...]:
        return tuple(replace(record, label=draw.randrange(3)) if draw.random() < 0.6 else record for record in records)

    return Dataset(data.name, data.classes, some(data.train), data.validation, some(data.test))


@dataclass(frozen=True)
class Trained:
    """A run with a frozen head beside its chains, and what was found of it."""

    folder: Path
    data: Dataset
    found: tuple[Found, ...]

    def one(self, system: str, length: int, layers: str = ALL, ridge: float | None = 0.1) -> Found:
        wanted = (system, length, *(("", None) if system == TRAINED else (layers, ridge)))
        (one,) = (one for one in self.found if (one.system, one.length, one.layers, one.ridge) == wanted)
        return one


@pytest.fixture(scope="module")
def trained(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained with large steps, so that the chains differ."""
    folder, data, recipe = tmp_path_factory.mktemp("adapted") / "run", noisy(), Recipe(lr=0.1, head_lr=0.1, epochs=4)
    plan = make_plan("s3t", LAYOUT, recipe, tiny.layers, head=HEAD, share=SHARE)
    about: dict[str, Any] = {"model": tiny, "classes": data.classes, "key": slot_key(0), "seed": 5}
    with closing(System.create(folder, plan, recipe, **about)) as system:
        system.fit(data.train)
    return Trained(folder, data, tuple(found(folder, tiny, data.train, data.test)))


@dataclass(frozen=True)
class Asked:
    """A chain's reader, its trained head, its shard's records, and how many of its blocks are on."""

    shard: int
    length: int
    reader: Reader
    head: dict[str, torch.Tensor]
    logits: torch.Tensor
    prefix: tuple[int, ...]


@pytest.fixture(scope="module")
def chains(trained: Trained, tiny: Backbone) -> list[Asked]:
    """Return every chain of every length, with its logits of the test records."""

    def each() -> Iterator[Asked]:
        with opened(trained.folder) as (run, facts):
            serving, numerics = Serving(run, tiny), Numerics.of(run.config.kernel)
            asked = tiny.encode([record.inputs for record in trained.data.test], run.config.recipe.max_length)
            for length in (1, 2, 3):
                for shard, chain in cut(facts, length).items():
                    model = serving.load(facts, chain)
                    reader = Reader(adapted(run, facts.plan, chain, tiny), HEAD, 0)
                    logits = numerics.score({shard: model}, asked)[shard]
                    yield Asked(shard, length, reader, model.head_tensors(), logits, chain.nodes[-1].node.prefix)

    return list(each())


def encoded(tiny: Backbone, records: tuple[Record, ...]) -> Any:
    return tiny.encode([record.inputs for record in records], Recipe().max_length)


def test_the_last_layers_features_are_what_the_chains_own_head_reads(
    chains: list[Asked], trained: Trained, tiny: Backbone
) -> None:
    """To within the step of the features: and those of another length, or of the frozen backbone, are not."""
    rows = encoded(tiny, trained.data.test)
    frozen = Reader(tiny, HEAD, 0).read(rows)
    for chain in chains:
        read = chain.reader.read(rows)
        last = torch.from_numpy(read[:, -tiny.hidden :].astype(np.float32)) * HEAD.step
        weight, bias = chain.head["weight"], chain.head["bias"]
        bound = float(weight.abs().sum(1).max()) * HEAD.step
        assert torch.allclose(last @ weight.T + bias, chain.logits, rtol=0, atol=bound)
        per_layer = [
            bool((read[:, i : i + tiny.hidden] == frozen[:, i : i + tiny.hidden]).all())
            for i in range(0, read.shape[1], tiny.hidden)
        ]
        below = tiny.layers - 2 * chain.length
        assert per_layer == [layer < below for layer in range(tiny.layers)], "blocks of two layers are on from the top"


def made() -> Read:
    draw = np.random.default_rng(0)
    answers = (np.arange(40) % 3).astype(float)
    rows = draw.integers(-400, 400, (40, 12)).astype(np.int16)
    return Read(Part(rows, answers), draw.integers(-400, 400, (5, 12)).astype(np.int16), np.arange(40) % 4 < 2)


def test_a_later_record_leaves_the_whole_shards_head_to_the_bit() -> None:
    """And when all that the chain has not learned have left, in any order, the head over its own slices is what remains."""
    read = made()
    sums = read.records.sums(3)
    for i in reversed(np.flatnonzero(~read.learned)):
        sums.remove(read.records.rows[i : i + 1], read.records.answers[i : i + 1])
        kept = np.delete(np.arange(40), i)
        if i == np.flatnonzero(~read.learned)[-1]:
            without = replace(read, records=Part(read.records.rows[kept], read.records.answers[kept]))
            assert same(solve(sums, HEAD), solve(without.sums(3, learned=False), HEAD))
    assert same(solve(sums, HEAD), solve(read.sums(3, learned=True), HEAD))
    assert not same(solve(sums, HEAD), solve(read.sums(3, learned=False), HEAD))


def test_the_last_layer_and_some_records_are_parts_of_what_was_read(trained: Trained, tiny: Backbone) -> None:
    records = trained.data.train[:6]
    rows, answers = encoded(tiny, records), np.arange(6.0) % 3
    whole = Reader(tiny, HEAD, 0).read(rows)
    last = Reader(tiny, replace(HEAD, layers=(tiny.layers - 1,)), 0).read(rows)
    learned = np.array([True, False, True, True, False, False])
    read = Read(Part(whole, answers), whole[:2], learned)
    assert np.array_equal(read.last(tiny.hidden).records.rows, last)
    assert np.array_equal(read.last(tiny.hidden).test, last[:2])
    chosen = read.of(np.arange(6) > 2)
    assert np.array_equal(chosen.records.rows, whole[3:]) and chosen.records.answers.tolist() == [0, 1, 2]
    assert chosen.learned.tolist() == [True, False, False] and np.array_equal(chosen.test, whole[:2])


@pytest.mark.parametrize("length", [0, 1, 2, 3])
@pytest.mark.parametrize("system", [OWN, WHOLE])
def test_heads_are_judged_as_a_plain_loop_does(
    chains: list[Asked], trained: Trained, tiny: Backbone, system: str, length: int
) -> None:
    """Each shard's head on its own records, those of the slices learned or all of them; then the mean of the scores."""
    if not length and system == OWN:
        assert not any(one.length == 0 for one in trained.found if one.system == OWN)
        return
    readers = {c.shard: (c.reader, c.prefix) for c in chains if c.length == max(length, 1)}
    asked = encoded(tiny, trained.data.test)
    records = []
    for layers, ridge in ((ALL, 0.1), (LAST, 0.3)):
        total, hot, counts = np.zeros((60, 3)), np.zeros((60, 3)), []
        for shard, (reader, prefix) in sorted(readers.items()):
            slots = {record.id: slot(slot_key(0), record.id, LAYOUT) for record in trained.data.train}
            mine = tuple(
                record
                for record in trained.data.train
                if slots[record.id][0] == shard and (system == WHOLE or slots[record.id][1] in prefix)
            )
            reader = reader if length else Reader(tiny, HEAD, 0)
            rows, test = reader.read(encoded(tiny, mine)), reader.read(asked)
            if layers == LAST:
                rows, test = (np.ascontiguousarray(part[:, -tiny.hidden :]) for part in (rows, test))
            part = Part(rows, np.array([record.label for record in mine], float))
            scores = solve(part.sums(3), replace(HEAD, ridge=ridge)).scores(test)
            total += scores
            powers = np.exp(HEAD.temperature * scores)
            hot += powers / powers.sum(1, keepdims=True)
            counts.append(len(mine))
        wanted = np.array([record.label for record in trained.data.test])
        one = trained.one(system, length, layers, ridge)
        assert one.value == (total.argmax(1) == wanted).mean()
        assert one.probabilities == (hot.argmax(1) == wanted).mean() and one.records == tuple(counts)
        records.append(sum(counts))
    assert records[0] == (len(trained.data.train) if system == WHOLE or length == 3 else records[0])
    assert 0 < records[0] <= len(trained.data.train)


def test_trained_heads_and_those_with_a_frozen_one_beside_are_what_the_system_serves(
    trained: Trained, tiny: Backbone, tmp_path: Path
) -> None:
    """As slices are retired from the last one on, and then no chain is left: the frozen head answers alone."""
    alone = by_length(trained.folder, tiny, trained.data.test, ["mean-logits"])["mean-logits"]
    assert [trained.one(TRAINED, length).value for length in (1, 2, 3)] == alone
    shutil.copytree(trained.folder, tmp_path / "run")
    with closing(System.open(tmp_path / "run", tiny)) as system:
        for length in (3, 2, 1):
            assert accuracy(system, trained.data.test) == (trained.one(BESIDE[FROZEN], length).value, False)
            system.retire([(shard, length - 1) for shard in range(2)])
        assert accuracy(system, trained.data.test) == (trained.one(FROZEN, 0).value, False)


def test_everything_is_told_once_and_differs(trained: Trained) -> None:
    cells = [(one.system, one.length, one.layers, one.ridge) for one in trained.found]
    assert len(set(cells)) == len(cells) == 3 + len(RIDGES) * 2 * (1 + 3 + 4 + 3 + 3)
    assert {one.system for one in trained.found} == {TRAINED, OWN, WHOLE, FROZEN, *BESIDE.values()}
    assert HEAD.ridge in RIDGES and all(one.records == (60,) for one in trained.found if one.system == FROZEN)
    assert len({one.value for one in trained.found}) > 5, "a task on which all do as well tells nothing"


def test_a_table_is_of_one_choice_of_features_and_means_over_seeds() -> None:
    def row(seed: int, value: float, **extra: Any) -> dict[str, Any]:
        about = {"question": "adapted", "metric": "test accuracy", "status": "ok", "data": "some"}
        return {**about, "seed": seed, "value": value, "extra": extra}

    rows = [row(seed, 0.5 + seed / 10, system=TRAINED, length=1) for seed in (0, 1)]
    for seed in (0, 1):
        rows += [row(seed, 0.2 * (seed + 1), system=WHOLE, length=k, layers=ALL, ridge=0.1) for k in (0, 1)]
        rows.append(row(seed, 0.9, system=WHOLE, length=1, layers=LAST, ridge=0.1))
        rows.append(row(seed, 0.9, system=WHOLE, length=1, layers=ALL, ridge=0.3))
    rows.append({**rows[0], "question": "design", "value": 0.0})
    rows.append({**rows[0], "status": "failed", "value": float("nan"), "extra": {}})
    table = tabulated(pd.DataFrame(rows))
    assert table.loc[("some", TRAINED), 1] == pytest.approx(0.55)
    assert table.loc[("some", WHOLE)].tolist() == pytest.approx([0.3, 0.3])
    assert tabulated(pd.DataFrame(rows), LAST).loc[("some", WHOLE), 1] == pytest.approx(0.9)
