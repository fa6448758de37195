"""Layouts of the blocks: what is equal is equal, and what is counted is what training, storage and refreshes really take."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from baselines.methods import make_plan
from benchmarks.blocks import LAYOUTS, PAPER, order_of
from benchmarks.design import DEFAULT, Variant, by_length, measure
from benchmarks.laying import cases, count, lay
from benchmarks.life import accuracy
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench, slot_key
from s3t.backbone import Backbone
from s3t.partition import slot
from s3t.planner.work import upfront
from s3t.records import Layout
from s3t.system import System


@pytest.mark.parametrize(("layers", "slices"), [(6, 3), (12, 4), (3, 3), (7, 2), (6, 1)])
def test_what_is_called_equal_is_equal(layers: int, slices: int) -> None:
    recipe_of, layout = PROFILES["pairs"].recipe, Layout(2, slices, 1)
    found = {case.name: case for case in cases(recipe_of, layout, layers)}
    paper = found[PAPER]
    assert paper.recipe == recipe_of("s3t") and paper.plan(layout, layers) == make_plan(
        "s3t", layout, paper.recipe, layers
    )
    assert list(found) == sorted(found, key=order_of)

    def stored(name: str) -> int:
        case = found[name]
        return case.recipe.rank * sum(len(stage.layers) for stage in case.plan(layout, layers).stages)

    def work(name: str) -> float:
        return upfront(found[name].plan(layout, layers), 120, layers).layer_passes

    for name, (method, _) in LAYOUTS.items():
        plain, own = found[name], recipe_of(method)
        assert plain.recipe == own
        assert (f"{name}, equal storage" in found) == (stored(name) != stored(PAPER))
        assert (f"{name}, equal work" in found) == (work(name) != pytest.approx(work(PAPER)))
        if shared := found.get(f"{name}, equal storage"):
            layers_stored = stored(shared.name) // shared.recipe.rank
            assert abs(stored(shared.name) - stored(PAPER)) <= layers_stored / 2, "no other rank is nearer"
            assert shared.recipe == replace(own, rank=shared.recipe.rank, alpha=shared.recipe.alpha)
            assert shared.recipe.alpha / shared.recipe.rank == own.alpha / own.rank
        if equal := found.get(f"{name}, equal work"):
            assert work(equal.name) == pytest.approx(work(PAPER)) and stored(equal.name) == stored(name)
            assert equal.recipe == replace(own, epochs=equal.recipe.epochs)
    assert (slices == 1) == (len(found) == len(LAYOUTS)), "one slice: nothing differs"


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """The smoke profile by the reference engine, whose counts are the contract's."""
    return Workbench(replace(PROFILES["smoke"], engine="reference", limits=(48, 6, 24)), tmp_path / "bench")


def test_what_is_counted_is_what_the_engine_and_refreshes_take(bench: Workbench, tmp_path: Path) -> None:
    """Every slot in turn: a copy of the run loses one of its records and is refreshed; that is weighed by the slot's size."""
    layout, train = Layout(2, 3, 2), bench.dataset("synthetic").train
    bottom_up = cases(bench.profile.recipe, bench.layout("s3t", 1), bench.backbone.layers)[1]
    assert bottom_up.name == "bottom-up"
    laid = lay(bench, tmp_path / "run", bottom_up, [1, 2], "synthetic", 0)
    assert {budget: one.counted.layer_passes for budget, one in laid.items()} == {
        b: one.spent for b, one in laid.items()
    }
    counted, total = laid[2].counted, 0.0
    places: dict[tuple[int, int], list[str]] = {}
    for record in train:
        places.setdefault(slot(slot_key(0), record.id, layout), []).append(record.id)
    lows = [min(stage.layers) for stage in bottom_up.plan(layout, bench.backbone.layers).stages]
    for number, ids in enumerate(places.values()):
        shutil.copytree(tmp_path / "run", tmp_path / f"copy-{number}")
        system = System.open(tmp_path / f"copy-{number}", bench.backbone)
        dropped = len(system.delete(ids[:1]).nodes_dropped)
        cost = system.refresh()
        system.close()
        assert cost.nodes == dropped
        gone = sum(2 * bench.backbone.layers - low for low in _dropped(lows, layout, ids[0]))
        total += len(ids) * (cost.layer_passes + bottom_up.recipe.epochs * gone)
    assert counted.per_deletion == pytest.approx(total / len(train))


def _dropped(lows: list[int], layout: Layout, name: str) -> list[int]:
    """Return the lowest layer of each node that reads the record: from its slice on, in both of the cyclic orders."""
    piece = slot(slot_key(0), name, layout)[1]
    return [low for order in ((0, 1, 2), (1, 2, 0)) for low in lows[order.index(piece) :]]


def test_bytes_of_adapters_are_those_of_their_matrices(bench: Workbench, tmp_path: Path) -> None:
    found = {case.name: case for case in cases(bench.profile.recipe, bench.layout("s3t", 1), bench.backbone.layers)}
    sizes = {}
    for name in (PAPER, "stacked", "stacked, equal storage"):
        laid = lay(bench, tmp_path / name, found[name], [1], "synthetic", 0)
        sizes[name] = laid[1].counted.adapters / found[name].recipe.rank
        assert count(tmp_path / name, bench.backbone.layers) == laid[1].counted
    layer = 4 * sum(
        m.in_features + m.out_features
        for path, m in bench.backbone.layer_modules(bench.backbone.model)[0].named_modules()
        if path.endswith(bench.backbone.family.targets)
    )
    shards, layers = 2, bench.backbone.layers
    assert sizes == {PAPER: shards * layers * layer} | dict.fromkeys(
        ("stacked", "stacked, equal storage"), shards * 3 * layers * layer
    )


def test_accuracy_by_length_is_that_of_each_order_in_turn(bench: Workbench, tiny: Backbone, tmp_path: Path) -> None:
    paper, test = cases(bench.profile.recipe, bench.layout("s3t", 1), 6)[0], bench.dataset("synthetic").test
    laid = lay(bench, tmp_path / "run", paper, [1, 2], "synthetic", 0)
    alone = measure(bench, tmp_path / "alone", Variant(DEFAULT), bench.layout("s3t", 1), "synthetic", 0)[DEFAULT]
    assert laid[1].by_length == alone.by_length
    second = by_length(tmp_path / "run", tiny, test, ["mean-logits"], 1)["mean-logits"]
    both = zip(alone.by_length, second, strict=True)
    assert laid[2].by_length == pytest.approx([sum(pair) / 2 for pair in both])
    system = System.open(tmp_path / "run", tiny)
    system.retire([(shard, 0) for shard in range(2)])  # of the orders 012 and 120 the second keeps two of its slices
    assert accuracy(system, test) == (second[1], False)
    system.retire([(shard, 2) for shard in range(2)])
    assert accuracy(system, test) == (second[0], False)
    system.close()
