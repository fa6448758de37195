"""What survives and what is served, exhaustively against a slow oracle that replays the ledger from the words of SPEC 3."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from s3t.contract import Cost
from s3t.facts import Facts
from s3t.graph import Node, nodes
from s3t.ledger import Ledger
from s3t.plan import Plan, s3t_plan
from s3t.records import Layout, Recipe
from s3t.selection import Chain, TrainedNode, chain, served, survivors

SHARDS, SLICES = 2, 3
SLOTS = list(itertools.product(range(SHARDS), range(SLICES)))
HIT_SETS = [set(c) for size in range(len(SLOTS) + 1) for c in itertools.combinations(SLOTS, size)]


def _plan(budget: int, slices: int = SLICES, shards: int = SHARDS) -> Plan:
    return s3t_plan(Layout(shards, slices, budget), Recipe(), 6)


def _key(node: Node, generation: int = 0) -> str:
    return f"{node.name}@{generation}"


def _fact(seq: int, node: Node, rows: int = 5, generation: int = 0) -> TrainedNode:
    parent = _key(node.parent, generation) if node.parent else None
    return TrainedNode(seq, node, _key(node, generation), parent, rows, {})


def _slow_lengths(plan: Plan, shard: int, dropped: set[tuple[int, int]]) -> list[int]:
    """SPEC section 3: where slice l stands at position p, the order is cut to length p - 1."""
    lengths = []
    for order in plan.orders:
        length = 0
        while length < len(order) and (shard, order[length]) not in dropped:
            length += 1
        lengths.append(length)
    return lengths


@pytest.mark.parametrize("budget", range(1, math.factorial(SLICES) + 1))
def test_every_set_of_hit_slots(budget: int) -> None:
    plan = _plan(budget)
    facts = [_fact(i + 1, node) for i, node in enumerate(nodes(plan))]
    for hit in HIT_SETS:
        alive = survivors(facts, dict.fromkeys(hit, 100))
        assert set(alive) == {node for node in nodes(plan) if not node.touches(hit)}
        found = served(plan, alive)
        for shard in range(SHARDS):
            lengths = _slow_lengths(plan, shard, hit)
            if max(lengths) == 0:
                assert shard not in found
                continue
            best = lengths.index(max(lengths))
            assert found[shard].order == best  # ties: the lowest order index
            wanted = [_key(Node(shard, plan.orders[best][:i])) for i in range(1, max(lengths) + 1)]
            assert [fact.key for fact in found[shard].nodes] == wanted


def test_a_shard_is_live_while_any_first_slice_is_unhit() -> None:
    """SPEC section 4: B' distinct first slices; the shard is dead exactly when all of them are hit."""
    for budget in range(1, 7):
        plan = _plan(budget)
        first = {order[0] for order in plan.orders}
        assert len(first) == min(budget, SLICES)
        facts = [_fact(i + 1, node) for i, node in enumerate(nodes(plan))]
        for hit in HIT_SETS:
            live = served(plan, survivors(facts, dict.fromkeys(hit, 100)))
            assert set(live) == {s for s in range(SHARDS) if {(s, f) for f in first} - hit}


def test_only_training_after_the_last_hit_survives() -> None:
    node = Node(0, (1, 2))
    for seq, hit in itertools.product(range(1, 6), range(1, 6)):
        alive = survivors([_fact(seq, node)], {(0, 2): hit})
        assert (node in alive) == (hit < seq)
        assert survivors([_fact(seq, node)], {(1, 2): hit, (0, 0): hit})[node].seq == seq


def test_the_last_training_counts_in_whatever_order_facts_come() -> None:
    node = Node(0, (1,))
    for order in itertools.permutations([_fact(2, node), _fact(5, node, generation=1), _fact(9, node, generation=2)]):
        assert survivors(order, {})[node].seq == 9


def test_a_chain_ends_where_a_parent_is_not_the_node_before() -> None:
    plan = _plan(1)
    facts = {Node(0, (0, 1, 2)[:i]): _fact(i, Node(0, (0, 1, 2)[:i])) for i in (1, 2, 3)}
    facts[Node(0, (0,))] = _fact(7, Node(0, (0,)), generation=1)
    found = chain(0, 0, plan, facts)
    assert found is not None
    assert [fact.seq for fact in found.nodes] == [7]


def test_a_chain_whose_last_node_read_no_row_does_not_serve() -> None:
    plan = _plan(2)
    order = plan.orders[0]
    for empty in itertools.product((0, 4), repeat=3):
        rows = list(itertools.accumulate(empty))  # cumulative: later stages read earlier slices too
        alive = {Node(0, order[: i + 1]): _fact(i + 1, Node(0, order[: i + 1]), rows[i]) for i in range(3)}
        found = served(plan, alive)
        assert (0 in found) == (rows[-1] > 0)
        if 0 in found:
            assert len(found[0].nodes) == 3


def _train_body(node: Node, generation: int) -> dict[str, Any]:
    return {
        "key": _key(node, generation),
        "shard": node.shard,
        "prefix": list(node.prefix),
        "parent": _key(node.parent, generation) if node.parent else None,
        "rows": 3,
        "files": {},
        "cost": asdict(Cost(nodes=1, record_passes=3, seconds=0.5)),
    }


def _slow_alive(plan: Plan, history: Sequence[tuple[str, Any]]) -> dict[Node, int]:
    """Replay a history step by step: training adds a node, a request takes away every node that contains its slots."""
    alive: dict[Node, int] = {}
    for position, (kind, what) in enumerate(history, start=1):
        if kind == "train":
            alive[what] = position
        elif kind == "request":
            alive = {node: at for node, at in alive.items() if not node.touches(set(what))}
    return alive


def test_facts_follow_random_histories_one_entry_or_many_at_a_time(tmp_path: Path) -> None:
    draw = random.Random(4)
    for case in range(6):
        ledger = Ledger.create(tmp_path / f"{case}.sqlite")
        plan = _plan(draw.randint(1, 6))
        eager, late, history = Facts(ledger, plan), Facts(ledger, plan), []
        for _ in range(25):
            if draw.random() < 0.7:
                gone = [n for n in nodes(plan) if n not in _slow_alive(plan, history)]
                if not gone:
                    continue
                node = gone[0]
                history.append(("train", node))
                ledger.append("train", _train_body(node, 0))
            else:
                slots = draw.sample(SLOTS, draw.randint(1, 2))
                history.append(("request", slots))
                ledger.append_request({"tags": [], "slots": slots}, (), slots)
            assert eager.update()
            assert not eager.update()
            if draw.random() < 0.2:
                late.update()
        late.update()
        wanted = _slow_alive(plan, history)
        for view in (eager, late):
            assert {node: fact.seq for node, fact in view.alive.items()} == wanted
            assert set(view.missing()) == set(nodes(plan)) - set(wanted)
            trained = [what for kind, what in history if kind == "train"]
            assert view.cost.nodes == len(trained)
            assert view.cost.record_passes == 3 * len(trained)
            assert view.live_keys() == {_key(node) for node in wanted}
            assert view.dropped_keys() == {_key(node) for node in trained} - view.live_keys()
        ledger.close()


def test_an_extended_budget_is_seen(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    facts = Facts(ledger, _plan(1))
    ledger.append("extend", {"budget": 4})
    facts.update()
    assert facts.plan == _plan(4)
    assert facts.missing() == nodes(_plan(4))
    ledger.close()


def test_an_entry_that_arrives_during_an_update_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process appends between the look at the head and the look at the entries."""
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    facts = Facts(ledger, _plan(1))
    first, second = nodes(_plan(1))[:2]
    ledger.append("train", _train_body(first, 0))
    with monkeypatch.context() as patch:
        head = ledger.head()
        ledger.append("train", _train_body(second, 0))
        ledger.append("extend", {"budget": 2})
        patch.setattr(ledger, "head", lambda: head)
        facts.update()
    facts.update()
    assert facts.cost.nodes == 2
    assert set(facts.alive) == {first, second}
    assert facts.plan == _plan(2)
    ledger.close()


def test_chains_are_values() -> None:
    """Serving compares them to see whether a model in memory is still the right one."""
    plan = _plan(1)
    alive = {node: _fact(i + 1, node) for i, node in enumerate(nodes(plan))}
    again = {node: _fact(i + 1, node) for i, node in enumerate(nodes(plan))}
    assert served(plan, alive) == served(plan, again)
    rebuilt = {node: _fact(i + 100, node) for i, node in enumerate(nodes(plan))}
    assert served(plan, alive) != served(plan, rebuilt)
    assert isinstance(served(plan, alive)[0], Chain)
