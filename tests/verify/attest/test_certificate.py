"""What a certificate says, when it is refused, and what it must never contain."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import RunError
from verify import derive
from verify.attest import AttestError, RefusedError
from verify.attest.issue import selection
from verify.attest.told import figures, plain, read_report, scrub
from verify.evidence import read_evidence
from verify.report import LIMITS, Finding, Verdict
from verify.state import derive_state

from .conftest import DELETED, Certified, report_on, statement_of


def test_it_holds_alone_and_against_its_run(certified_once: Certified) -> None:
    for run in (True, False):
        report = certified_once.check(run=run)
        assert report.verdict is Verdict.HOLDS, report.dumps()
    assert {f.check for f in certified_once.check().findings} == {
        f"A {what}" for what in ("signature", "form", "verdict", "proofs", "ledger", "run", "commitments", "tensors")
    }


def test_it_lists_every_served_tensor(certified: Certified, system: Callable[[], Any]) -> None:
    served = {f"{node}:{name}": t for node, named in system().weights().items() for name, t in named.items()}
    subjects = {s["name"]: s for s in certified.statement["subject"]}
    assert subjects.keys() == served.keys()
    for name, tensor in served.items():
        assert subjects[name]["digest"]["sha256"] == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        assert subjects[name]["annotations"] == {"dtype": "float32", "shape": list(tensor.shape)}


def test_it_says_what_the_ledger_and_the_derivation_say(certified_once: Certified) -> None:
    evidence = read_evidence(certified_once.run)
    state = derive_state(evidence)
    told = certified_once.statement["predicate"]
    create, last = evidence.entries[0].body, evidence.entries[-1]
    assert told["commitments"] == {"root": create["root"], "rows": 60, "slotKey": create["key"]}
    assert told["request"]["tombstones"] == sorted(derive.tag(evidence.key, name) for name in DELETED)
    assert (told["request"]["entry"], told["ledger"]["head"]) == (last.seq, last.digest)
    assert (told["issued"], told["deleted"]) == ({"at": "2026-01-02T03:04:05Z", "by": ""}, 2)
    assert told["levels"] == {"E0": "HOLDS", "E1a": "HOLDS"}
    assert told["limits"] == list(LIMITS)
    assert "commitments" in told["stores"]
    for chain, mine in zip(told["served"], state.chains, strict=True):
        assert (chain["shard"], chain["order"], chain["weight"]) == (mine.shard, mine.order, 0.5)
        for node, known in zip(chain["nodes"], mine.nodes, strict=True):
            assert (node["key"], node["parent"], tuple(node["prefix"])) == (known.key, known.parent, known.prefix)
            rows = state.rows(known.shard, known.prefix)
            assert node["reads"] == {"root": derive.root([str(r.commitment) for r in rows]), "rows": len(rows)}
            assert int(node["seeds"]["head"]) == derive.seed(evidence.run["seed"], known.shard, known.prefix, "head")


def test_it_names_no_record_no_path_and_no_row_hash(certified_once: Certified) -> None:
    evidence = read_evidence(certified_once.run)
    text = json.dumps(certified_once.statement)
    assert not [row.record.id for row in evidence.rows if row.record.id in text]
    assert not [name for name in DELETED if name in text]
    assert str(certified_once.run.parent) not in text
    assert evidence.key.hex() not in text
    hashes = {hashlib.sha256(row.content).hexdigest() for row in evidence.rows} | {r.commitment for r in evidence.rows}
    assert not [value for value in hashes if value and value in text]


def test_the_selections_inputs_are_all_chains(certified_once: Certified) -> None:
    state = derive_state(read_evidence(certified_once.run))
    found = selection(state)
    assert [choice["chosen"] for choice in found] == [chain.order for chain in state.chains]
    assert all([c["order"] for c in choice["considered"]] == [list(o) for o in state.orders] for choice in found)
    lengths = [[c["length"] for c in choice["considered"]] for choice in found]
    assert any(0 in one for one in lengths) and all(
        max(one) == len(c.nodes) for one, c in zip(lengths, state.chains, strict=True)
    )


def test_a_violation_is_not_certified(certified: Certified) -> None:
    bad = report_on(certified.run, Finding("E0 rows", Verdict.VIOLATED, "a row is back"), levels=("E0",))
    with pytest.raises(RefusedError, match="VIOLATED, so nothing is certified: a row is back") as caught:
        certified.certify(bad, undecided=True)
    assert caught.value.exit_code == 1


def test_undecided_is_certified_as_that_and_on_request_alone(certified: Certified) -> None:
    open_ = report_on(certified.run, Finding("E0 rows", Verdict.UNDECIDED, "who knows"), levels=("E0",))
    with pytest.raises(RefusedError, match=r"UNDECIDED \(who knows\); --allow-undecided"):
        certified.certify(open_)
    raw = certified.certify(open_, undecided=True)
    assert statement_of(raw)["predicate"]["verdict"] == "UNDECIDED"
    report = certified.check(raw)
    assert report.verdict is Verdict.UNDECIDED
    assert any("itself states UNDECIDED: E0" in f.message for f in report.findings)


def test_a_level_without_findings_is_undecided(certified: Certified) -> None:
    with pytest.raises(RefusedError, match="a level found nothing"):
        certified.certify(dataclasses.replace(report_on(certified.run), levels=("E0", "E1b")))


def test_a_report_on_another_state_is_refused(certified: Certified) -> None:
    old = report_on(certified.run)
    certified.append("stray", {"tags": []})
    with pytest.raises(AttestError, match="another state of it; audit the run again"):
        certified.certify(old)


def test_a_request_must_be_in_the_ledger(certified: Certified) -> None:
    with pytest.raises(AttestError, match=r"no request 'r000009' \(the last is 'r000001'\)"):
        certified.certify(request="r000009")


def test_an_incomplete_run_is_refused(certified: Certified) -> None:
    told = report_on(certified.run)
    (certified.run / "commitments").unlink()
    with pytest.raises(RunError, match="cannot be certified: commitments is missing"):
        certified.certify(told)


def test_messages_are_freed_of_names_and_paths() -> None:
    assert scrub("record 'row-1' is in /data/run/x.json, see ~/y and ../z") == (
        "record [withheld] is in [withheld] see [withheld] and [withheld]"
    )
    assert scrub("hits 3/4 of org/name: the same bits") == "hits 3/4 of org/name: the same bits"


def test_details_keep_their_figures_alone() -> None:
    details = {
        "n": 3,
        "victims": ["row-001"],
        "by_victim": {"row-001": 0.5},
        "path": "/x",
        "tpr": {"pre": 0.5, "post": float("nan")},
        "low": float("inf"),
        "seed": 2**60,
        "isolated": True,
    }
    assert figures(details) == {
        "n": 3,
        "tpr": {"pre": 0.5, "post": None},
        "low": None,
        "seed": str(2**60),
        "isolated": True,
    }
    assert plain(2**53 - 1) == 2**53 - 1


def test_reports_are_read_back_strictly(certified: Certified, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report_on(certified.run).dumps())
    assert statement_of(certified.certify(read_report(path))) == certified.statement
    good = json.loads(path.read_text())
    wrong: list[Any] = [
        good | {"verdict": "UNDECIDED"},
        good | {"levels": {"E0": "HOLDS", "E1a": "VIOLATED"}},
        good | {"schema": 2},
        good | {"checked": {}},
        good | {"findings": [{"check": "E0"}]},
        [],
    ]
    for one in wrong:
        path.write_text(json.dumps(one))
        with pytest.raises(AttestError, match="no report of `python -m verify"):
            read_report(path)
    with pytest.raises(AttestError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def test_the_matrix_of_planted_faults_is_summed_up(certified: Certified, tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    columns = ["leak", "setting", "victim", "check", "verdict", "due"]
    rows = [[1, "a", 0, "E0", "VIOLATED", 1], [2, "a", 0, "E0", "HOLDS", 1], [0, "a", 0, "E0", "HOLDS", 0]]
    path.write_text(json.dumps({"columns": columns, "rows": rows}))
    told = statement_of(certified.certify(leaks=path))["predicate"]["leaks"]
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["summary"] == {"planted": 2, "caught": 1, "due": 2, "dueCaught": 1, "alarms": 0, "settings": 1}
    path.write_text("[]")
    with pytest.raises(AttestError, match="no matrix of"):
        certified.certify(leaks=path)


def test_weights_that_are_not_finite_are_not_certified(certified: Certified) -> None:
    evidence = read_evidence(certified.run)
    node = derive_state(evidence).chains[0].nodes[-1]
    path = certified.run / "nodes" / node.key / "head.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(AttestError, match="not the file that the ledger recorded"):
        certified.certify()
