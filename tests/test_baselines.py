"""Baselines on the tiny model: eager and lazy, equal work, and retraining that equals scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines import plans
from s3t.backbone import Backbone
from s3t.contract import UnlearningSystem
from s3t.digests import tensors_digest
from s3t.partition import slot
from s3t.plan import Plan
from s3t.records import Layout, Recipe, Record
from s3t.system import System

KEY = bytes(range(32))
RECIPE = Recipe(rank=1, epochs=2.0, batch_size=8)
LAYOUT = Layout(2, 2, 1)
RECORDS = [Record(f"row-{i:02d}", {"text": f"cat number {i}"}, i % 2) for i in range(24)]
PROBE = [{"text": "the cat"}, {"text": "number 7"}]


def _fit(path: Path, tiny: Backbone, plan: Plan, records: list[Record]) -> System:
    system = System.create(path, plan, RECIPE, model=tiny, classes=("a", "b"), key=KEY)
    system.fit(records)
    return system


def _bits(system: System) -> dict[str, str]:
    return {name: tensors_digest(tensors) for name, tensors in system.weights().items()}


def _first(shard: int, piece: int) -> str:
    return next(r.id for r in RECORDS if slot(KEY, r.id, LAYOUT) == (shard, piece))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("slices", [1, 2, 3, 5, 6])
def test_sisa_does_the_work_of_unsliced_training(kind: Any, slices: int) -> None:
    """SISA section V-B: with equal slices, sum over i of e i N / L equals E N for e = 2 E / (L + 1)."""
    plan = plans.sisa(Layout(1, slices, 1), RECIPE, 6, kind=kind)
    assert sum(s.epochs * i / slices for i, s in enumerate(plan.stages, start=1)) == pytest.approx(RECIPE.epochs)


def test_sisa_passes_as_many_records_as_unsliced_training(tmp_path: Path, tiny: Backbone) -> None:
    system = _fit(tmp_path / "run", tiny, plans.sisa(LAYOUT, RECIPE, 6), RECORDS)
    sizes = {(s, p): sum(slot(KEY, r.id, LAYOUT) == (s, p) for r in RECORDS) for s in (0, 1) for p in (0, 1)}
    epochs = 2 * 2 / 3
    exact = sum(epochs * (2 * sizes[s, 0] + sizes[s, 1]) for s in (0, 1))
    assert abs(system.cost().record_passes - exact) <= 2  # half a row per node
    assert abs(exact - 2 * len(RECORDS)) <= epochs * sum(abs(sizes[s, 0] - sizes[s, 1]) for s in (0, 1)) / 2
    system.close()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_eager_sisa_equals_scratch_at_once_and_lazy_after_a_refresh(tmp_path: Path, tiny: Backbone, kind: Any) -> None:
    gone = _first(0, 1)
    left = [record for record in RECORDS if record.id != gone]
    eager = _fit(tmp_path / "eager", tiny, plans.sisa(LAYOUT, RECIPE, 6, kind=kind), RECORDS)
    lazy = _fit(tmp_path / "lazy", tiny, plans.sisa(LAYOUT, RECIPE, 6, kind=kind, eager=False), RECORDS)
    scratch = _fit(tmp_path / "scratch", tiny, plans.sisa(LAYOUT, RECIPE, 6, kind=kind), left)
    before = eager.cost()
    receipt = eager.delete([gone])
    assert receipt.cost.nodes == 1
    assert 0 < receipt.cost.down_seconds <= receipt.cost.seconds
    assert (eager.cost() - before).nodes == 1
    assert _bits(eager) == _bits(scratch)
    assert eager.provenance().claim == "retrained"
    assert lazy.delete([gone]).cost.nodes == 0
    assert lazy.status().chain_lengths == {0: 1, 1: 2}  # the checkpoint before the slice serves
    assert lazy.provenance().claim == "non-interference"
    lazy.refresh()
    assert _bits(lazy) == _bits(scratch)
    assert np.array_equal(lazy.predict(PROBE), eager.predict(PROBE))
    for system in (eager, lazy, scratch):
        assert isinstance(system, UnlearningSystem)
        system.close()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_retraining_equals_a_model_that_never_saw_the_record(tmp_path: Path, tiny: Backbone, kind: Any) -> None:
    system = _fit(tmp_path / "run", tiny, plans.retrain(RECIPE, 6, kind=kind), RECORDS)
    first = _bits(system)
    assert system.cost().record_passes == 2 * len(RECORDS)
    assert system.delete(["row-05", "row-06"]).cost.record_passes == 2 * (len(RECORDS) - 2)
    left = [record for record in RECORDS if record.id not in ("row-05", "row-06")]
    scratch = _fit(tmp_path / "scratch", tiny, plans.retrain(RECIPE, 6, kind=kind), left)
    assert _bits(system) == _bits(scratch) != first
    system.close()
    scratch.close()


def test_sequential_continues_one_adapter_and_serves_its_last_snapshot(tmp_path: Path, tiny: Backbone) -> None:
    plan = plans.sequential(LAYOUT, RECIPE, 6)
    assert {(s.adapter, s.layers, s.epochs) for s in plan.stages} == {("all", tuple(range(6)), 2.0)}
    system = _fit(tmp_path / "run", tiny, plan, RECORDS)
    assert set(system.weights()) == {"shard-00/0-1", "shard-01/0-1"}
    system.delete([_first(1, 1)])
    assert set(system.weights()) == {"shard-00/0-1", "shard-01/0"}
    system.close()


def test_baselines_take_several_orders_too() -> None:
    for plan in (plans.sequential(Layout(1, 3, 6), RECIPE, 6), plans.sisa(Layout(1, 3, 6), RECIPE, 6)):
        assert len(plan.orders) == 6


def test_an_eager_deletion_that_was_cut_short_is_made_good_by_repeating_it(
    tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3t.building import Builder

    plan = plans.sisa(LAYOUT, RECIPE, tiny.layers)
    system, whole = _fit(tmp_path / "run", tiny, plan, RECORDS), _first(0, 0)
    with monkeypatch.context() as patched:
        patched.setattr(Builder, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            system.delete([whole])
    assert system.provenance().claim == "non-interference"
    receipt = system.delete([whole])
    assert (receipt.already, receipt.deleted, receipt.offline) == ((whole,), (), ())
    assert receipt.cost.nodes == LAYOUT.slices and receipt.cost.down_seconds > 0
    assert system.provenance().claim == "retrained"
    assert system.delete([whole]).cost.nodes == 0
    system.close()


def test_repeating_a_deletion_does_not_undo_a_retirement(tmp_path: Path, tiny: Backbone) -> None:
    system = _fit(tmp_path / "run", tiny, plans.sisa(LAYOUT, RECIPE, tiny.layers), RECORDS)
    gone, next_one = _first(0, 0), _first(1, 0)
    system.delete([gone])
    system.retire([(0, 0)])
    receipt = system.delete([gone])
    assert (receipt.already, receipt.cost.nodes, receipt.offline) == ((gone,), 0, (0,))
    assert system.provenance().claim == "non-interference"
    assert system.delete([next_one]).offline == (), "a new deletion rebuilds whatever is missing"
    system.close()
