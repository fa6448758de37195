"""E1a on a sample of nodes and with a kernel of its own: who is drawn, what that detects, what it costs, and faults."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import S3TError
from verify.brief import make_brief, read_brief, rooted, served, write_brief
from verify.report import Finding, Verdict
from verify.spot import detection, detections, draw_nodes

NODES = [(shard, prefix) for shard in range(4) for prefix in ((0,), (0, 1), (1,), (1, 0))]


def test_a_sample_is_deterministic_without_replacement_and_never_too_large() -> None:
    drawn = draw_nodes(NODES, 5, "head", 1)
    assert drawn == draw_nodes(reversed(NODES), 5, "head", 1)
    assert len(set(drawn)) == 5
    assert set(drawn) <= set(NODES)
    assert set(draw_nodes(NODES, 99, "head", 1)) == set(NODES)
    assert drawn == draw_nodes(NODES, 6, "head", 1)[:5]


def test_a_sample_changes_with_the_ledger_and_with_the_auditors_nonce() -> None:
    by_nonce = {draw_nodes(NODES, 3, "head", nonce) for nonce in range(20)}
    by_head = {draw_nodes(NODES, 3, f"head {i}", 0) for i in range(20)}
    assert len(by_nonce) > 15
    assert len(by_head) > 15


def test_every_pair_of_nodes_is_drawn_about_equally_often() -> None:
    few, draws = NODES[:5], 4000
    seen = Counter(frozenset(draw_nodes(few, 2, "head", nonce)) for nonce in range(draws))
    expected = draws / math.comb(5, 2)
    assert len(seen) == math.comb(5, 2)
    squared = sum((count - expected) ** 2 / expected for count in seen.values())
    assert squared < 27.88  # 0.999 quantile of chi-squared with 9 degrees of freedom


@pytest.mark.parametrize("count", [0, -3])
def test_an_empty_sample_is_refused(count: int) -> None:
    with pytest.raises(S3TError, match=rf"a sample of {count} nodes checks nothing; give at least 1"):
        draw_nodes(NODES, count, "head", 0)


def test_the_detection_probability_is_that_of_all_subsets_counted() -> None:
    for nodes, sampled in itertools.product(range(1, 8), range(1, 8)):
        if sampled > nodes:
            continue
        for bad in range(1, nodes + 1):
            subsets = list(itertools.combinations(range(nodes), sampled))
            caught = sum(min(subset) < bad for subset in subsets)
            assert detection(nodes, sampled, bad) == pytest.approx(caught / len(subsets), abs=1e-12)


def test_detection_is_stated_for_one_two_five_and_one_percent() -> None:
    assert detections(1000, 100) == {
        "1": pytest.approx(0.1),
        "2": pytest.approx(1 - (900 * 899) / (1000 * 999)),
        "5": detection(1000, 100, 5),
        "1 percent": detection(1000, 100, 10),
    }
    assert detections(150, 3)["1 percent"] == detection(150, 3, 2)
    assert detections(3, 3) == {"1": 1.0, "2": 1.0, "1 percent": 1.0}


def test_a_brief_with_ancestors_survives_writing(forge: Callable[..., Any], tmp_path: Path) -> None:
    evidence, state = forge(slices=3, budget=3, shards=1).read()
    ancestors = {(0, (0,)): (b"a", b"b"), (0, (0, 1)): (b"c", b"d")}
    brief = make_brief(evidence, state, 1, "served", sampled=[(0, (0, 1, 2)), (0, (2,))], ancestors=ancestors)
    assert [node for node, _ in brief.nodes] == [(0, (2,)), (0, (0, 1, 2))]
    write_brief(brief, tmp_path / "brief")
    assert read_brief(tmp_path / "brief") == brief
    bare = make_brief(evidence, state, 1, "served", sampled=[(0, (2,))], ancestors={})
    write_brief(bare, tmp_path / "bare")
    assert read_brief(tmp_path / "bare").ancestors == {}


def test_rooted_and_served_nodes(forge: Callable[..., Any]) -> None:
    _, state = forge(slices=3, budget=3, shards=1).read()
    assert served(state) == {(0, (0,)), (0, (0, 1)), (0, (0, 1, 2))}
    assert len(rooted(state)) == 9


# ---- on a real run ----


def check(live: Any, **options: Any) -> list[Finding]:
    from verify.evidence import read_evidence
    from verify.replay import check_cleanroom
    from verify.state import derive_state

    evidence = read_evidence(live.folder)
    given = {"isolate": False} | options
    return check_cleanroom(live.system, live.system.provenance(), evidence, derive_state(evidence), **given)


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def home(live: Any, node: tuple[int, tuple[int, ...]]) -> Path:
    from verify.evidence import read_evidence
    from verify.state import derive_state

    return live.folder / "nodes" / derive_state(read_evidence(live.folder)).survivors[node].key


@pytest.mark.parametrize("isolate", [False, True])
def test_the_oracle_finds_the_same_bits(live: Any, isolate: bool) -> None:
    live.system.delete(["row-003", "row-017"])
    found = only(check(live, kernel="oracle", isolate=isolate))
    assert found.verdict is Verdict.HOLDS, found
    assert found.details["kernel"] == "oracle"
    assert found.details["isolated"] is isolate
    assert "predictions: the same bits" in found.message


@pytest.mark.parametrize("kernel", ["shared", "oracle"])
def test_retraining_costs_what_training_did(live: Any, kernel: str) -> None:
    live.system.delete(["row-003"])
    details = only(check(live, kernel=kernel)).details
    for unit in ("record_passes", "layer_passes"):
        assert details[unit] == details[f"{unit}_booked"] > 0
        assert details[f"{unit}_ratio"] == 1.0
    assert details["seconds"] > 0
    assert details["seconds_booked"] > 0


def test_without_the_shared_kernel_nothing_of_it_runs(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3t import blocks, training

    def used(*_: Any, **__: Any) -> None:
        raise AssertionError("the system's numeric code ran")

    monkeypatch.setattr(training, "train_node", used)
    monkeypatch.setattr(blocks.ChainModel, "__init__", used)
    from verify.cleanroom import retrain
    from verify.evidence import read_evidence
    from verify.state import derive_state

    evidence = read_evidence(live.folder)
    brief = make_brief(evidence, derive_state(evidence), 1, "served")
    with pytest.raises(AssertionError, match="numeric code ran"):
        retrain(brief, live.folder.parent / "shared")
    retrain(brief, live.folder.parent / "own", "oracle")
    assert (live.folder.parent / "own" / "predictions.safetensors").is_file()


def test_a_sampled_audit_holds_and_says_what_it_is_worth(live: Any) -> None:
    found = only(check(live, sample=4, sample_seed=7))
    assert found.verdict is Verdict.HOLDS
    nodes = found.details["of"]
    assert found.details["sampled"] == found.details["nodes"] == 4 < nodes
    assert found.details["sample_seed"] == 7
    assert found.details["detects"] == detections(nodes, 4)
    assert found.details["note"].startswith("predictions were not compared")
    assert found.details["record_passes_ratio"] == 1.0
    assert found.message.startswith(f"4 of {nodes} nodes")
    assert " 0 predictions" in found.message


@pytest.mark.parametrize("isolate", [False, True])
def test_all_nodes_drawn_compare_predictions_too(live: Any, isolate: bool) -> None:
    live.system.delete(["row-003"])
    found = only(check(live, sample=10_000, isolate=isolate, kernel="oracle" if isolate else "shared"))
    assert found.verdict is Verdict.HOLDS
    assert found.details["sampled"] == found.details["of"]
    assert found.details["detects"]["1"] == 1.0
    assert "note" not in found.details
    assert " 12 predictions" in found.message


def test_a_node_is_checked_on_top_of_what_is_stored_and_the_fault_is_named_where_it_is(live: Any) -> None:
    """The tensors of a first node are altered together with its digest in the ledger: its child is as declared."""
    import safetensors.torch

    from verify import replay
    from verify.derive import tensors_digest
    from verify.evidence import read_evidence
    from verify.state import derive_state, node_name

    node = (0, (0,))
    path = home(live, node) / "head.safetensors"
    flip(path)
    altered = tensors_digest(safetensors.torch.load(path.read_bytes()))
    evidence = read_evidence(live.folder)
    state = derive_state(evidence)
    object.__setattr__(state.survivors[node], "head", altered)
    system, provenance = live.system, live.system.provenance()
    found = replay.check_cleanroom(system, provenance, evidence, state, isolate=False, sample=10_000)
    seen = {(f.verdict, f.node) for f in found if f.message.startswith("on disk: ")}
    children = {node_name(s, p) for s, p in state.survivors if s == 0 and len(p) == 2 and p[0] == 0}
    assert seen == {(Verdict.VIOLATED, node_name(*name)) for name in [node]} | {
        (Verdict.VIOLATED, child) for child in children
    }


def test_a_damaged_ancestor_is_found_by_its_digest(live: Any) -> None:
    live.system.predict([live.records[0].inputs])
    flip(home(live, (0, (0,))) / "adapter_model.safetensors")
    found = check(live, sample=10_000)
    assert any(
        f.verdict is Verdict.VIOLATED
        and f.node == "shard 0, slices 0"
        and "the ledger's digest of its adapter" in f.message
        for f in found
    )
    assert not [f for f in found if f.verdict is Verdict.HOLDS]


def test_a_missing_ancestor_is_undecided(live: Any) -> None:
    live.system.predict([live.records[0].inputs])
    (home(live, (0, (0,))) / "head.safetensors").unlink()
    found = check(live, sample=10_000)
    verdicts = {f.verdict for f in found}
    assert verdicts == {Verdict.UNDECIDED}, found
    assert "head.safetensors cannot be read (FileNotFoundError)" in {f.message for f in found}


def test_served_tensors_that_are_not_the_stored_ones_are_found_though_their_node_was_not_drawn(live: Any) -> None:
    import torch

    from verify.evidence import read_evidence
    from verify.state import derive_state

    state = derive_state(read_evidence(live.folder))
    weights = live.system.weights()
    last = state.chains[0].nodes[-1]
    name = next(n.name for c in live.system.provenance().chains for n in c.nodes if n.key == last.key)
    weights[name]["head.weight"].data.view(torch.int32).flatten()[0] ^= 1
    head = str(read_evidence(live.folder).checked["head"])
    served_nodes = served(state)
    nonce = next(i for i in range(10_000) if not set(draw_nodes(rooted(state), 1, head, i)) & served_nodes)
    found = check(live, sample=1, sample_seed=nonce)
    assert [f.verdict for f in found] == [Verdict.VIOLATED]
    assert found[0].tensor == "head.weight"


def test_a_ledger_that_books_no_costs_gives_no_ratio(live: Any) -> None:
    import dataclasses

    from verify.evidence import read_evidence
    from verify.replay import check_cleanroom
    from verify.state import derive_state

    evidence = read_evidence(live.folder)
    entries = tuple(
        dataclasses.replace(e, body={k: v for k, v in e.body.items() if k != "cost"}) for e in evidence.entries
    )
    evidence = dataclasses.replace(evidence, entries=entries)
    state = derive_state(evidence)
    found = only(check_cleanroom(live.system, live.system.provenance(), evidence, state, isolate=False))
    assert found.verdict is Verdict.HOLDS
    assert found.details["record_passes"] > 0
    assert found.details["record_passes_booked"] is found.details["record_passes_ratio"] is None
