"""Analytic heads as evidence: what a plan may declare, what features.bin must hold, and what is said to serve."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from s3t.contract import Provenance, ServedChain
from s3t.errors import RunError
from verify import derive
from verify.brief import make_brief, read_brief, write_brief
from verify.lineage import as_served, check_lineage
from verify.plans import ANALYTIC, Head, documented_plan, plan_faults
from verify.plans import declared_plan as declared
from verify.report import Finding, Verdict
from verify.residue import check_residue
from verify.scan import check_scan
from verify.state import HEAD, HEAD_NAME, node_name

V, U, H = "VIOLATED", "UNDECIDED", "HOLDS"
HEADED: dict[str, Any] = {
    "layers": [3, 1],
    "poolings": ["mean", "last"],
    "random": 5,
    "step": 0.25,
    "form": "ridge",
    "ridge": 0.1,
    "temperature": 2.0,
}
WHOLE = HEADED | {"layers": []}
ALONE = {"method": ANALYTIC, "shards": 1, "slices": 1, "budget": 1, "head": WHOLE, "share": 1.0}
Forged = Callable[..., Any]


def run_of(**changes: Any) -> dict[str, Any]:
    """Return a run.json of an analytic head alone, with changes in its plan."""
    plan = {
        "method": ANALYTIC,
        "layout": {"shards": 1, "slices": 1, "budget": 1},
        "orders": [[0]],
        "stages": [],
        "cumulative": True,
        "eager": False,
        "head": HEADED,
        "share": 1.0,
    }
    return {"plan": plan | changes, "model": {"layers": 4, "hidden": 8}}


def test_a_declared_head_field_by_field() -> None:
    plan = declared(run_of())
    assert plan.head == Head((3, 1), ("mean", "last"), 5, 0.25, "ridge", 0.1, 2.0) and plan.share == 1.0
    assert plan.head.features(4, 8) == 2 * 2 * 8 + 5
    assert dataclasses.replace(plan.head, layers=()).features(4, 8) == 4 * 2 * 8 + 5
    assert (
        plan_faults(plan, documented_plan(ANALYTIC, shards=9, slices=9, budget=9, layers=4, epochs=1.0) or plan) == []
    )


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (
        run_of(stages=[{"adapter": "a", "kind": "lora", "layers": [0], "epochs": 1}]),
        "1 stages; it has none, and a head",
    ),
    (run_of(head=HEADED | {"layers": [1, 1]}), "the head reads layers [1, 1]; the base model has 4, each read once"),
    (run_of(head=HEADED | {"layers": [4]}), "the head reads layers [4]; the base model has 4, each read once"),
    (run_of(head=HEADED | {"layers": [-1]}), "the head reads layers [-1]; the base model has 4, each read once"),
    (run_of(head=HEADED | {"poolings": []}), "the head's poolings are []; it has at least one, each once"),
    (run_of(head=HEADED | {"poolings": ["max", "max"]}), "poolings are ['max', 'max']; it has at least one, each once"),
    (run_of(head=HEADED | {"poolings": ["sum"]}), "the head's poolings ['sum'] or form 'ridge' are unknown"),
    (run_of(head=HEADED | {"form": "lasso"}), "the head's poolings ['mean', 'last'] or form 'lasso' are unknown"),
    (run_of(head=HEADED | {"random": -1}), "a number of the head is not positive"),
    (run_of(head=HEADED | {"ridge": 0}), "a number of the head is not positive"),
    (run_of(head=HEADED | {"step": "inf"}), "a number of the head is not positive"),
    (run_of(head=HEADED | {"temperature": "nan"}), "a number of the head is not positive"),
    (run_of(head=HEADED | {"step": 0.3}), "the head's step is 0.3; it is a power of two"),
    (run_of(share=0), "the head's share is 0.0; it is above 0 and at most 1"),
    (run_of(share=1.5), "the head's share is 1.5; it is above 0 and at most 1"),
    (run_of(head=HEADED | {"more": 1}), "its head has ["),
    (run_of(head={}), "its head has []; it must have ["),
]


@pytest.mark.parametrize("number", range(len(IMPOSSIBLE)))
def test_impossible_heads_say_exactly_this(number: int) -> None:
    run, fault = IMPOSSIBLE[number]
    with pytest.raises(RunError, match=re.escape(fault)):
        declared(run)


@pytest.mark.parametrize("lacking", ["head", "share"])
def test_head_and_share_are_declared_together(lacking: str) -> None:
    run = run_of()
    del run["plan"][lacking]
    with pytest.raises(RunError, match="it has a head or a share, and not both"):
        declared(run)
    run["plan"] = {k: v for k, v in run["plan"].items() if k not in ("head", "share")}
    with pytest.raises(RunError, match="analytic with 0 stages; it has none, and a head"):
        declared(run)


def test_how_a_plan_may_depart_from_the_analytic_one() -> None:
    wanted = documented_plan(ANALYTIC, shards=1, slices=1, budget=1, layers=4, epochs=1.0)
    assert wanted is not None and (wanted.stages, wanted.eager, wanted.orders) == ((), False, ((0,),))
    found = declared(run_of(share=0.5, eager=True, layout={"shards": 2, "slices": 1, "budget": 1}))
    assert plan_faults(found, wanted) == [
        "shards is 2, the method has 1",
        "eager is True, the method has False",
        "the head's share is 0.5, the method has 1.0",
    ]
    other = documented_plan("retrain-lora", shards=1, slices=1, budget=1, layers=4, epochs=1.0)
    assert other is not None
    assert plan_faults(dataclasses.replace(other, head=found.head, share=0.5), other) == []


def told(run: Any) -> list[tuple[str, str]]:
    return [(f.verdict.value, f.message) for f in check_scan(*run.read())]


def test_features_are_read_row_by_row(forge: Forged) -> None:
    run = forge(head=HEADED)
    evidence, state = run.read()
    assert evidence.problems == () and [row.tag for row in evidence.features] == [
        derive.tag(evidence.key, record.id) for record in run.records
    ]
    assert all(row.sound and not row.zero for row in evidence.features)
    assert len({row.digest for row in evidence.features}) == len(run.records)
    assert state.head is not None and [row.record.id for row in state.head.rows] == [r.id for r in run.records]
    assert told(run)[0][0] == H
    run.delete("row-003")
    gone = [row for row in run.read()[0].features if row.zero]
    assert [row.tag for row in gone] == [derive.tag(evidence.key, "row-003")] and not gone[0].sound
    assert told(run)[0][0] == H


def test_features_of_deleted_records_are_violations(forge: Forged) -> None:
    run = forge(head=HEADED)
    run.delete("row-003", "row-004")
    run.put_features("row-004", b"\x01", at=7)
    assert told(run) == [(V, "features of 1 deleted records remain in features.bin")]
    run.put_features("row-003", b"\x01", at=run.width + 15)
    assert told(run) == [(V, "features of 2 deleted records remain in features.bin")]


def test_features_that_are_missing_or_damaged_decide_nothing(forge: Forged) -> None:
    run = forge(head=HEADED)
    run.put_features("row-001", bytes(run.width + 16))
    run.put_features("row-002", b"\x01\x02")
    run.put_features("row-003", b"\x01\x02", at=run.width)
    again = "`s3t refresh` makes them anew"
    assert told(run) == [
        (U, f"1 retained records have no features in features.bin; {again}"),
        (U, f"features of 2 retained records do not match their checks; {again}"),
    ]
    run.delete("row-001", "row-002", "row-003")
    assert told(run)[0][0] == H


def test_features_that_were_never_said_to_be_made_may_be_missing_or_half_written(forge: Forged) -> None:
    run = forge(head=HEADED)
    run.put_features("row-001", bytes(run.width + 16))
    run.put_features("row-002", b"\x01\x02")
    run.ledger.execute("DELETE FROM entries WHERE kind='head'")
    run.ledger.commit()
    assert told(run)[0][0] == H and run.read()[1].head is None
    run.features.unlink()
    assert told(run)[0][0] == H and run.read()[0].features == ()


def test_a_row_without_a_readable_commitment_is_not_sound(forge: Forged) -> None:
    run = forge(head=HEADED)
    run.update("commitment='xyz'", "row-001")
    run.update("commitment=NULL", "row-002")
    evidence = run.read()[0]
    odd = {row.tag for row in evidence.features if not row.sound}
    assert odd == {derive.tag(evidence.key, name) for name in ("row-001", "row-002")}


def whole(run: Any) -> int:
    """Return how long features.bin must be."""
    return 16 + len(run.records) * (int(run.width) + 16)


SPOILED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "missing": (
        lambda run: run.features.unlink(),
        "features.bin is missing: the ledger says that all features were made",
    ),
    "magic": (
        lambda run: run.features.write_bytes(b"x" * whole(run)),
        "features.bin does not begin as it must, for 37 features",
    ),
    "other size": (
        lambda run: run.features.write_bytes(b"s3t feat" + (36).to_bytes(8, "big") + run.features.read_bytes()[16:]),
        "features.bin does not begin as it must, for 37 features",
    ),
    "cut": (
        lambda run: run.features.write_bytes(run.features.read_bytes()[:-1]),
        "features.bin has 1455 bytes, not 90 for each of 16 records",
    ),
    "longer": (
        lambda run: run.features.write_bytes(run.features.read_bytes() + b"x"),
        "features.bin has 1457 bytes, not 90 for each of 16 records",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_is_damaged_as_a_whole_is_a_problem(forge: Forged, name: str) -> None:
    spoil, problem = SPOILED[name]
    run = forge(head=HEADED)
    spoil(run)
    evidence = run.read()[0]
    assert evidence.problems == (problem,) and evidence.features == ()


def test_without_a_head_the_file_is_unknown(forge: Forged) -> None:
    run = forge()
    run.features.write_bytes(b"s3t feat")
    unknown = "features.bin is unknown: no declared file or surviving node accounts for it"
    assert told(run) == [(V, unknown)] and run.read()[0].features == ()


def test_a_head_entry_must_say_what_it_is(forge: Forged) -> None:
    run = forge(head=HEADED)
    run.enter("head", {"features": 1})
    assert run.read()[0].problems == (f"ledger.sqlite: entry {len(run.entries)} (head) lacks 'rows'",)


def lineage(run: Any, provenance: Provenance | None = None) -> list[tuple[str, str, str]]:
    found = check_lineage(provenance or run.provenance(), *run.read())
    assert {f.check for f in found} == {"E0 lineage"}
    return [(f.verdict.value, f.message, f.node) for f in found]


@pytest.mark.parametrize("facts", [{"head": HEADED}, ALONE], ids=["beside", "alone"])
@pytest.mark.parametrize("deleted", [0, 1, 5, 16])
def test_an_honest_account_holds(forge: Forged, facts: dict[str, Any], deleted: int) -> None:
    run = forge(**facts)
    if deleted:
        run.delete(*[record.id for record in run.records[:deleted]])
    state = run.read()[1]
    assert (state.head is None) == (deleted == 16)
    claims = ("non-interference", "retrained") if facts == ALONE else ("non-interference",)
    for claim in claims:
        ((verdict, message, _),) = lineage(run, run.provenance(claim=claim))
        chains, nodes = len(state.chains), sum(len(chain.nodes) for chain in state.chains)
        head = "" if deleted == 16 else ", the analytic head"
        served = f"{chains} chains, {nodes} nodes{head}: selection, parents, keys, observed reads as derived"
        assert (verdict, message) == (H, served)
    assert [f.verdict.value for f in check_scan(*run.read())] == [H]
    if facts == ALONE:
        assert state.offline == () and state.nodes() == [] and not state.chains


def test_weights_of_head_and_chains(forge: Forged) -> None:
    state = forge(head=HEADED).read()[1]
    assert (state.share, state.weights) == (0.25, {0: 0.375, 1: 0.375})
    bare = dataclasses.replace(state, head=None)
    assert (bare.share, bare.weights) == (0.0, {0: 0.5, 1: 0.5})
    assert dataclasses.replace(state, chains=()).share == 1.0


def test_weights_by_length(forge: Forged) -> None:
    state = forge(head=HEADED).read()[1]
    plan = dataclasses.replace(state.plan, weights="length")
    whole = dataclasses.replace(state, plan=plan)
    assert (whole.share, whole.weights) == (0.25, {0: 0.375, 1: 0.375})
    first, second = state.chains
    short = dataclasses.replace(first, nodes=first.nodes[:1])
    cut = dataclasses.replace(whole, chains=(short, second))
    total = plan.shards * plan.slices
    assert cut.share == 1 - 0.75 * ((1 + len(second.nodes)) / total)
    assert cut.weights == {0: (1 - cut.share) * (1 / (1 + len(second.nodes))), 1: (1 - cut.share) * (2 / 3)}
    bare = dataclasses.replace(cut, head=None)
    assert (bare.share, bare.weights) == (0.0, {0: 1 / 3, 1: 2 / 3})
    one = dataclasses.replace(whole, chains=(second,))
    assert one.share == 0.625 and one.weights == {1: 0.375}
    assert dataclasses.replace(whole, chains=()).share == 1.0 and dataclasses.replace(whole, chains=()).weights == {}


def test_weights_of_the_other_rule_are_not_accepted(forge: Forged) -> None:
    run = forge(slices=2, budget=1)
    state = run.read()[1]
    run.delete(next(row.record.id for row in state.by_slot[0, 1]))
    state = run.read()[1]
    assert [len(chain.nodes) for chain in state.chains] == [1, 2]
    said = run.provenance()
    assert {f.verdict for f in check_lineage(said, run.read()[0], state)} == {Verdict.HOLDS}
    by_length = dataclasses.replace(state, plan=dataclasses.replace(state.plan, weights="length"))
    found = [(f.message, f.node) for f in check_lineage(said, run.read()[0], by_length)]
    assert found == [
        (f"its weight in the ensemble is 0.5; it must be {weight}: 2 shards are live, weights 'length'", node)
        for weight, node in ((1 / 3, "shard 0"), (2 / 3, "shard 1"))
    ]
    assert node_name(*HEAD) == HEAD_NAME


def with_head(provenance: Provenance, **changes: Any) -> Provenance:
    """Return an account with another chain of the head; ``node``: changes of its only node."""
    *rest, head = provenance.chains
    nodes = (dataclasses.replace(head.nodes[0], **changes.pop("node", {})),)
    return dataclasses.replace(provenance, chains=(*rest, dataclasses.replace(head, **({"nodes": nodes} | changes))))


FALSE: dict[str, tuple[Callable[[Any, Provenance], Provenance], str]] = {
    "weight": (lambda _, p: with_head(p, weight=0.5), "its weight in the ensemble is 0.5; it must be 0.25"),
    "order": (lambda _, p: with_head(p, order=1), "it has 1 nodes and order 1, not one node and order 0"),
    "no node": (lambda _, p: with_head(p, nodes=()), "it has 0 nodes and order 0, not one node and order 0"),
    "name": (
        lambda _, p: with_head(p, node={"name": "x"}),
        "it is said to be the node ('x', -1, (), None)",
    ),
    "shard": (
        lambda _, p: with_head(p, node={"shard": 0, "prefix": (1,), "parent": "k"}),
        "it is said to be the node ('analytic head', 0, (1,), 'k')",
    ),
    "key": (
        lambda _, p: with_head(p, node={"key": "0" * 64}),
        "its key 000000000000 is not the derived KEY (rows, head, environment)",
    ),
    "absent": (
        lambda _, p: dataclasses.replace(p, chains=p.chains[:-1]),
        "an analytic head must serve, and 0 are said to",
    ),
    "twice": (
        lambda _, p: dataclasses.replace(p, chains=(*p.chains, p.chains[-1])),
        "an analytic head must serve, and 2 are said to",
    ),
    "more reads": (
        lambda _, p: with_head(p, node={"reads": p.chains[-1].nodes[0].reads | {"probe-001", "probe-000"}}),
        "2 records were read that are not retained, first 'probe-000'",
    ),
    "fewer reads": (
        lambda _, p: with_head(p, node={"reads": p.chains[-1].nodes[0].reads - {"row-005", "row-004"}}),
        "2 retained records were not read, first 'row-004'",
    ),
    "deleted reads": (
        lambda _, p: with_head(p, node={"reads": p.chains[-1].nodes[0].reads | {"row-000"}}),
        "1 deleted records are in its read set",
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_account_of_the_head_says_exactly_this(forge: Forged, name: str) -> None:
    change, message = FALSE[name]
    run = forge(head=HEADED)
    run.delete("row-000")
    head = run.read()[1].head
    found = lineage(run, change(run, run.provenance()))
    assert found == [(V, message.replace("KEY", head.key[:12]), HEAD_NAME)]


def test_reads_that_were_not_observed_are_undecided(forge: Forged) -> None:
    run = forge(head=HEADED)
    unobserved = with_head(run.provenance(), node={"reads": None})
    assert lineage(run, unobserved) == [(U, "the system did not observe which records it read", HEAD_NAME)]


def test_a_head_that_cannot_serve(forge: Forged) -> None:
    run = forge(head=HEADED)
    said = run.provenance()
    run.ledger.execute("DELETE FROM entries WHERE kind='head'")
    run.ledger.commit()
    found = lineage(run, said)
    assert (V, "no analytic head can serve, and 1 are said to", HEAD_NAME) in found
    weights = [message for _, message, _ in found if message.startswith("its weight")]
    assert weights == ["its weight in the ensemble is 0.375; it must be 0.5: 2 shards are live, weights 'equal'"] * 2
    alone = forge()
    node = run.provenance().chains[-1]
    more = dataclasses.replace(alone.provenance(), chains=(*alone.provenance().chains, node))
    assert lineage(alone, more) == [(V, "no analytic head can serve, and 1 are said to", HEAD_NAME)]


def test_retrained_is_no_claim_of_a_run_whose_head_was_never_made(forge: Forged) -> None:
    run = forge(**ALONE)
    run.ledger.execute("DELETE FROM entries WHERE kind='head'")
    run.ledger.commit()
    said = dataclasses.replace(run.provenance(claim="retrained"), chains=())
    fresh = "claims 'retrained' while no analytic head serves, and with a fresh fit one would"
    assert lineage(run, said) == [(V, fresh, "")]
    assert lineage(run, dataclasses.replace(said, claim="non-interference"))[0][0] == H


def test_a_chain_of_the_head_is_no_shards(forge: Forged) -> None:
    run = forge(head=HEADED)
    provenance = run.provenance()
    chain: ServedChain = dataclasses.replace(provenance.chains[0], weight=0.5)
    found = lineage(run, dataclasses.replace(provenance, chains=(chain, *provenance.chains[1:])))
    assert found == [
        (V, "its weight in the ensemble is 0.5; it must be 0.375: 2 shards are live, weights 'equal'", "shard 0")
    ]


def test_what_a_damaged_head_leaves(forge: Forged) -> None:
    run = forge(head=HEADED)
    said, (evidence, state) = run.provenance(), run.read()
    assert as_served(said, evidence, state) == (state, [])
    apart = dataclasses.replace(said, chains=said.chains[:-1])
    assert as_served(apart, evidence, state) == (state, []), "nothing is damaged, so it must serve"
    run.put_features("row-001", b"\x01\x02")
    evidence, state = run.read()
    assert as_served(said, evidence, state) == (state, []), "what is in memory serves on"
    left, found = as_served(apart, evidence, state)
    assert left == dataclasses.replace(state, head=None)
    (finding,) = found
    assert isinstance(finding, Finding)
    assert (finding.check, finding.verdict.value, finding.node) == ("evidence", U, HEAD_NAME)
    assert finding.message == (
        "features of 1 retained records do not match their checks; `s3t refresh` makes them anew: it is left out"
    )


def test_the_heads_key_covers_everything(forge: Forged) -> None:
    run = forge(head=HEADED).run
    given: dict[str, Any] = {"commitments": ["b", "a"], "environment": {"threads": 1}}
    base = derive.head_key(run, **given)
    assert derive.head_key(run, **(given | {"commitments": ["a", "b"]})) == base
    others = [
        derive.head_key(run, **(given | {"commitments": ["a"]})),
        derive.head_key(run, **(given | {"environment": {"threads": 2}})),
        derive.head_key(run | {"seed": 8}, **given),
        derive.head_key(run | {"model": {"digest": "other"}}, **given),
        derive.head_key(run | {"plan": {"head": WHOLE}}, **given),
    ]
    assert len({base, *others}) == 6


def test_the_last_entry_says_where_features_were_made(forge: Forged) -> None:
    run = forge(head=HEADED)
    run.enter("head", {"features": 37, "rows": 16, "environment": {"threads": 2}})
    head = run.read()[1].head
    assert head is not None and head.environment == {"threads": 2}


def test_the_brief_of_a_head(forge: Forged, tmp_path: Any) -> None:
    run = forge(**ALONE)
    run.delete("row-002")
    brief = make_brief(*run.read(), 1, "served")
    assert (brief.nodes, brief.chains, len(brief.rows)) == ((), (), 15)
    assert brief.head == {"threads": 1, "torch": "0"}
    write_brief(brief, tmp_path / "brief")
    assert read_brief(tmp_path / "brief") == brief
    assert make_brief(*forge().read(), 1, "served").head is None


def test_words_of_the_head_are_no_residue(forge: Forged) -> None:
    run = forge(head=HEADED)
    victims = [dataclasses.replace(run.records[0], id=name, inputs={}) for name in ("mean", "last", "ridge", "0")]
    evidence = run.read()[0]
    assert [f.verdict.value for f in check_residue(evidence, victims, known=True)] == [H]
    assert check_residue(evidence, [dataclasses.replace(victims[0], id="max")], known=True)[0].verdict.value == H
