"""Certificates of runs in which an analytic head serves: alone, beside chains, and where all chains are dead."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3t.analytic.head import AnalyticHead
from s3t.errors import RunError
from s3t.system import System
from verify import derive, machine
from verify.attest import AttestError, RefusedError, headed
from verify.attest.check import _weights as weights_of
from verify.audit import audit
from verify.binary import CHECK, FILE, HEADER, row_check
from verify.combining import among
from verify.evidence import read_evidence
from verify.report import Finding, Report, Verdict
from verify.state import HEAD, HEAD_NAME, derive_state

from ..test_analytic import RECORDS as ROWS
from ..test_analytic import make
from .conftest import Certified, report_on
from .test_commands import BLOCK, WITHOUT, s3t
from .test_tampering import Path_, leaves, rejected, says, with_change

RULES = {"weights": "length", "pool": "logarithmic"}
KINDS = {"analytic": ("analytic", {}), "beside": ("s3t", {}), "by length": ("s3t", RULES)}


def audited(run: Path, *levels: str) -> Report:
    with closing(System.open(run)) as system:
        return audit(system, run, levels=levels or ("E0", "E1a"), isolate=False)


@pytest.fixture(scope="module", params=KINDS)
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    (method, rules), home = KINDS[request.param], tmp_path_factory.mktemp("headed")
    with closing(make(home / "run", method, AnalyticHead(poolings=("mean", "last"), random=7), rules=rules)) as system:
        system.fit(ROWS)
        system.delete(["row-003"])
    made = Certified(home / "run", b"", home / "keys")
    made.raw = made.certify(audited(made.run))
    return made


@pytest.fixture
def copied(once: Certified, tmp_path: Path) -> Certified:
    """A copy of the run that a test may change."""
    shutil.copytree(once.run, tmp_path / "run")
    return Certified(tmp_path / "run", once.raw, once.keys)


def changed_at(certified: Certified, *at: str | int, to: Any) -> bytes:
    """Return the certificate with another value at one place, signed again."""
    statement = copy.deepcopy(certified.statement)
    inner: Any = statement
    for key in at[:-1]:
        inner = inner[key]
    assert inner[at[-1]] != to
    inner[at[-1]] = to
    return certified.sign(statement)


def served_digests(run: Path) -> dict[str, str]:
    with closing(System.open(run)) as system:
        return {
            f"{node}:{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
            for node, named in system.weights().items()
            for name, tensor in named.items()
        }


def test_it_holds_alone_and_against_its_run(once: Certified) -> None:
    for run in (True, False):
        report = once.check(run=run)
        assert report.verdict is Verdict.HOLDS, report.dumps()
    assert {"A head", "A head tensors"} <= {f.check for f in once.check().findings}


def test_what_is_certified_is_what_serves(once: Certified) -> None:
    evidence = read_evidence(once.run)
    state = derive_state(evidence)
    assert state.head is not None
    told, subjects = once.statement["predicate"], once.statement["subject"]
    assert {s["name"]: s["digest"]["sha256"] for s in subjects} == served_digests(once.run)
    assert {s["annotations"]["dtype"] for s in subjects if s["name"].startswith(HEAD_NAME)} == {"float64"}
    with closing(System.open(once.run)) as system:
        serving = system.provenance().chains
    said = [(c["shard"], c["weight"], [n["key"] for n in c["nodes"]]) for c in told["served"]]
    assert sorted(said) == sorted((c.shard, c.weight, [n.key for n in c.nodes]) for c in serving)
    (node,) = told["served"][-1]["nodes"]
    assert (told["served"][-1]["shard"], node["name"], node["prefix"]) == (HEAD[0], HEAD_NAME, [])
    kept = sorted(str(row.commitment) for row in evidence.train)
    assert node["reads"] == {"root": derive.root(kept), "rows": len(ROWS) - 1}
    assert told["environments"][node["environment"]] == state.head.environment
    plan = evidence.run["plan"]
    assert told["run"]["head"] == {
        "declared": plan["head"],
        "share": plan["share"],
        "pool": plan.get("pool", "linear"),
        "made": next(entry.seq for entry in evidence.entries if entry.kind == "head"),
    }
    assert FILE in told["stores"] and "analytic head" in told["selection"]["rule"]
    weights = [(1 - state.share) * weight for weight in among(state.plan, [len(c.nodes) for c in state.chains])]
    assert [c["weight"] for c in told["served"]] == [*weights, state.share]
    text = json.dumps(once.statement)
    assert not [row for row in evidence.rows if row.record.id in text or str(row.commitment) in text]


def test_the_audits_clean_room_names_the_tensors_that_are_certified(once: Certified) -> None:
    (found,) = [f for f in audited(once.run, "E1a").findings if "solved" in f.details]
    mine = {s["name"]: s["digest"]["sha256"] for s in once.statement["subject"] if s["name"].startswith(HEAD_NAME)}
    assert {f"{HEAD_NAME}:{name}": digest for name, digest in found.details["solved"]["tensors"].items()} == mine
    node = once.statement["predicate"]["served"][-1]["nodes"][0]
    assert once.statement["predicate"]["environments"][node["solved"]]["threads"] == found.details["solved"]["threads"]


def test_chains_without_a_head_say_nothing_of_one(certified_once: Certified) -> None:
    told = certified_once.statement["predicate"]
    assert "head" not in told["run"] and all(c["shard"] >= 0 for c in told["served"])
    assert FILE not in told["stores"] and "analytic" not in told["selection"]["rule"]


def test_a_certificate_from_before_weights_and_heads_still_holds(certified_once: Certified) -> None:
    statement = certified_once.statement
    del statement["predicate"]["run"]["weights"]
    for run in (True, False):
        assert certified_once.check(certified_once.sign(statement), run=run).verdict is Verdict.HOLDS


def test_features_without_a_solution_are_undecided(once: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    def singular(at: Any, head: Any) -> Any:
        import torch

        return {"weights": torch.linalg.cholesky(torch.zeros(2, 2))}

    monkeypatch.setattr(headed, "solve", singular)
    says(once, Verdict.UNDECIDED, "cannot be solved anew")


def rests_on_trust(statement: Any, at: Path_) -> bool:
    """Everything but the declared head, what is said of it as it serves, its environments and tensors, and all weights."""
    if at[0] == "subject":
        return not statement["subject"][at[1]]["name"].startswith(HEAD_NAME)
    told, node = at[1:], statement["predicate"]["served"][-1]["nodes"][0]
    last = len(statement["predicate"]["served"]) - 1
    return not (
        told[:2] in (("run", "head"), ("served", last))
        or (told[0] == "served" and told[-1] == "weight")
        or (told[0] == "environments" and told[1] in (node["environment"], node["solved"]))
    )


def test_everything_said_of_the_head_is_contradicted_by_the_run_even_under_the_own_key(once: Certified) -> None:
    statement = once.statement
    facts = [at for at in leaves(statement) if at[0] in ("subject", "predicate") and not rests_on_trust(statement, at)]
    assert len(facts) > 40
    for at in facts:
        raw = once.sign(with_change(statement, at))
        assert rejected(once, raw, run=True), at


LAST = ("predicate", "served", -1)
DECLARED = ("predicate", "run", "head", "declared")
FOUND: dict[str, tuple[Path_, Any, str]] = {
    "weight": ((*LAST, "weight"), 0.29, "the ensemble weights do not follow from what serves"),
    "order": ((*LAST, "order"), 1, "not one node of order 0"),
    "nodes": ((*LAST, "nodes"), [{"name": "x"}, {}], "has not the form"),
    "name": ((*LAST, "nodes", 0, "name"), "head", "bears another node's name or place"),
    "rows": ((*LAST, "nodes", 0, "reads", "rows"), 34, "read 34 records, and 35 are retained"),
    "made": (("predicate", "run", "head", "made"), 1, "other features than those made"),
    "never made": (("predicate", "run", "head", "made"), None, "whether an analytic head serves does not follow"),
    "solved": ((*LAST, "nodes", 0, "solved"), 64 * "0", "was solved in an unknown environment"),
    "shard": ((*LAST, "shard"), 5, "whether an analytic head serves does not follow"),
    "key": ((*LAST, "nodes", 0, "key"), 64 * "0", "its key is not the derived one"),
    "reads": ((*LAST, "nodes", 0, "reads", "root"), 64 * "0", "it read 35 records, all that were retained"),
    "ridge": ((*DECLARED, "ridge"), 0.2, "is not that of run.json and the ledger"),
    "pool": (("predicate", "run", "head", "pool"), "other", "is not that of run.json and the ledger"),
    "digest": (("subject", -1, "digest", "sha256"), 64 * "0", "is not the tensor that was certified"),
    "shape": (("subject", -1, "annotations", "shape"), [1], "is not the tensor that was certified"),
}
ALONE = {"weight", "order", "nodes", "name", "rows", "made", "never made", "solved", "shard"}
"""What the certificate itself shows, without its run."""


@pytest.mark.parametrize("what", FOUND)
def test_a_change_is_named(once: Certified, what: str) -> None:
    at, to, message = FOUND[what]
    raw = changed_at(once, *at, to=to)
    says(once, Verdict.VIOLATED, message, raw)
    if what in ALONE:
        report = once.check(raw, run=False)
        assert any(message in f.message for f in report.findings if f.verdict is Verdict.VIOLATED), report.dumps()
    else:
        assert once.check(raw, run=False).verdict is Verdict.HOLDS


def without_head(statement: Any) -> Any:
    """Return the statement as one that says of no head that it serves, its weights as if none did."""
    told = statement["predicate"]
    told["served"].pop()
    lengths = [len(chain["nodes"]) for chain in told["served"]]
    equal = told["run"]["weights"] == "equal"
    for chain, length in zip(told["served"], lengths, strict=True):
        chain["weight"] = 1 / len(lengths) if equal else length / sum(lengths)
    statement["subject"] = [s for s in statement["subject"] if not s["name"].startswith(HEAD_NAME)]
    return statement


def test_a_head_that_is_left_out_is_missed(once: Certified) -> None:
    raw = once.sign(without_head(once.statement))
    report = once.check(raw, run=False)
    assert any("whether an analytic head serves" in f.message for f in report.findings), report.dumps()
    undeclared = without_head(once.statement)
    del undeclared["predicate"]["run"]["head"]
    raw = once.sign(undeclared)
    if undeclared["subject"]:
        assert once.check(raw, run=False).verdict is Verdict.HOLDS
        says(once, Verdict.VIOLATED, "an analytic head must serve, and the certificate says otherwise", raw)
    else:
        says(once, Verdict.VIOLATED, "it names no served tensor", raw)


def test_another_share_with_the_weights_that_follow_from_it(once: Certified) -> None:
    statement = once.statement
    told = statement["predicate"]
    told["run"]["head"]["share"] = 0.25
    for chain, weight in zip(told["served"], weights_of(told), strict=True):
        chain["weight"] = weight
    raw = once.sign(statement)
    assert once.check(raw, run=False).verdict is Verdict.HOLDS
    says(once, Verdict.VIOLATED, "is not that of run.json and the ledger", raw)


def test_a_tensor_that_is_left_out_is_missed(once: Certified) -> None:
    statement = once.statement
    statement["subject"].pop()
    assert once.check(once.sign(statement), run=False).verdict is Verdict.VIOLATED


def test_an_environment_is_the_one_that_is_named(once: Certified) -> None:
    node = once.statement["predicate"]["served"][-1]["nodes"][0]
    raw = changed_at(once, "predicate", "environments", node["solved"], "torch", to="0")
    says(once, Verdict.VIOLATED, "an environment of the analytic head is not the one that it names", raw)


def test_an_impossible_number_of_threads_is_not_tried(once: Certified) -> None:
    from s3t.records import sha256
    from verify.attest.envelope import canonical

    statement = once.statement
    told = statement["predicate"]
    node = told["served"][-1]["nodes"][0]
    for threads in (0, 10**9, "many"):
        environment = told["environments"].pop(node["solved"]) | {"threads": threads}
        node["solved"] = sha256(canonical(environment))
        told["environments"][node["solved"]] = environment
        says(once, Verdict.VIOLATED, "cannot have been solved on that many threads", once.sign(statement))


def test_a_run_that_moved_on(copied: Certified) -> None:
    forged = changed_at(copied, *LAST, "nodes", 0, "key", to=64 * "0")
    with closing(System.open(copied.run)) as system:
        system.delete(["row-004", "row-005"])
    says(copied, Verdict.UNDECIDED, "the run has moved on: 1 request since")
    told = {f.check: f for f in copied.check().findings}
    assert told["A head"].verdict is Verdict.HOLDS and "35 retained" in told["A head"].message
    assert "A head tensors" not in told
    says(copied, Verdict.VIOLATED, "its key is not the derived one", forged)
    copied.raw = copied.certify(audited(copied.run), request="r000002")
    assert copied.check().verdict is Verdict.HOLDS
    assert {s["name"]: s["digest"]["sha256"] for s in copied.statement["subject"]} == served_digests(copied.run)


def test_the_head_alone_is_certified_where_all_chains_are_dead(copied: Certified) -> None:
    with closing(System.open(copied.run)) as system:
        layout = system.config.plan.layout
        slots = [(s, piece) for s in range(layout.shards) for piece in range(layout.slices)]
        if system.config.plan.stages:
            system.retire(slots)
            request, offline = "r000002", list(range(layout.shards))
        else:  # there never was a chain
            request, offline = "r000001", []
    copied.raw = copied.certify(audited(copied.run), request=request)
    told = copied.statement["predicate"]
    assert [(c["shard"], c["weight"]) for c in told["served"]] == [(HEAD[0], 1.0)]
    assert told["offline"] == offline
    assert copied.check().verdict is Verdict.HOLDS and copied.check(run=False).verdict is Verdict.HOLDS
    says(copied, Verdict.VIOLATED, "weights do not follow", changed_at(copied, *LAST, "weight", to=0.3))


def test_nothing_is_certified_where_nothing_is_retained(copied: Certified) -> None:
    with closing(System.open(copied.run)) as system:
        system.delete([row.id for row in ROWS if row.id != "row-003"])
    with pytest.raises(RunError, match="every shard is offline and no analytic head serves"):
        copied.certify(report_on(copied.run), request="r000002")


def rewrite(run: Path, change: Callable[[np.ndarray], None], *, checked: bool) -> None:
    """Change the stored features of the first retained record, with a check that fits them or as they are."""
    evidence = read_evidence(run)
    spans = [span for span in evidence.spans if span.split == "train"]
    place = next(i for i, span in enumerate(spans) if not span.zero)
    raw = bytearray((run / FILE).read_bytes())
    stride = (len(raw) - HEADER) // len(spans)
    start = HEADER + place * stride
    features = np.frombuffer(bytes(raw[start : start + stride - CHECK]), dtype="<i2").copy()
    change(features)
    raw[start : start + stride - CHECK] = features.tobytes()
    if checked:
        raw[start + stride - CHECK : start + stride] = row_check(str(spans[place].commitment), features.tobytes())
    (run / FILE).write_bytes(bytes(raw))


def one_more(features: np.ndarray) -> None:
    features[0] += 1


def test_features_that_were_replaced_give_other_tensors(copied: Certified) -> None:
    rewrite(copied.run, one_more, checked=True)
    says(copied, Verdict.VIOLATED, "solved anew from the stored features, is not the tensor that was certified")
    with pytest.raises(RefusedError, match="not those that the audit confirmed"):
        copied.certify(dataclasses.replace(confirmed_report(copied), checked=read_evidence(copied.run).checked))


def confirmed_report(certified: Certified) -> Report:
    """Return a report whose clean room solved the tensors that the certificate names."""
    tensors = {
        s["name"].partition(":")[2]: s["digest"]["sha256"]
        for s in certified.statement["subject"]
        if s["name"].startswith(HEAD_NAME)
    }
    node = certified.statement["predicate"]["served"][-1]["nodes"][0]
    threads = certified.statement["predicate"]["environments"][node["solved"]]["threads"]
    return report_on(certified.run, solved_by(threads, tensors), levels=("E1a",))


def solved_by(threads: Any, tensors: Any) -> Finding:
    details = {"solved": {"threads": threads, "tensors": tensors}}
    return Finding("E1a clean room", Verdict.HOLDS, "the same bits", details=details)


def test_what_the_audit_confirmed_is_what_is_certified(once: Certified) -> None:
    assert once.check(once.certify(confirmed_report(once))).verdict is Verdict.HOLDS
    for threads in (0, "many", 10**9, None):
        with pytest.raises(AttestError, match="threads; make one anew"):
            once.certify(report_on(once.run, solved_by(threads, {}), levels=("E1a",)))
    odd = Finding("E1a clean room", Verdict.HOLDS, "", details={"solved": {}})
    with pytest.raises(AttestError, match="does not say what its clean room solved"):
        once.certify(report_on(once.run, odd, levels=("E1a",)))


def test_a_structural_audit_confirms_no_tensors_and_they_are_named_all_the_same(once: Certified) -> None:
    raw = once.certify(report_on(once.run, Finding("E0 rows", Verdict.HOLDS, ""), levels=("E0",)))
    assert once.check(raw).verdict is Verdict.HOLDS


def test_features_that_are_damaged(copied: Certified) -> None:
    rewrite(copied.run, one_more, checked=False)
    says(copied, Verdict.UNDECIDED, "do not match their check; `s3t refresh` makes them anew")
    with pytest.raises(AttestError, match=r"do not match their check; `s3t refresh`"):
        copied.certify(report_on(copied.run))
    (copied.run / FILE).unlink()
    says(copied, Verdict.UNDECIDED, "cannot be read: features.bin is missing")


def test_a_label_that_was_changed(copied: Certified) -> None:
    evidence = read_evidence(copied.run)
    span = next(span for span in evidence.spans if span.split == "train" and not span.zero)
    raw = bytearray((copied.run / "records.bin").read_bytes())
    content = bytes(raw[span.start : span.stop])
    at = content.rindex(b'"label":') + len(b'"label":')
    raw[span.start + at : span.start + at + 1] = b"1" if content[at : at + 1] != b"1" else b"2"
    (copied.run / "records.bin").write_bytes(bytes(raw))
    says(copied, Verdict.VIOLATED, "a retained record is not the one that was committed to")


def test_an_index_with_another_commitment(copied: Certified) -> None:
    import sqlite3

    index = sqlite3.connect(copied.run / "records.sqlite")
    columns = "tag, shard, slice, split, commitment, start, length"
    (row,) = index.execute(f"SELECT {columns} FROM records WHERE split='train' LIMIT 1").fetchall()
    fields = [*row[:4], 64 * "0", *row[5:]]
    index.execute(
        'UPDATE records SET commitment=?, "check"=? WHERE tag=?', (64 * "0", derive.index_check(fields), row[0])
    )
    index.commit()
    index.close()
    says(copied, Verdict.VIOLATED, "the index of records names other commitments than the ledger")


@pytest.mark.parametrize("name", ["records.bin", "records.sqlite"])
def test_without_records_the_head_is_undecided_and_the_secret_is_not_needed(copied: Certified, name: str) -> None:
    (copied.run / "secret.key").unlink()
    assert copied.check().verdict is Verdict.HOLDS
    (copied.run / name).unlink()
    says(copied, Verdict.UNDECIDED, f"cannot be read: {name} is missing")


def test_on_another_processor_the_tensors_are_undecided(once: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headed, "processor", lambda: "another one")
    says(once, Verdict.UNDECIDED, "its bits cannot be compared")
    told = {f.check: f.verdict for f in once.check().findings}
    assert (told["A head"], told["A head tensors"]) == (Verdict.HOLDS, Verdict.UNDECIDED)
    assert machine.processor()


def test_without_torch_the_tensors_are_undecided(once: Certified, python: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(once.raw)
    public = next(once.keys.glob("*.pub"))
    for run, code in (([], 0), ([str(once.run)], 3)):
        arguments = ["check", str(path), *run, "--key", str(public), "--json"]
        done = python("-c", BLOCK.format(blocked=WITHOUT, arguments=arguments))
        assert done.returncode == code, done.stdout + done.stderr
    (open_,) = [f for f in json.loads(done.stdout)["findings"] if f["verdict"] == "UNDECIDED"]
    assert "with torch, which is not here" in open_["message"]


def test_a_map_that_is_not_finite_is_not_certified(once: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = headed.solve

    def broken(*given: Any) -> Any:
        found = solve(*given)
        found["bias"][0] = float("nan")
        return found

    monkeypatch.setattr(headed, "solve", broken)
    with pytest.raises(RefusedError, match="analytic head:bias holds NaN or infinity"):
        once.certify()


@pytest.mark.slow
def test_the_commands(once: Certified, tmp_path: Path) -> None:
    out, keys = tmp_path / "c.json", tmp_path / "keys"
    code, told = s3t("certify", once.run, "--request", "r000001", "--out", out, "--keys", keys)
    assert code == 0, told
    code, told = s3t("check", out, once.run, "--keys", keys)
    assert code == 0 and "solved anew" in told
