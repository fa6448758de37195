"""Plans by method, survivors and selection: exhaustively over small histories."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from s3t.errors import RunError
from verify.derive import cyclic
from verify.evidence import Entry
from verify.plans import METHODS, declared_plan, documented_plan, plan_faults
from verify.state import longest, orders_now, served, surviving

SIX = {"shards": 3, "slices": 3, "budget": 2, "layers": 6, "epochs": 4.0}


def test_s3t_stacks_blocks_from_the_top() -> None:
    plan = documented_plan("s3t", shards=1, slices=4, budget=1, layers=13, epochs=2.0)
    assert plan is not None
    assert [s.layers for s in plan.stages] == [(10, 11, 12), (7, 8, 9), (4, 5, 6), (1, 2, 3)]
    assert [s.adapter for s in plan.stages] == ["block-00", "block-01", "block-02", "block-03"]
    assert {s.epochs for s in plan.stages} == {2.0}
    assert documented_plan("s3t", shards=1, slices=4, budget=1, layers=3, epochs=2.0) is None


@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str) -> None:
    plan = documented_plan(method, **SIX)
    assert plan is not None
    assert plan.eager is (method in ("sisa-lora", "sisa-full", "retrain-lora", "retrain-full"))
    assert len(plan.stages) == plan.slices == (1 if method.startswith("retrain") else 3)
    assert {s.kind for s in plan.stages} == {"full" if "full" in method else "lora"}
    assert {s.epochs for s in plan.stages} == {2.0 if method.startswith("sisa") else 4.0}
    if method != "s3t":
        assert {s.layers for s in plan.stages} == {(0, 1, 2, 3, 4, 5)}
    assert not plan_faults(plan, plan)


def test_unknown_method_has_no_plan() -> None:
    assert documented_plan("magic", **SIX) is None


def as_run(method: str = "s3t") -> dict[str, Any]:
    plan = documented_plan(method, **SIX)
    assert plan is not None
    stages = [{"adapter": s.adapter, "kind": s.kind, "layers": list(s.layers), "epochs": s.epochs} for s in plan.stages]
    layout = {"shards": plan.shards, "slices": plan.slices, "budget": plan.budget}
    raw = {"method": method, "layout": layout, "orders": plan.orders, "stages": stages}
    return {"plan": raw | {"cumulative": True, "eager": plan.eager}}


def test_declared_plan_reads_what_is_documented() -> None:
    run = json.loads(json.dumps(as_run()))
    assert declared_plan(run) == documented_plan("s3t", **SIX)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("orders",), [[0, 1, 2], [0, 1, 2]], "distinct orders"),
        (("orders",), [[0, 1, 1], [1, 2, 0]], "no permutation"),
        (("orders",), [[0, 1, 2]], "distinct orders for budget=2"),
        (("stages",), [], "0 stages for 3 slices"),
        (("design",), {"bottom_down": True}, r"unknown \['bottom_down'\]"),
        (("layout",), {"shards": 0, "slices": 3, "budget": 2}, "shards=0"),
        (("layout",), {"slices": 3}, "no readable plan"),
        (("stages",), [{"adapter": "x", "kind": "odd", "layers": [], "epochs": 1}] * 3, "unknown kind"),
    ],
)
def test_impossible_plans_are_refused(path: tuple[str], value: Any, message: str) -> None:
    run = as_run()
    run["plan"][path[0]] = value
    with pytest.raises(RunError, match=message):
        declared_plan(run)


def test_plan_faults_name_the_stage() -> None:
    documented = documented_plan("s3t", **SIX)
    run = as_run()
    run["plan"]["stages"][1]["epochs"] = 5.0
    run["plan"]["eager"] = True
    assert documented is not None
    faults = plan_faults(declared_plan(run), documented)
    assert faults[0] == "eager is True, the method has False"
    assert faults[1].startswith("stage 1 is")


def trained(seq: int, shard: int, prefix: tuple[int, ...], parent: str | None, key: str = "") -> Entry:
    named = key or f"{shard}:{prefix}"
    facts = {"key": named, "shard": shard, "prefix": list(prefix), "parent": parent}
    empty = {"tensors": "", "head": "", "reads": "", "files": {}, "environment": {}}
    return Entry(seq, "train", facts | empty)


def request(seq: int, *slots: tuple[int, int]) -> Entry:
    return Entry(seq, "request", {"tags": [], "slots": [list(slot) for slot in slots]})


def fit(shards: int, orders: tuple[tuple[int, ...], ...]) -> list[Entry]:
    entries, seen = [], set()
    for shard, order in itertools.product(range(shards), orders):
        for length in range(1, len(order) + 1):
            prefix = order[:length]
            if (shard, prefix) not in seen:
                seen.add((shard, prefix))
                parent = f"{shard}:{prefix[:-1]}" if length > 1 else None
                entries.append(trained(len(entries) + 1, shard, prefix, parent))
    return entries


@pytest.mark.parametrize(("slices", "budget"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (3, 6), (4, 5)])
def test_every_set_of_hit_slices_cuts_as_the_specification_says(slices: int, budget: int) -> None:
    """SPEC section 3: blocks p..L are dropped where the slice stands at position p; the longest chain serves."""
    orders = cyclic(slices, budget)
    occupied = {(0, s) for s in range(slices)}
    for count in range(slices + 1):
        for hit in itertools.combinations(range(slices), count):
            entries = [*fit(1, orders), *(request(100 + s, (0, s)) for s in hit)]
            lengths = [min([order.index(s) for s in hit], default=slices) for order in orders]
            alive = surviving(entries)
            assert [len(longest(0, order, alive)) for order in orders] == lengths
            chains = served(1, orders, alive, occupied)
            if max(lengths) == 0:
                assert chains == ()
            else:
                assert chains[0].order == lengths.index(max(lengths))
                assert chains[0].prefix == orders[chains[0].order][: max(lengths)]


def test_only_the_shard_that_was_hit_is_cut() -> None:
    orders = cyclic(2, 1)
    chains = served(2, orders, surviving([*fit(2, orders), request(50, (1, 1))]), {(0, 0), (1, 0)})
    assert [(c.shard, c.prefix) for c in chains] == [(0, (0, 1)), (1, (0,))]


def test_a_refresh_revives_and_a_later_request_drops_again() -> None:
    orders = cyclic(2, 1)
    entries = [*fit(1, orders), request(10, (0, 1)), trained(11, 0, (0, 1), "0:(0,)", "new")]
    assert surviving(entries)[0, (0, 1)].key == "new"
    assert (0, (0, 1)) not in surviving([*entries, request(12, (0, 1))])


def test_a_node_on_another_parent_does_not_serve() -> None:
    entries = [trained(1, 0, (0,), None, "other"), trained(2, 0, (0, 1), "0:(0,)")]
    assert len(longest(0, (0, 1), surviving(entries))) == 1


def test_a_chain_that_read_no_row_does_not_serve() -> None:
    orders = cyclic(2, 2)
    alive = surviving([*fit(1, orders), request(9, (0, 1))])
    assert served(1, orders, alive, ()) == ()
    assert served(1, orders, alive, {(0, 0)})[0].prefix == (0,)


def test_extension_makes_the_orders_cyclic() -> None:
    plan = documented_plan("s3t", **SIX)
    assert plan is not None
    assert orders_now(plan, [Entry(5, "extend", {"budget": 5})]) == cyclic(3, 5)
    with pytest.raises(RunError, match="at least 1"):
        orders_now(plan, [Entry(5, "extend", {"budget": 0})])


def test_rows_that_are_tombstoned_do_not_count_even_if_still_stored(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-003")
    run.restore(run.records[3])
    _, state = run.read()
    assert "row-003" not in {row.record.id for rows in state.by_slot.values() for row in rows}
