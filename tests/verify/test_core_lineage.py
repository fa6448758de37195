"""Lineage, word for word: what exactly each fault makes the check say, about which node, and nothing beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from s3t.contract import NodeFacts, Provenance, ServedChain
from s3t.records import Recipe, Record, sha256
from verify import derive
from verify.lineage import as_served, check_lineage
from verify.state import without

V, U, H = "VIOLATED", "UNDECIDED", "HOLDS"
Told = list[tuple[str, str, str]]


def told(run: Any, provenance: Provenance | None = None) -> Told:
    evidence, state = run.read()
    found = check_lineage(provenance or run.provenance(), evidence, state)
    assert {(f.check, f.tensor) for f in found} == {("E0 lineage", "")}
    return [(f.verdict.value, f.node, f.message) for f in found]


def chain(provenance: Provenance, number: int, **changes: Any) -> Provenance:
    chains = list(provenance.chains)
    chains[number] = dataclasses.replace(chains[number], **changes)
    return dataclasses.replace(provenance, chains=tuple(chains))


def node(provenance: Provenance, number: int, position: int, **changes: Any) -> Provenance:
    nodes = list(provenance.chains[number].nodes)
    nodes[position] = dataclasses.replace(nodes[position], **changes)
    return chain(provenance, number, nodes=tuple(nodes))


LONGEST = "the longest surviving chain is order 0, slices [0, 1]"
WEIGHT = "it must be 0.5: 2 shards are live, weights 'equal'"
EXACT: dict[str, tuple[Callable[[Provenance], Provenance], Told]] = {
    "another order": (lambda p: chain(p, 0, order=1), [(V, "shard 0", f"serves order 1, slices [0, 1]; {LONGEST}")]),
    "a shorter chain": (
        lambda p: chain(p, 0, nodes=p.chains[0].nodes[:1]),
        [(V, "shard 0", f"serves order 0, slices [0]; {LONGEST}")],
    ),
    "no node": (lambda p: chain(p, 1, nodes=()), [(V, "shard 1", f"serves order 0, slices []; {LONGEST}")]),
    "weight": (lambda p: chain(p, 1, weight=0.25), [(V, "shard 1", f"its weight in the ensemble is 0.25; {WEIGHT}")]),
    "weight not a number": (
        lambda p: chain(p, 0, weight=float("nan")),
        [(V, "shard 0", f"its weight in the ensemble is nan; {WEIGHT}")],
    ),
    "offline": (
        lambda p: dataclasses.replace(p, offline=(1, 0)),
        [(V, "", "offline are said to be [1, 0], derived []")],
    ),
    "a shard missing": (
        lambda p: dataclasses.replace(p, chains=p.chains[1:]),
        [(V, "", "shards [1] serve, but [0, 1] have a surviving chain")],
    ),
    "a shard twice": (
        lambda p: dataclasses.replace(p, chains=(*p.chains, p.chains[0])),
        [(V, "", "a shard serves more than one chain: [0, 1, 0]")],
    ),
    "an invented shard": (
        lambda p: dataclasses.replace(
            p, chains=(*p.chains, ServedChain(7, 0, 0.5, (NodeFacts("x", "k", 7, (0,), None, frozenset()),)))
        ),
        [(V, "", "shards [0, 1, 7] serve, but [0, 1] have a surviving chain")],
    ),
    "not observed": (
        lambda p: node(p, 1, 0, reads=None),
        [(U, "shard 1, slices 0", "the system did not observe which records it read")],
    ),
    "strays not observed": (
        lambda p: dataclasses.replace(p, stray=None),
        [(U, "", "reads outside any node were not observed")],
    ),
    "strays": (
        lambda p: dataclasses.replace(p, stray=frozenset({"a", "b"})),
        [(V, "", "2 records were read outside any node while training")],
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_each_fault_says_exactly_this(forge: Callable[..., Any], name: str) -> None:
    change, expected = EXACT[name]
    run = forge()
    assert told(run, change(run.provenance())) == expected


def test_parents_and_keys_are_shown_by_their_first_twelve_digits(forge: Callable[..., Any]) -> None:
    run = forge()
    first, second = run.trained[0, (0,)], run.trained[0, (0, 1)]
    where = "shard 0, slices 0-1"
    parent = (V, where, f"its parent is {'a' * 12}, the stage before is {first[:12]}")
    assert told(run, node(run.provenance(), 0, 1, parent="a" * 64)) == [parent]
    key = (V, where, f"its key is {'b' * 12}, the ledger's surviving node is {second[:12]}")
    assert told(run, node(run.provenance(), 0, 1, key="b" * 64)) == [key]
    root = (V, "shard 0, slices 0", f"its parent is {'c' * 12}, the stage before is none")
    assert told(run, node(run.provenance(), 0, 0, parent="c" * 64)) == [root]


def test_a_key_follows_the_stage_before_as_the_system_names_it(forge: Callable[..., Any]) -> None:
    run = forge()
    first = run.trained[0, (0,)]
    found = told(run, node(run.provenance(), 0, 0, key="d" * 64))
    assert found == [
        (V, "shard 0, slices 0", f"its key is {'d' * 12}, the ledger's surviving node is {first[:12]}"),
        (V, "shard 0, slices 0-1", f"its parent is {first[:12]}, the stage before is {'d' * 12}"),
    ]


def test_a_node_of_another_shard_or_depth_in_a_chain(forge: Callable[..., Any]) -> None:
    run = forge()
    found = told(run, node(run.provenance(), 0, 1, shard=1))
    assert found[0] == (V, "shard 0, slices 0-1", "stage 1 of the chain is node (shard 1, (0, 1))")
    deep = node(run.provenance(), 0, 0, prefix=(0, 1), reads=None)
    assert (V, "shard 0, slices 0-1", "stage 0 of the chain is node (shard 0, (0, 1))") in told(run, deep)


def test_more_nodes_than_the_ledger_knows_of_a_chain(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete(next(row[1] for row in run.rows if row[4] == "train" and row[2:4] == (0, 1)))
    honest = run.provenance()
    assert [len(one.nodes) for one in honest.chains] == [1, 2]
    ghost = dataclasses.replace(
        honest.chains[0].nodes[0], prefix=(0, 1), key="e" * 64, parent=honest.chains[0].nodes[0].key
    )
    found = told(run, chain(honest, 0, nodes=(honest.chains[0].nodes[0], ghost)))
    assert found[0][2].startswith("serves order 0, slices [0, 1]; the longest surviving chain is order 0, slices [0]")
    assert not any("the ledger's surviving node" in message for _, _, message in found)


def test_an_honest_account_is_counted(forge: Callable[..., Any]) -> None:
    run = forge(slices=3, budget=2, shards=2)
    evidence, state = run.read()
    (found,) = check_lineage(run.provenance(), evidence, state)
    assert found.message == "2 chains, 6 nodes: selection, parents, keys, observed reads as derived"
    assert found.details == {"chains": 2, "nodes": 6}


def test_nothing_live_and_something_said_to_serve(forge: Callable[..., Any]) -> None:
    run = forge(slices=1, budget=1, shards=1)
    before = run.provenance()
    run.delete(*[record.id for record in run.records])
    assert told(run, run.provenance()) == [
        (H, "", "0 chains, 0 nodes: selection, parents, keys, observed reads as derived")
    ]
    assert told(run, before)[:2] == [
        (V, "", "shards [0] serve, but [] have a surviving chain"),
        (V, "", "offline are said to be [], derived [0]"),
    ]


CLAIM = "claims 'retrained' while a shard does not serve the chain that a fresh fit would serve"


def test_the_claim_of_retraining(forge: Callable[..., Any]) -> None:
    run = forge()
    assert [v for v, _, _ in told(run, run.provenance(claim="retrained"))] == [H]
    run.delete(next(row[1] for row in run.rows if row[4] == "train" and row[2:4] == (0, 1)))
    assert [v for v, _, _ in told(run)] == [H]
    assert told(run, run.provenance(claim="retrained")) == [(V, "", CLAIM)]


def test_the_claim_of_retraining_with_another_order_in_front(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete(next(row[1] for row in run.rows if row[4] == "train" and row[2:4] == (0, 0)))
    assert [c.order for c in run.read()[1].chains] == [1, 0]
    assert told(run, run.provenance(claim="retrained")) == [(V, "", CLAIM)]


def test_an_empty_shard_may_be_offline_but_not_an_occupied_one(forge: Callable[..., Any]) -> None:
    run = forge(slices=1, budget=1, shards=2)
    mine = [row[1] for row in run.rows if row[4] == "train" and row[2] == 1]
    run.delete(*mine[:1])
    assert told(run, run.provenance(claim="retrained")) == [(V, "", CLAIM)]
    run.delete(*mine[1:])
    assert [v for v, _, _ in told(run, run.provenance(claim="retrained"))] == [H]


def test_deleted_reads_are_told_by_tag(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-000", "row-001")
    honest = run.provenance()
    reads = honest.chains[0].nodes[0].reads | {"row-000", "row-001"}
    evidence, state = run.read()
    (found,) = check_lineage(node(honest, 0, 0, reads=reads), evidence, state)
    assert (found.node, found.message) == ("shard 1, slices 0", "2 deleted records are in its read set")
    assert found.details == {"tags": sorted(derive.tag(evidence.key, f"row-00{i}") for i in (0, 1))}


def test_foreign_and_unread_rows_are_counted_and_the_first_is_named(forge: Callable[..., Any]) -> None:
    run = forge()
    honest = run.provenance()
    own = sorted(honest.chains[0].nodes[0].reads)
    read = frozenset([*own[2:], "zz", "yy"])
    where = "shard 0, slices 0"
    assert told(run, node(honest, 0, 0, reads=read)) == [
        (V, where, "2 records were read that are not its own, first 'yy'"),
        (V, where, f"2 of its rows were never read, first {own[0]!r}"),
    ]


@pytest.mark.parametrize("epochs", [0.5, 1.5])
def test_only_rows_that_an_epoch_visits_must_be_read(forge: Callable[..., Any], epochs: float) -> None:
    run = forge(
        shards=1, recipe=Recipe(epochs=epochs), records=[Record(f"{i:03d}", {"text": "x"}, 0) for i in range(60)]
    )
    honest = run.provenance()
    one = honest.chains[0].nodes[0]
    ids = sorted(one.reads)
    seen = derive.visited(ids, derive.seed(7, 0, (0,), "batches"), epochs)
    assert (len(seen) < len(ids)) is (epochs < 1)
    assert [v for v, _, _ in told(run, node(honest, 0, 0, reads=seen))] == [H]
    less = seen - {min(seen)}
    assert told(run, node(honest, 0, 0, reads=less)) == [
        (V, "shard 0, slices 0", f"1 of its rows were never read, first {min(seen)!r}")
    ]


def test_the_ledgers_strays(forge: Callable[..., Any]) -> None:
    run = forge()
    run.enter("stray", {"tags": ["ab"]})
    run.enter("stray", {"tags": ["ab", "cd"]})
    assert told(run) == [(V, "", "the ledger records 2 records read outside any node")]


def replan(run: Any, **changes: Any) -> None:
    run.run["plan"] = run.run["plan"] | changes
    (run.folder / "run.json").write_bytes(json.dumps(run.run).encode())


def plan_only(run: Any) -> Told:
    return [line for line in told(run) if "plan" in line[2] or "orders" in line[2] or "documented" in line[2]]


def test_plans_that_differ(forge: Callable[..., Any]) -> None:
    run = forge()
    replan(run, method="magic")
    message = "method 'magic' has no documented plan for this layout; stages cannot be derived"
    assert told(run) == [(U, "", message)]
    replan(run, method="s3t", eager=True, orders=[[1, 0], [0, 1]])
    assert plan_only(run) == [
        (V, "", "plan: eager is True, the method has False"),
        (U, "", "the orders are not the cyclic ones: how they were chosen cannot be derived"),
    ]


MATCHING = {"name": "matching", "prior": [0.6, 0.1], "horizon": 9, "score": "paper"}


@pytest.mark.parametrize(
    "rule",
    [MATCHING | {"prior": [0.1, 0.6]}, MATCHING | {"prior": [1.0]}, {"name": "by content"}, {}, "matching", 7],
    ids=["another prior", "another length", "unknown", "nothing", "text", "a number"],
)
def test_orders_that_a_declared_rule_does_not_choose(forge: Callable[..., Any], rule: Any) -> None:
    run = forge()
    replan(run, rule=rule, orders=[[1, 0], [0, 1]])
    message = f"the orders are not those of the declared rule {rule!r}: how they were chosen cannot be derived"
    assert plan_only(run) == [(U, "", message)]


def test_orders_that_a_declared_rule_chooses(forge: Callable[..., Any]) -> None:
    run = forge()
    replan(run, rule=MATCHING, orders=[[1, 0], [0, 1]])
    assert plan_only(run) == []


def test_a_key_that_its_rows_do_not_give(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    key = run.trained[0, (0,)]
    run.update("commitment='ab'", "row-001")
    evidence, state = run.read()
    committed = [str(row.commitment) for row in state.rows(0, (0,))]
    (survivor,) = state.survivors.values()
    derived = derive.node_key(
        evidence.run, shard=0, prefix=(0,), parent=None, commitments=committed, environment=survivor.environment
    )
    message = f"its key {key[:12]} is not the derived {derived[:12]} (rows, recipe, parent)"
    assert told(run) == [(V, "shard 0, slices 0", message)]


def test_stored_reads(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=2, budget=2)
    path = run.folder / "nodes" / run.trained[0, (1,)] / "reads.json"
    where, whole = "shard 0, slices 1", json.loads(path.read_bytes())
    for text in ("[1]", '"ab"', '{"a": 1}', "null"):
        path.write_text(text)
        assert told(run) == [(U, where, "its reads.json is not a list of ids")]
    for torn in (b"[", b"\xff\xfe"):
        path.write_bytes(torn)
        assert told(run) == [(U, where, "its reads.json cannot be read")]
    path.unlink()
    assert told(run) == [(U, where, "its reads.json cannot be read")]
    less = json.dumps(whole[1:]).encode()
    path.write_bytes(less)
    assert told(run) == [(U, where, "its reads.json is not the file that the ledger recorded")]
    evidence, state = run.read()
    recorded = dataclasses.replace(state.survivors[0, (1,)], reads=sha256(less))
    state = dataclasses.replace(state, survivors={**state.survivors, (0, (1,)): recorded})
    (found,) = check_lineage(run.provenance(), evidence, state)
    assert (found.verdict.value, found.message) == (V, f"1 of its rows were never read, first {whole[0]!r}")


def test_stored_reads_of_a_node_that_serves_are_held_against_its_rows_whatever_the_ledger_recorded(
    forge: Callable[..., Any],
) -> None:
    run = forge(shards=1, slices=2, budget=2)
    path = run.folder / "nodes" / run.trained[0, (0,)] / "reads.json"
    whole = json.loads(path.read_bytes())
    path.write_text(json.dumps(whole[1:]))
    assert told(run) == [(V, "shard 0, slices 0", f"1 of its rows were never read, first {whole[0]!r}")]


def degraded(run: Any, lost: set[tuple[int, tuple[int, ...]]]) -> Provenance:
    """What an honest system says that leaves these nodes out."""
    said: Provenance = run.provenance(without(run.read()[1], lost))
    return said


DAMAGED = "it is damaged and left out of what serves; run `s3t refresh` and audit again"
SPOIL: dict[str, tuple[Callable[[Any], Any], str]] = {
    "flipped": (lambda file: file.write_bytes(b"x"), "is not the file that the ledger recorded: its SHA-256 differs"),
    "missing": (lambda file: file.unlink(), "is missing"),
}


@pytest.mark.parametrize("name", ["head.safetensors", "reads.json", "adapter_config.json"])
@pytest.mark.parametrize("how", SPOIL)
def test_a_shorter_chain_beside_damage_is_undecided_and_what_is_left_must_serve(
    forge: Callable[..., Any], how: str, name: str
) -> None:
    spoil, message = SPOIL[how]
    run = forge()
    key = run.trained[0, (0, 1)]
    spoil(run.folder / "nodes" / key / name)
    evidence, state = run.read()
    honest = degraded(run, {(0, (0, 1))})
    assert [c.order for c in honest.chains] == [1, 0], "the other order serves"
    left, found = as_served(honest, evidence, state)
    where = f"nodes/{key}/{name} {message}"
    assert [(f.check, f.verdict.value, f.node, f.message) for f in found] == [
        ("evidence", U, "shard 0, slices 0-1", f"{where}: {DAMAGED}")
    ]
    assert [(c.shard, c.order, c.prefix) for c in left.chains] == [(0, 1, (1, 0)), (1, 0, (0, 1))]
    assert left.survivors == state.survivors
    assert not [f for f in check_lineage(honest, evidence, left) if f.verdict.value == V]
    short = chain(honest, 0, nodes=honest.chains[0].nodes[:1])
    left, _ = as_served(short, evidence, state)
    assert (V, "shard 0", "serves order 1, slices [1]; the longest surviving chain is order 1, slices [1, 0]") in [
        (f.verdict.value, f.node, f.message) for f in check_lineage(short, evidence, left)
    ]


def test_nothing_is_explained_by_damage_that_does_not_concern_it(forge: Callable[..., Any]) -> None:
    run = forge()
    (run.folder / "nodes" / run.trained[1, (0,)] / "head.safetensors").write_bytes(b"x")
    evidence, state = run.read()
    whole = run.provenance()
    assert as_served(whole, evidence, state) == (state, []), "it serves the node all the same: others check it"
    short = chain(whole, 0, nodes=whole.chains[0].nodes[:1])
    left, found = as_served(short, evidence, state)
    assert (left.chains, found) == (state.chains, [])
    only = degraded(run, {(1, (0,))})
    left, found = as_served(chain(only, 0, nodes=only.chains[0].nodes[:1]), evidence, state)
    assert [f.node for f in found] == ["shard 1, slices 0"]
    assert left.chains[0] == state.chains[0]


def test_damage_beside_a_chain_that_does_not_change_is_not_named(forge: Callable[..., Any]) -> None:
    run = forge()
    for node_ in ((0, (0,)), (0, (1, 0)), (1, (1,))):
        (run.folder / "nodes" / run.trained[node_] / "head.safetensors").unlink()
    evidence, state = run.read()
    honest = degraded(run, {(0, (0,)), (0, (1, 0)), (1, (1,))})
    left, found = as_served(honest, evidence, state)
    assert [f.node for f in found] == ["shard 0, slices 0", "shard 0, slices 1-0"]
    assert [c.prefix for c in left.chains] == [(1,), (0, 1)]


def test_a_shard_with_nothing_intact_is_offline(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    (run.folder / "nodes" / run.trained[0, (0,)] / "head.safetensors").unlink()
    evidence, state = run.read()
    honest = degraded(run, {(0, (0,))})
    left, found = as_served(honest, evidence, state)
    assert (left.chains, left.offline, len(found)) == ((), (0,), 1)
    assert not [f for f in check_lineage(honest, evidence, left) if f.verdict.value == V]
    empty = chain(run.provenance(), 0, nodes=())
    assert as_served(empty, evidence, state)[0].chains == ()


def test_a_damaged_node_hides_no_other(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=3, budget=2)
    run.train(0, (2,))
    extra = (V, "shard 0, slices 2", "it survives in the ledger but no order of the plan has this prefix")
    assert told(run) == [extra]
    first, last = (run.folder / "nodes" / run.trained[0, p] / "reads.json" for p in ((0,), (1, 2, 0)))
    first.unlink()
    last.write_text("[]")
    found = told(run)
    assert found[0] == (U, "shard 0, slices 0", "its reads.json cannot be read")
    assert extra in found
    assert found[1][1] == "shard 0, slices 1-2-0"
    assert len(found) == 3
    assert sha256(b"") != run.trained[0, (0,)]


def test_each_stage_visits_as_its_own_epochs_say(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=2, budget=1)
    evidence, state = run.read()
    half = dataclasses.replace(state.plan.stages[0], epochs=0.5)
    state = dataclasses.replace(state, plan=dataclasses.replace(state.plan, stages=(half, state.plan.stages[1])))
    ids = [row.record.id for row in state.rows(0, (0,))]
    seen = derive.visited(ids, derive.seed(7, 0, (0,), "batches"), 0.5)
    honest = run.provenance()
    for reads, unread in ((seen, 0), (seen - {min(seen)}, 1)):
        found = check_lineage(node(honest, 0, 0, reads=reads), evidence, state)
        assert sum("never read" in f.message for f in found) == unread
    less = frozenset(sorted(honest.chains[0].nodes[1].reads)[1:])
    found = check_lineage(node(honest, 0, 1, reads=less), evidence, state)
    assert sum("never read" in f.message for f in found) == 1


def test_a_node_outside_the_plan_hides_nothing_of_the_next_shard(forge: Callable[..., Any]) -> None:
    run = forge(shards=2, slices=3, budget=2)
    run.train(0, (2,))
    (run.folder / "nodes" / run.trained[1, (1,)] / "reads.json").unlink()
    assert [(verdict, where) for verdict, where, _ in told(run)] == [
        (V, "shard 0, slices 2"),
        (U, "shard 1, slices 1"),
    ]
