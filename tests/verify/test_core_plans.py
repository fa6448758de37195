"""Plans, word for word: what a declared plan must be, and how it may depart from the documented one."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from s3t.errors import RunError
from verify.plans import EAGER, LAZY, METHODS, PAPER, Design, Plan, Stage, declared_plan, documented_plan, plan_faults

RUN: dict[str, Any] = {
    "plan": {
        "method": "s3t",
        "layout": {"shards": 2, "slices": 2, "budget": 1},
        "orders": [[0, 1]],
        "stages": [
            {"adapter": "block-00", "kind": "lora", "layers": [2, 3], "epochs": 1},
            {"adapter": "block-01", "kind": "lora", "layers": [0, 1], "epochs": 1},
        ],
        "cumulative": True,
        "eager": False,
    }
}


def put(*path: Any, value: Any) -> dict[str, Any]:
    run = copy.deepcopy(RUN)
    place: Any = run["plan"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return run


def test_a_declared_plan_field_by_field() -> None:
    stages = (Stage("block-00", "lora", (2, 3), 1.0), Stage("block-01", "lora", (0, 1), 1.0))
    assert declared_plan(RUN) == Plan("s3t", 2, 2, 1, ((0, 1),), stages, False)
    assert declared_plan(put("eager", value=True)).eager is True


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (put("layout", "shards", value=0), "shards=0, slices=2, budget=1; all are at least 1"),
    (put("layout", "slices", value=0), "shards=2, slices=0, budget=1; all are at least 1"),
    (put("layout", "budget", value=-1), "shards=2, slices=2, budget=-1; all are at least 1"),
    (put("stages", value=RUN["plan"]["stages"][:1]), "1 stages for 2 slices; there is one per slice"),
    (put("stages", 1, "kind", value="odd"), "a stage is of unknown kind or has no epochs"),
    (put("stages", 1, "epochs", value=0), "a stage is of unknown kind or has no epochs"),
    (put("stages", 1, "epochs", value="nan"), "a stage is of unknown kind or has no epochs"),
    (put("orders", value=[[0, 2]]), "order [0, 2] is no permutation of 0..1"),
    (put("orders", value=[[0, 0]]), "order [0, 0] is no permutation of 0..1"),
    (put("orders", value=[[1, 0], [0]]), "order [0] is no permutation of 0..1"),
    (put("orders", value=[[0, 1], [0, 1]]), "1 distinct orders for budget=1"),
    (put("orders", value=[[0, 1], [1, 0]]), "2 distinct orders for budget=1"),
    (put("orders", value=[]), "0 distinct orders for budget=1"),
    (put("weights", value="sizes"), "weights 'sizes' is unknown; known are equal, length, square"),
    (put("pool", value=1), "pool 1 is unknown; known are linear, logarithmic"),
]


@pytest.mark.parametrize("number", range(len(IMPOSSIBLE)))
def test_impossible_plans_say_exactly_this(number: int) -> None:
    run, fault = IMPOSSIBLE[number]
    with pytest.raises(RunError, match=f"^{re.escape('run.json has an impossible plan: ' + fault)}$"):
        declared_plan(run)


@pytest.mark.parametrize(
    ("run", "error"),
    [
        ({}, "KeyError: 'plan'"),
        (put("stages", value=[1]), "TypeError: .*"),
        (put("orders", value=[["x"]]), "ValueError: .*"),
        ({"plan": 3}, "TypeError: .*"),
        ({"plan": {"layout": {}, "stages": {"a": 1}}}, "TypeError: .*"),
        ({"plan": {"layout": {}, "stages": [], "orders": [], "method": ""}}, "KeyError: 'shards'"),
    ],
)
def test_unreadable_plans_name_the_error(run: Any, error: str) -> None:
    with pytest.raises(RunError, match=rf"^run\.json has no readable plan \({error}\)$") as caught:
        declared_plan(run)
    assert caught.value.__cause__ is not None


FULL, ALL = ("full", "full", (0, 1, 2, 3)), ("all", "lora", (0, 1, 2, 3))
TABLE: dict[str, list[tuple[str, str, tuple[int, ...], float]]] = {
    "s3t": [("block-00", "lora", (2, 3), 3.0), ("block-01", "lora", (0, 1), 3.0)],
    "sequential": [(*ALL, 3.0)] * 2,
    "sisa-lora": [(*ALL, 2.0)] * 2,
    "sisa-lora-lazy": [(*ALL, 2.0)] * 2,
    "sisa-full": [(*FULL, 2.0)] * 2,
    "sisa-full-lazy": [(*FULL, 2.0)] * 2,
    "retrain-lora": [(*ALL, 3.0)],
    "retrain-full": [(*FULL, 3.0)],
}


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_methods(method: str) -> None:
    plan = documented_plan(method, shards=3, slices=2, budget=2, layers=4, epochs=3.0)
    assert plan is not None
    alone = method.startswith("retrain")
    assert (plan.shards, plan.slices, plan.budget) == ((1, 1, 1) if alone else (3, 2, 2))
    assert plan.orders == (((0,),) if alone else ((0, 1), (1, 0)))
    assert [dataclasses.astuple(stage) for stage in plan.stages] == [(*stage, False) for stage in TABLE[method]]
    assert (plan.method, plan.design, plan.eager) == (method, PAPER, method in EAGER)
    assert set(LAZY) | set(EAGER) == set(METHODS) == set(TABLE)


def test_s3t_needs_a_layer_for_each_slice() -> None:
    for layers, expected in ((1, None), (2, [(1,), (0,)]), (5, [(3, 4), (1, 2)])):
        plan = documented_plan("s3t", shards=1, slices=2, budget=1, layers=layers, epochs=1.0)
        assert (plan and [stage.layers for stage in plan.stages]) == expected


def documented(method: str = "s3t") -> Plan:
    plan = documented_plan(method, shards=2, slices=2, budget=2, layers=4, epochs=1.0)
    assert plan is not None
    return plan


Change = Callable[[Plan], Plan]
FAULTS: list[tuple[Change, list[str]]] = [
    (lambda p: p, []),
    (lambda p: dataclasses.replace(p, orders=((1, 0),), method="x"), []),
    (
        lambda p: dataclasses.replace(p, shards=5, slices=6, budget=7, eager=True),
        [
            "shards is 5, the method has 2",
            "slices is 6, the method has 2",
            "budget is 7, the method has 2",
            "eager is True, the method has False",
        ],
    ),
]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_departures_from_the_documented_plan(number: int) -> None:
    change, expected = FAULTS[number]
    assert plan_faults(change(documented()), documented()) == expected


@pytest.mark.parametrize("field", ["adapter", "kind", "layers", "epochs"])
def test_departing_stages_are_shown(field: str) -> None:
    wanted = documented().stages[1]
    other: Any = {"adapter": "x", "kind": "full", "layers": (), "epochs": 9.0}[field]
    found = dataclasses.replace(wanted, **{field: other})
    told = plan_faults(dataclasses.replace(documented(), stages=(documented().stages[0], found)), documented())
    assert told == [f"stage 1 is {found}, the method has {wanted}"]


def test_full_stages_may_leave_their_layers_out_and_no_others() -> None:
    whole = documented("sisa-full")
    bare = dataclasses.replace(whole, stages=tuple(dataclasses.replace(s, layers=()) for s in whole.stages))
    assert plan_faults(bare, whole) == []
    some = dataclasses.replace(whole, stages=tuple(dataclasses.replace(s, layers=(1,)) for s in whole.stages))
    assert len(plan_faults(some, whole)) == 2


def test_fewer_stages_than_documented_are_compared_as_far_as_they_go() -> None:
    less = dataclasses.replace(documented(), stages=documented().stages[:1])
    assert plan_faults(less, documented()) == []
    assert plan_faults(documented(), less) == []


def declare(method: str = "s3t", *, cumulative: bool = True, **design: Any) -> dict[str, Any]:
    run = put("design", value=design)
    run["plan"] |= {"method": method, "cumulative": cumulative}
    return run


def test_a_declared_design_field_by_field() -> None:
    told = [
        declared_plan(run).design
        for run in (
            declare(block_layers=[2, 1]),
            declare(bottom_up=True),
            declare(fresh_head=True),
            declare(cumulative=False),
            declare(),
        )
    ]
    assert told == [Design((2, 1)), Design(bottom_up=True), Design(fresh_head=True), Design(cumulative=False), PAPER]
    stage = put("stages", 1, "fresh_head", value=True)
    assert [s.fresh_head for s in declared_plan(stage).stages] == [False, True]


def test_designs_that_cannot_be_read_or_are_not_s3ts() -> None:
    unknown = r"^run\.json has no readable plan \(ValueError: its design has unknown \['rank', 'top'\]\)$"
    with pytest.raises(RunError, match=unknown):
        declared_plan(declare(top=True, rank=2))
    for run, design in (
        (declare("sisa-lora", bottom_up=True), Design(bottom_up=True)),
        (declare("sequential", cumulative=False), Design(cumulative=False)),
    ):
        fault = f"{run['plan']['method']} declares a design ({design}); only s3t has one"
        with pytest.raises(RunError, match=f"^{re.escape('run.json has an impossible plan: ' + fault)}$"):
            declared_plan(run)


SIZES: list[tuple[int, int, Design, list[tuple[int, ...]] | None]] = [
    (6, 2, Design((2, 1)), [(4, 5), (3,)]),
    (6, 2, Design((2, 1), bottom_up=True), [(3, 4), (5,)]),
    (5, 2, Design(bottom_up=True), [(1, 2), (3, 4)]),
    (3, 2, Design((2, 1)), [(1, 2), (0,)]),
    (2, 2, Design((2, 1)), None),
    (6, 2, Design((2, 0)), None),
    (6, 2, Design((2, 1, 1)), None),
    (6, 2, Design((2,)), None),
    (3, 2, Design(stacked=True), [(0, 1, 2), (0, 1, 2)]),
    (3, 2, Design((1, 1), stacked=True), None),
    (3, 2, Design(bottom_up=True, stacked=True), None),
]


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_the_blocks_of_a_design(number: int) -> None:
    layers, slices, design, expected = SIZES[number]
    plan = documented_plan("s3t", shards=1, slices=slices, budget=1, layers=layers, epochs=1.0, design=design)
    assert (plan and [stage.layers for stage in plan.stages]) == expected
    assert plan is None or plan.design == design


def test_heads_are_fresh_from_the_second_stage_on() -> None:
    design = Design(fresh_head=True)
    plan = documented_plan("s3t", shards=1, slices=3, budget=1, layers=3, epochs=1.0, design=design)
    assert plan is not None
    assert [stage.fresh_head for stage in plan.stages] == [False, True, True]
    stale = dataclasses.replace(plan, stages=(*plan.stages[:2], dataclasses.replace(plan.stages[2], fresh_head=False)))
    assert plan_faults(stale, plan) == [f"stage 2 is {stale.stages[2]}, the method has {plan.stages[2]}"]


def test_what_a_node_reads() -> None:
    plan = documented()
    assert [plan.pieces(prefix) for prefix in ((1,), (1, 0))] == [(1,), (1, 0)]
    last = dataclasses.replace(plan, design=Design(cumulative=False))
    assert [last.pieces(prefix) for prefix in ((1,), (1, 0))] == [(1,), (0,)]
