"""Lineage: an honest account holds; every false, missing or foreign entry in it is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from s3t.contract import NodeFacts, Provenance, ServedChain
from s3t.records import Recipe, canonical_json, sha256
from verify.lineage import check_lineage
from verify.plans import METHODS
from verify.report import Finding, Verdict, combine


def lineage(run: Any, provenance: Provenance | None = None) -> list[Finding]:
    evidence, state = run.read()
    return check_lineage(provenance or run.provenance(), evidence, state)


def violations(found: list[Finding]) -> str:
    assert combine(f.verdict for f in found) is Verdict.VIOLATED, found
    return "\n".join(f"{f.node}: {f.message}" for f in found if f.verdict is Verdict.VIOLATED)


def with_chain(provenance: Provenance, number: int, **changes: Any) -> Provenance:
    chains = list(provenance.chains)
    chains[number] = dataclasses.replace(chains[number], **changes)
    return dataclasses.replace(provenance, chains=tuple(chains))


def with_node(provenance: Provenance, number: int, position: int, **changes: Any) -> Provenance:
    nodes = list(provenance.chains[number].nodes)
    nodes[position] = dataclasses.replace(nodes[position], **changes)
    return with_chain(provenance, number, nodes=tuple(nodes))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("deleted", [0, 1, 6])
def test_an_honest_account_holds(forge: Callable[..., Any], method: str, deleted: int) -> None:
    run = (
        forge(method=method) if not method.startswith("retrain") else forge(method=method, shards=1, slices=1, budget=1)
    )
    if deleted:
        run.delete(*[record.id for record in run.records[:deleted]])
    assert [f.verdict for f in lineage(run)] == [Verdict.HOLDS]


@pytest.mark.parametrize("epochs", [0.25, 0.5, 1.5])
def test_fractional_epochs_hold_whether_rows_or_only_visited_rows_are_reported(
    forge: Callable[..., Any], epochs: float
) -> None:
    assert [f.verdict for f in lineage(forge(recipe=Recipe(epochs=epochs)))] == [Verdict.HOLDS]


def test_a_read_of_a_foreign_record(forge: Callable[..., Any]) -> None:
    run = forge()
    honest = run.provenance()
    first = honest.chains[0].nodes[0]
    foreign = next(iter(honest.chains[1].nodes[0].reads or ()))
    told = with_node(honest, 0, 0, reads=(first.reads or frozenset()) | {foreign})
    assert f"shard 0, slices 0: 1 records were read that are not its own, first {foreign!r}" in violations(
        lineage(run, told)
    )


def test_a_read_of_a_deleted_record(forge: Callable[..., Any]) -> None:
    run = forge()
    run.delete("row-000")
    honest = run.provenance()
    told = with_node(honest, 0, 0, reads=(honest.chains[0].nodes[0].reads or frozenset()) | {"row-000"})
    assert "1 deleted records are in its read set" in violations(lineage(run, told))


def test_a_row_that_was_never_read(forge: Callable[..., Any]) -> None:
    run = forge()
    honest = run.provenance()
    less = sorted(honest.chains[0].nodes[1].reads or ())[1:]
    told = with_node(honest, 0, 1, reads=frozenset(less))
    assert "1 of its rows were never read" in violations(lineage(run, told))


def test_reads_that_were_not_observed_are_undecided(forge: Callable[..., Any]) -> None:
    run = forge()
    for told in (with_node(run.provenance(), 0, 0, reads=None), dataclasses.replace(run.provenance(), stray=None)):
        found = lineage(run, told)
        assert [f.verdict for f in found] == [Verdict.UNDECIDED]
        assert "observe" in found[0].message


def test_stray_reads(forge: Callable[..., Any]) -> None:
    run = forge()
    told = dataclasses.replace(run.provenance(), stray=frozenset({"row-001"}))
    assert "1 records were read outside any node" in violations(lineage(run, told))
    run.enter("stray", {"tags": ["ab", "cd"]})
    assert "the ledger records 2 records read outside" in violations(lineage(run))


CHANGES: dict[str, tuple[Callable[[Provenance], Provenance], str]] = {
    "order": (
        lambda p: with_chain(p, 0, order=1),
        "serves order 1, slices [0, 1]; the longest surviving chain is order 0",
    ),
    "short": (lambda p: with_chain(p, 0, nodes=p.chains[0].nodes[:1]), "serves order 0, slices [0]"),
    "weight": (lambda p: with_chain(p, 1, weight=0.25), "its weight in the ensemble is 0.25"),
    "weights": (lambda p: with_chain(with_chain(p, 0, weight=1.0), 1, weight=1.0), "weight in the ensemble is 1.0"),
    "not a number": (lambda p: with_chain(p, 1, weight=float("nan")), "weight in the ensemble is nan"),
    "offline": (lambda p: dataclasses.replace(p, offline=(1,)), "offline are said to be [1], derived []"),
    "silent": (lambda p: dataclasses.replace(p, chains=p.chains[:1]), "shards [0] serve, but [0, 1] have"),
    "twice": (lambda p: dataclasses.replace(p, chains=(*p.chains, p.chains[0])), "more than one chain"),
    "parent": (lambda p: with_node(p, 0, 1, parent=None), "its parent is none"),
    "key": (lambda p: with_node(p, 0, 1, key="0" * 64), "its key is 000000000000, the ledger's surviving node is"),
    "sibling": (lambda p: with_node(p, 0, 0, shard=1), "stage 0 of the chain is node (shard 1"),
    "hole": (lambda p: with_chain(p, 0, nodes=p.chains[0].nodes[1:]), "stage 0 of the chain is node"),
    "empty": (lambda p: with_chain(p, 0, nodes=()), "serves order 0, slices []"),
    "invented": (
        lambda p: dataclasses.replace(
            p, chains=(*p.chains, ServedChain(7, 0, 0.5, (NodeFacts("x", "k", 7, (0,), None, frozenset()),)))
        ),
        "shards [0, 1, 7] serve",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_accounts_that_differ_from_what_is_derived(forge: Callable[..., Any], name: str) -> None:
    change, message = CHANGES[name]
    run = forge()
    assert message in violations(lineage(run, change(run.provenance())))


def test_the_old_chain_still_served_after_a_deletion(forge: Callable[..., Any]) -> None:
    run = forge()
    before = run.provenance()
    run.delete("row-000")
    assert "serves order" in violations(lineage(run, before))


def test_claim_of_retraining_needs_full_chains(forge: Callable[..., Any]) -> None:
    run = forge()
    assert [f.verdict for f in lineage(run, run.provenance(claim="retrained"))] == [Verdict.HOLDS]
    run.delete("row-000")
    assert "claims 'retrained'" in violations(lineage(run, run.provenance(claim="retrained")))


def respecify(run: Any, **changes: Any) -> None:
    """Rewrite the plan and seal the run again, as a system that planned otherwise would have."""
    run.run["plan"] = run.run["plan"] | changes
    raw = json.dumps(run.run).encode()
    (run.folder / "run.json").write_bytes(raw)


def test_orders_of_unknown_origin_are_undecided(forge: Callable[..., Any]) -> None:
    run = forge(slices=3, budget=2, shards=1)
    respecify(run, orders=[[0, 1, 2], [1, 0, 2]])
    found = [f for f in lineage(run) if f.verdict is Verdict.UNDECIDED]
    assert "how they were chosen cannot be derived" in found[0].message


def test_stages_that_the_method_does_not_have(forge: Callable[..., Any]) -> None:
    run = forge()
    stages = [stage | {"layers": [2, 3]} for stage in run.run["plan"]["stages"]]
    respecify(run, stages=stages)
    assert "plan: stage 1 is" in violations(lineage(run))


def test_an_unknown_method_is_undecided(forge: Callable[..., Any]) -> None:
    run = forge()
    respecify(run, method="magic")
    found = lineage(run)
    assert [f.verdict for f in found] == [Verdict.UNDECIDED]
    assert "'magic' has no documented plan" in found[0].message


def test_keys_bind_rows_of_every_surviving_node(forge: Callable[..., Any]) -> None:
    run = forge()
    run.update("commitment='ab'", "row-001")
    assert violations(lineage(run)).count("(rows, recipe, parent)") >= 3


def test_stored_reads_of_nodes_that_do_not_serve_are_checked(forge: Callable[..., Any]) -> None:
    run = forge()
    spare = run.folder / "nodes" / run.trained[0, (1,)] / "reads.json"
    more = canonical_json([*json.loads(spare.read_bytes()), "row-xyz"])
    spare.write_bytes(more)
    assert [f.message for f in lineage(run)] == ["its reads.json is not the file that the ledger recorded"]
    evidence, state = run.read()
    recorded = dataclasses.replace(state.survivors[0, (1,)], reads=sha256(more))
    state = dataclasses.replace(state, survivors={**state.survivors, (0, (1,)): recorded})
    found = check_lineage(run.provenance(), evidence, state)
    assert "shard 0, slices 1: 1 records were read that are not its own, first 'row-xyz'" in violations(found)
    spare.write_text("{}")
    assert [f.message for f in lineage(run)] == ["its reads.json is not a list of ids"]
    spare.unlink()
    assert [f.verdict for f in lineage(run)] == [Verdict.UNDECIDED]


def test_a_node_outside_the_plan(forge: Callable[..., Any]) -> None:
    run = forge(slices=3, shards=1, budget=1)
    run.train(0, (2,))
    assert "no order of the plan has this prefix" in violations(lineage(run))
