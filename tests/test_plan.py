"""Plans: blocks of layers from the top, checks of orders and stages, growing budgets, the stored form."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from s3t.errors import LayoutError
from s3t.plan import Plan, Stage, s3t_plan, top_down_blocks
from s3t.records import Layout, Recipe


def test_blocks_of_the_paper() -> None:
    assert top_down_blocks(12, 6) == [(10, 11), (8, 9), (6, 7), (4, 5), (2, 3), (0, 1)]
    assert top_down_blocks(12, 5) == [(10, 11), (8, 9), (6, 7), (4, 5), (2, 3)]  # layers 0 and 1 are left over


def test_blocks_are_equal_disjoint_and_go_down() -> None:
    for layers in range(1, 25):
        for slices in range(1, layers + 1):
            blocks = top_down_blocks(layers, slices)
            assert len(blocks) == slices
            assert {len(block) for block in blocks} == {layers // slices}
            flat = [layer for block in blocks for layer in reversed(block)]
            assert flat == list(range(layers - 1, layers - 1 - len(flat), -1))
        with pytest.raises(LayoutError, match=f"slices={layers + 1} exceeds the model's {layers} layers"):
            top_down_blocks(layers, layers + 1)


def test_s3t_trains_a_block_per_stage_for_all_epochs() -> None:
    plan = s3t_plan(Layout(2, 3, 4), Recipe(epochs=3), 12)
    assert [stage.adapter for stage in plan.stages] == ["block-00", "block-01", "block-02"]
    assert [stage.layers for stage in plan.stages] == [(8, 9, 10, 11), (4, 5, 6, 7), (0, 1, 2, 3)]
    assert {(stage.kind, stage.epochs) for stage in plan.stages} == {("lora", 3.0)}
    assert (plan.method, plan.eager, plan.cumulative) == ("s3t", False, True)
    assert plan.orders == ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1))


def test_adapter_names_are_no_prefixes_of_each_other() -> None:
    names = [stage.adapter for stage in s3t_plan(Layout(1, 12, 1), Recipe(), 12).stages]
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


STAGE = Stage("all", "lora", (0,), 1.0)


@pytest.mark.parametrize(
    ("orders", "stages", "message"),
    [
        (((0, 1),), 1, "1 stages do not fit 2 slices"),
        (((0, 1),), 3, "3 stages do not fit 2 slices"),
        ((), 2, "0 orders for budget 1"),
        (((0, 1), (1, 0)), 2, "2 orders for budget 1"),
        (((0, 2),), 2, r"order \(0, 2\) is not a permutation of the slices 0..1"),
        (((0, 0),), 2, r"order \(0, 0\) is not a permutation"),
        (((0,),), 2, r"order \(0,\) is not a permutation"),
    ],
)
def test_plan_refuses(orders: tuple[tuple[int, ...], ...], stages: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Plan("m", Layout(1, 2, 1), orders, (STAGE,) * stages)


def test_plan_refuses_repeated_orders() -> None:
    with pytest.raises(LayoutError, match="give that many distinct orders"):
        Plan("m", Layout(1, 2, 2), ((0, 1), (0, 1)), (STAGE, STAGE))


def test_a_larger_budget_keeps_the_orders_there_are() -> None:
    for slices in (1, 2, 3, 4):
        most = s3t_plan(Layout(1, slices, math.factorial(slices)), Recipe(), 4)
        for budget in range(1, math.factorial(slices) + 1):
            plan = s3t_plan(Layout(1, slices, budget), Recipe(), 4)
            assert plan.orders == most.orders[:budget]
            assert plan.with_budget(math.factorial(slices)) == most
            assert most.with_budget(budget) == plan


def test_own_orders_cannot_be_extended() -> None:
    plan = dataclasses.replace(s3t_plan(Layout(1, 3, 1), Recipe(), 3), orders=((2, 1, 0),))
    with pytest.raises(LayoutError, match="only cyclic orders can"):
        plan.with_budget(2)


def test_plan_is_stored_whole() -> None:
    plan = s3t_plan(Layout(2, 3, 6), Recipe(), 7)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
