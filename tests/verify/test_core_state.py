"""What the ledger says has happened, and what has become of every node, as a report tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from s3t.errors import RunError
from verify.case import Event
from verify.derive import cyclic
from verify.evidence import Entry
from verify.plans import documented_plan
from verify.state import Chain, Survivor, derive_state, graph_of, history, longest, node_name, orders_now, served


def train(seq: int, shard: int, prefix: list[int], parent: str | None = None, key: str = "k") -> Entry:
    facts: dict[str, Any] = {"key": key, "shard": shard, "prefix": prefix, "parent": parent, "environment": {"x": 1}}
    return Entry(seq, "train", facts | {"tensors": "t", "head": "h", "reads": "r", "files": {"f": "d"}})


def request(seq: int, tags: list[str], *slots: list[int]) -> Entry:
    return Entry(seq, "request", {"tags": tags, "slots": list(slots)})


CREATE = Entry(1, "create", {"run": "", "rows": 0, "root": "", "key": ""})
PAST = [
    CREATE,
    train(2, 0, [0]),
    train(3, 0, [0, 1]),
    request(4, ["tb", "ta"], [0, 1], [1, 0]),
    train(5, 0, [0, 1]),
    train(6, 0, [0]),
    Entry(7, "extend", {"budget": 2}),
    train(8, 0, [1]),
    Entry(9, "stray", {"tags": ["tc"]}),
    request(10, [], [1, 1]),
    train(11, 0, [0, 1]),
]


def test_a_history_without_names_tells_slots() -> None:
    assert history(PAST) == (
        Event("retire", slots=((0, 1), (1, 0))),
        Event("refresh"),
        Event("extend", budget=2),
        Event("retire", slots=((1, 1),)),
        Event("refresh"),
    )


def test_a_history_with_names_tells_ids_in_order() -> None:
    named = history(PAST, {"ta": "a", "tb": "b"})
    assert named[0] == Event("delete", ("a", "b"), ((0, 1), (1, 0)))
    assert named[3] == Event("retire", (), ((1, 1),))
    assert history(PAST, {"ta": "a"})[0].ids == ("", "a")
    assert history([]) == ()


def test_the_same_prefix_in_two_shards_is_no_refresh() -> None:
    assert history([train(2, 0, [0]), train(3, 1, [0])]) == ()


def test_a_survivor_is_as_the_ledger_describes_it() -> None:
    from verify.state import surviving

    assert surviving([train(3, 2, [1, 0], "p", "key")]) == {
        (2, (1, 0)): Survivor(3, "key", 2, (1, 0), "p", "t", "h", "r", {"f": "d"}, {"x": 1})
    }


def test_only_requests_after_a_training_drop_it_and_in_its_own_shard() -> None:
    from verify.state import surviving

    assert set(surviving([request(1, [], [0, 0]), train(2, 0, [0])])) == {(0, (0,))}
    assert set(surviving([train(1, 0, [0]), train(2, 1, [0]), request(3, [], [0, 0])])) == {(1, (0,))}
    assert surviving([train(1, 0, [0, 1]), request(2, [], [0, 1])]) == {}


def test_the_graph_says_what_serves_survives_or_was_dropped(forge: Callable[..., Any]) -> None:
    run = forge(slices=2, budget=2, shards=1)
    graph = graph_of(run.read()[1])
    assert graph["shards"] == 1
    assert graph["orders"] == [[0, 1], [1, 0]]
    assert graph["nodes"] == [
        {"shard": 0, "prefix": [0], "name": "shard 0, slices 0", "is": "serves"},
        {"shard": 0, "prefix": [1], "name": "shard 0, slices 1", "is": "survives"},
        {"shard": 0, "prefix": [0, 1], "name": "shard 0, slices 0-1", "is": "serves"},
        {"shard": 0, "prefix": [1, 0], "name": "shard 0, slices 1-0", "is": "survives"},
    ]
    victim = next(row for row in run.rows if row[4] == "train" and row[3] == 1)
    run.delete(victim[1])
    assert [node["is"] for node in graph_of(run.read()[1])["nodes"]] == ["serves", "dropped", "dropped", "dropped"]


def test_nodes_are_those_of_every_shard_parents_first(forge: Callable[..., Any]) -> None:
    state = forge(slices=2, budget=2, shards=2).read()[1]
    one = [(0,), (1,), (0, 1), (1, 0)]
    assert state.nodes() == [(0, p) for p in one] + [(1, p) for p in one]
    assert node_name(3, (10, 2)) == "shard 3, slices 10-2"


def test_state_of_a_run_with_deletions(forge: Callable[..., Any]) -> None:
    run = forge(slices=2, budget=2, shards=2)
    first, second = ([r for r in run.rows if r[4] == "train" and r[2] == 1][i] for i in (0, 1))
    run.delete(first[1])
    run.delete(second[1])
    evidence, state = run.read()
    assert state.tombstones == {first[0], second[0]}
    last = {(first[2], first[3]): len(run.entries) - 1} | {(second[2], second[3]): len(run.entries)}
    assert state.hits == last
    assert state.recipe == run.recipe
    assert state.orders == ((0, 1), (1, 0))
    stored = {row.record.id for rows in state.by_slot.values() for row in rows}
    assert stored == {record.id for record in run.records} - {first[1], second[1]}
    everything = state.rows(0, (1, 0))
    assert [row.record.id for row in everything] == sorted(r[1] for r in run.rows if r[4] == "train" and r[2] == 0)
    assert state.rows(9, (0,)) == []
    assert derive_state(evidence) == state


def test_shards_without_a_chain_are_offline(forge: Callable[..., Any]) -> None:
    run = forge(slices=1, budget=1, shards=3)
    gone = [r[1] for r in run.rows if r[4] == "train" and r[2] == 1]
    run.delete(*gone)
    _, state = run.read()
    assert state.offline == (1,)
    assert [chain.shard for chain in state.chains] == [0, 2]


def test_a_chain_ends_where_a_parent_is_not_the_one_before() -> None:
    def survivor(prefix: tuple[int, ...], key: str, parent: str | None) -> Survivor:
        return Survivor(1, key, 0, prefix, parent, "", "", "", {}, {})

    whole = {(0, (0,)): survivor((0,), "a", None), (0, (0, 1)): survivor((0, 1), "b", "a")}
    assert [node.key for node in longest(0, (0, 1), whole)] == ["a", "b"]
    assert longest(1, (0, 1), whole) == ()
    orphan = {(0, (0,)): survivor((0,), "a", "someone"), (0, (0, 1)): survivor((0, 1), "b", "a")}
    assert longest(0, (0, 1), orphan) == ()
    gap = {(0, (0,)): survivor((0,), "a", None), (0, (0, 1, 2)): survivor((0, 1, 2), "c", "a")}
    assert [node.key for node in longest(0, (0, 1, 2), gap)] == ["a"]


def test_ties_go_to_the_lowest_order_and_each_shard_serves_once() -> None:
    def survivor(shard: int, prefix: tuple[int, ...]) -> Survivor:
        return Survivor(1, f"{shard}{prefix}", shard, prefix, None, "", "", "", {}, {})

    alive = {(shard, prefix): survivor(shard, prefix) for shard in (0, 2) for prefix in ((0,), (1,))}
    chains = served(3, ((0, 1), (1, 0)), alive, {(0, 0), (0, 1), (2, 1)})
    assert chains == (Chain(0, 0, (alive[0, (0,)],)), Chain(2, 1, (alive[2, (1,)],)))
    assert chains[1].prefix == (1,)


@pytest.mark.parametrize("budget", [0, -1, "2", 1.0, None])
def test_an_impossible_extension_is_refused(budget: Any) -> None:
    plan = documented_plan("s3t", shards=1, slices=3, budget=1, layers=3, epochs=1.0)
    assert plan is not None
    with pytest.raises(RunError, match=rf"^ledger entry 5 extends the budget to {budget!r}; it is at least 1$"):
        orders_now(plan, [Entry(5, "extend", {"budget": budget})])


def test_the_last_extension_counts_and_without_one_the_plan() -> None:
    plan = documented_plan("s3t", shards=1, slices=3, budget=1, layers=3, epochs=1.0)
    assert plan is not None
    assert orders_now(plan, [CREATE]) == plan.orders == ((0, 1, 2),)
    assert orders_now(plan, [Entry(2, "extend", {"budget": 1})]) == ((0, 1, 2),)
    entries = [Entry(2, "extend", {"budget": 5}), Entry(3, "extend", {"budget": 2})]
    assert orders_now(plan, entries) == cyclic(3, 2)


def test_many_nodes_trained_again_are_one_refresh() -> None:
    again = [train(2, 0, [0]), train(3, 0, [0, 1]), train(4, 0, [0]), train(5, 0, [0, 1])]
    assert history(again) == (Event("refresh"),)
    later = [*again, request(6, [], [0, 0]), request(7, [], [0, 1]), train(8, 0, [0]), train(9, 0, [0, 1])]
    assert history(later)[1:] == (Event("retire", slots=((0, 0),)), Event("retire", slots=((0, 1),)), Event("refresh"))
