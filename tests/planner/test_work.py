"""Work is counted as training spends it: predicted and real costs of small systems are the same numbers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from baselines.methods import make_plan
from s3t.backbone import Backbone
from s3t.capacity.demand import Demand
from s3t.errors import LayoutError
from s3t.partition import slot
from s3t.planner.work import Work, after_requests, upfront
from s3t.records import Layout, Recipe, Record
from s3t.system import System

KEY = bytes(range(32))
RECIPE = Recipe(rank=1, epochs=2.0, batch_size=8)
EACH = 4


def equal_slots(layout: Layout) -> list[Record]:
    """Records of which the key puts EACH in every slot."""
    held: dict[Any, list[Record]] = {
        (s, p): [] for s, p in itertools.product(range(layout.shards), range(layout.slices))
    }
    for number in itertools.count():
        record = Record(f"row-{number}", {"text": f"cat {number}"}, number % 2)
        place = held[slot(KEY, record.id, layout)]
        if len(place) < EACH:
            place.append(record)
        if all(len(there) == EACH for there in held.values()):
            return list(itertools.chain(*held.values()))
    raise AssertionError


def fitted(path: Path, tiny: Backbone, method: str, layout: Layout) -> System:
    plan = make_plan(method, layout, RECIPE, tiny.layers)
    system = System.create(path, plan, RECIPE, model=tiny, classes=("a", "b"), key=KEY)
    system.fit(equal_slots(plan.layout))
    return system


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        ("s3t", Layout(2, 3, 1)),
        ("s3t", Layout(1, 3, 6)),
        ("s3t", Layout(2, 2, 2)),
        ("sequential", Layout(2, 3, 2)),
        ("sisa-lora", Layout(2, 3, 1)),
        ("sisa-full-lazy", Layout(1, 3, 1)),
        ("retrain-lora", Layout(1, 1, 1)),
        ("retrain-full", Layout(1, 1, 1)),
    ],
)
def test_training_up_front_costs_what_is_predicted(tmp_path: Path, tiny: Backbone, method: str, layout: Layout) -> None:
    system = fitted(tmp_path / "run", tiny, method, layout)
    spent, plan = system.cost(), system.config.plan
    predicted = upfront(plan, EACH * layout.shards * layout.slices, tiny.layers)
    assert (predicted.nodes, predicted.record_passes) == (spent.nodes, spent.record_passes)
    assert predicted.layer_passes == spent.layer_passes
    assert (predicted.full_models > 0) == ("full" in method)
    system.close()


@pytest.mark.parametrize(("method", "layout"), [("sisa-lora", Layout(1, 3, 1)), ("retrain-lora", Layout(1, 1, 1))])
def test_a_deletion_costs_an_eager_method_what_is_predicted(
    tmp_path: Path, tiny: Backbone, method: str, layout: Layout
) -> None:
    """The mean over a deletion in each slot; the deleted record itself is no longer trained on."""
    spent = []
    for number, piece in enumerate(range(layout.slices)):
        system = fitted(tmp_path / str(number), tiny, method, layout)
        before = system.cost()
        victim = next(name for name in system.ids() if slot(KEY, name, layout) == (0, piece))
        system.delete([victim])
        spent.append(system.cost() - before)
        plan = system.config.plan
        system.close()
    records = EACH * layout.slices
    predicted = after_requests(plan, Demand.uniform(1, layout.slices), 1, records, tiny.layers)
    assert predicted.nodes == pytest.approx(sum(cost.nodes for cost in spent) / len(spent))
    real = sum(cost.layer_passes for cost in spent) / len(spent)
    lost = plan.stages[0].epochs * 2 * tiny.layers * predicted.nodes  # every rebuilt node is one record short
    assert predicted.layer_passes - real == pytest.approx(lost, rel=0.25)


def test_a_rebuild_after_many_requests_is_a_whole_training() -> None:
    plan = make_plan("s3t", Layout(3, 2, 2), RECIPE, 6)
    demand = Demand.uniform(3, 2)
    whole = upfront(plan, 600, 6)
    after = [after_requests(plan, demand, r, 600, 6) for r in (0, 1, 2, 1000)]
    assert after[0] == Work()
    assert after[-1].layer_passes == pytest.approx(whole.layer_passes)
    assert [w.nodes for w in after] == sorted(w.nodes for w in after)
    assert after[1].nodes == pytest.approx(1 / 6 * (6 + 2 * 6)), "six first stages hit by 1 of 6 slots, six second by 2"


def test_too_few_records() -> None:
    with pytest.raises(LayoutError, match="5 records do not fill 6 slices"):
        upfront(make_plan("s3t", Layout(3, 2, 2), RECIPE, 6), 5, 6)
