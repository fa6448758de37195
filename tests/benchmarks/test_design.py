"""The ablation's variants are one change each, and accuracy by length of chain is that of the system itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.design import DEFAULT, ENSEMBLES, Outcome, Variant, measure, variants
from benchmarks.life import accuracy
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench
from s3t.backbone import Backbone
from s3t.design import PAPER
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.system import System


@pytest.mark.parametrize(("layers", "slices"), [(12, 3), (6, 3), (3, 3), (12, 1), (7, 2)])
def test_each_variant_changes_one_thing_and_fits_the_model(layers: int, slices: int) -> None:
    recipe = Recipe()
    found = variants(layers, slices, recipe)
    assert found[0] == Variant(DEFAULT)
    assert len({case.name for case in found}) == len(found)
    default = s3t_plan(Layout(1, slices, 1), recipe, layers)
    for case in found[1:]:
        assert (case.design == PAPER) != (not case.recipe)
        plan = s3t_plan(Layout(1, slices, 1), replace(recipe, **case.recipe), layers, case.design)
        assert case.recipe or slices == 1 or plan != default
        sizes = [len(stage.layers) for stage in plan.stages]
        if case.name.startswith("larger"):
            assert sum(sizes) == slices * (layers // slices) and min(sizes) < max(sizes)
        if case.recipe:
            assert case.recipe["alpha"] / case.recipe["rank"] == recipe.alpha / recipe.rank
    assert any("per block" in case.name for case in found) == (layers // slices > 1)


def test_an_outcome_is_told_whole_and_over_lengths() -> None:
    outcome = Outcome((0.5, 0.7, 0.9), 10, 20)
    assert outcome.full == 0.9 and outcome.mean == pytest.approx(0.7)


def test_accuracy_by_length_is_what_retired_slots_leave(tmp_path: Path, tiny: Backbone) -> None:
    """Whole chains as the system answers; then its last slices are retired, one after the other."""
    bench = Workbench(PROFILES["smoke"], tmp_path / "bench")
    layout, test = Layout(2, 3, 1), bench.dataset("synthetic").test
    found = measure(bench, tmp_path / "run", Variant(DEFAULT), layout, "synthetic", 0)
    assert set(found) == {DEFAULT, *ENSEMBLES}
    assert len({outcome.record_passes for outcome in found.values()}) == 1
    system = System.open(tmp_path / "run", tiny)
    for length in (3, 2, 1):
        assert accuracy(system, test) == (found[DEFAULT].by_length[length - 1], False)
        system.retire([(shard, length - 1) for shard in range(2)])
    assert accuracy(system, test) == (0.0, True)
    system.close()
