"""The real system on the tiny model: clean runs hold at every level; one changed bit, row or head does not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s3t.errors import OfflineError, S3TError
from s3t.records import Record
from verify.audit import audit
from verify.report import Report, Verdict

DELETED = ("row-003", "row-017")


def holds(report: Report) -> None:
    assert report.verdict is Verdict.HOLDS, report.dumps()


def violated(report: Report, check: str) -> str:
    assert report.verdict is Verdict.VIOLATED, report.dumps()
    found = [f for f in report.findings if f.verdict is Verdict.VIOLATED]
    assert check in {f.check for f in found}, report.dumps()
    return "\n".join(f"{f.node} {f.tensor} {f.message}" for f in found)


def test_a_fitted_run_holds(live: Any) -> None:
    holds(live.audit(scope="surviving"))


def test_after_a_deletion_in_a_process_of_its_own(live: Any) -> None:
    live.system.delete(DELETED)
    report = live.audit(isolate=True)
    holds(report)
    assert report.notes == ()
    assert {f.check for f in report.findings} == {
        *("E0 lineage", "E0 scan", "E0 rows", "E0 residue", "E1a clean room", "E1b never ingested")
    }


def test_after_a_refresh(live: Any) -> None:
    live.system.delete(DELETED)
    live.system.refresh()
    report = live.audit(scope="surviving")
    holds(report)
    assert report.claim == "retrained"


def test_after_a_second_deletion_past_a_refresh(live: Any) -> None:
    live.system.delete(DELETED[:1])
    live.system.refresh()
    live.system.delete(DELETED[1:])
    holds(live.audit())


def test_after_new_orders_and_a_deletion_in_either_order(live: Any) -> None:
    live.system.delete(DELETED[:1])
    live.system.extend(5)
    live.system.delete(DELETED[1:])
    holds(live.audit())


def test_when_everything_is_offline(live: Any) -> None:
    live.system.retire([(shard, s) for shard in range(2) for s in range(3)])
    report = live.audit()
    holds(report)
    assert any("nothing is served" in f.message for f in report.findings)


def test_one_shard_emptied_of_records(live: Any) -> None:
    from verify.derive import slot

    gone = [name for name in live.system.ids() if slot(live.system.key, name, 2, 3)[0] == 0]
    live.system.delete(gone)
    holds(live.audit())
    live.system.refresh()
    holds(live.audit())


def flip(tensor: Any) -> None:
    import torch

    tensor.data.view(torch.int32).flatten()[5] ^= 1


@pytest.mark.parametrize("position", [0, -1])
def test_one_bit_in_a_served_tensor(live: Any, position: int) -> None:
    live.system.delete(DELETED)
    node = live.system.provenance().chains[1].nodes[position]
    weights = live.system.weights()[node.name]
    name = sorted(weights)[0]
    flip(weights[name])
    report = live.audit("E1a", "E1b")
    shown = violated(report, "E1a clean room")
    first = report.first(Verdict.VIOLATED)
    assert first is not None
    assert (first.tensor, first.details["max_ulps"]) == (name, 1)
    assert first.node == f"shard 1, slices {'-'.join(map(str, node.prefix))}"
    assert "1 of" in shown
    assert "first at [0, 5], at most 1 ULP apart" in shown
    violated(report, "E1b never ingested")


def test_not_a_number_in_a_served_tensor(live: Any) -> None:
    node = live.system.provenance().chains[0].nodes[-1]
    live.system.weights()[node.name]["head.bias"].data[0] = float("nan")
    assert "head.bias 1 NaN" in violated(live.audit("E1a"), "E1a clean room")


class Wrapped:
    """The system under audit with one method replaced."""

    def __init__(self, system: Any, **methods: Any) -> None:
        self._system, self._methods = system, methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._system, name)


def test_predictions_that_the_tensors_do_not_give(live: Any) -> None:
    live.system.delete(DELETED)
    honest = live.system

    def nudged(inputs: Any) -> Any:
        scores = honest.predict(inputs)
        scores[0, 0] = np.nextafter(scores[0, 0], np.float32(9))
        return scores

    live.system = Wrapped(honest, predict=nudged)
    assert "predictions scores 1 of 36 elements differ" in violated(live.audit("E1a"), "E1a clean room")
    violated(live.audit("E1b"), "E1b never ingested")
    live.system = honest


def test_an_answer_remembered_for_a_deleted_record(live: Any) -> None:
    gone = [record for record in live.records if record.id in DELETED]
    remembered = {record.inputs["text"]: live.system.predict([record.inputs]) for record in gone}
    live.system.delete(DELETED)
    honest = live.system

    def recalling(inputs: Any) -> Any:
        scores = honest.predict(inputs)
        for i, one in enumerate(inputs):
            if one["text"] in remembered:
                scores[i] = remembered[one["text"]][0]
        return scores

    live.system = Wrapped(honest, predict=recalling)
    violated(live.audit("E1b"), "E1b never ingested")
    live.system = honest


def test_tensors_left_out_and_tensors_of_nodes_that_do_not_serve(live: Any) -> None:
    weights = {name: dict(tensors) for name, tensors in live.system.weights().items()}
    last = live.system.provenance().chains[0].nodes[-1].name
    lost = sorted(weights[last])[0]
    kept = weights[last].pop(lost)
    honest, live.system = live.system, Wrapped(live.system, weights=lambda: weights)
    assert f"{lost} the tensor is expected but absent" in violated(live.audit("E1a"), "E1a clean room")
    weights[last][lost] = kept
    weights["shard-00/9"] = {"x": kept}
    assert "tensors of 'shard-00/9' serve" in violated(live.audit("E1a"), "E1a clean room")
    live.system = honest


def test_another_environment_is_undecided(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3t import backbone

    here = backbone.environment

    def elsewhere(*about: Any) -> Any:
        return here(*about) | {"torch": "9.9"}

    monkeypatch.setattr(backbone, "environment", elsewhere)
    report = live.audit("E1a")
    assert report.verdict is Verdict.UNDECIDED
    assert any("it was trained with torch" in f.message and "here is '9.9'" in f.message for f in report.findings)


def test_a_stored_node_that_will_serve_later(live: Any) -> None:
    """The live system is honest; a spare node on disk is not: damage, and with its hashes in the ledger a violation."""
    from safetensors.torch import load, save

    from s3t.digests import tensors_digest
    from s3t.records import sha256
    from verify.evidence import read_evidence
    from verify.replay import check_cleanroom
    from verify.state import derive_state

    evidence = read_evidence(live.folder)
    state = derive_state(evidence)
    spare = state.survivors[0, (1,)]
    path = live.folder / "nodes" / spare.key / "head.safetensors"
    tensors = load(path.read_bytes())
    flip(tensors["weight"])
    path.chmod(0o644)
    raw = save(tensors)
    path.write_bytes(raw)
    holds(live.audit("E1a"))
    for report in (live.audit("E0"), live.audit("E1a", scope="surviving")):
        assert report.verdict is Verdict.UNDECIDED
        assert {f.verdict for f in report.findings if "its SHA-256 differs" in f.message} == {Verdict.UNDECIDED}
    files = {**spare.files, path.name: sha256(raw)}
    told = dataclasses.replace(spare, head=tensors_digest(tensors), files=files)
    state = dataclasses.replace(state, survivors={**state.survivors, (0, (1,)): told})
    found = check_cleanroom(live.system, live.system.provenance(), evidence, state, isolate=False, scope="surviving")
    assert [(f.verdict, f.node, f.tensor) for f in found] == [(Verdict.VIOLATED, "shard 0, slices 1", "head.weight")]
    assert found[0].message.startswith("on disk: 1 of")


def test_a_row_changed_behind_the_ledger(live: Any) -> None:
    raw = (live.folder / "records.bin").read_bytes()
    (live.folder / "records.bin").write_bytes(raw.replace(b"amber", b"birch", 1))
    report = live.audit("E0", "E1a")
    violated(report, "E0 rows")
    violated(report, "E1a clean room")


def test_labels_computed_from_all_data_at_ingestion(live: Any, tmp_path: Path) -> None:
    """What the run keeps is tainted already, so only the records as handed in can tell."""
    from s3t.system import System

    class Rounding(System):
        def fit(self, records: Any, progress: Any = None) -> Any:
            shift = len(records) % 2
            return super().fit([Record(r.id, r.inputs, (r.label + shift) % 3) for r in records], progress)

    def make(folder: Path) -> Any:
        honest = live.make(folder)
        honest.__class__ = Rounding
        return honest

    folder = tmp_path / "tainted"
    system = make(folder)
    system.fit(live.records[:-1])
    system.delete(["row-003"])
    lab = SimpleNamespace(make=lambda folder, _: make(folder))
    given = {"isolate": False, "lab": lab, "levels": ("E0", "E1b")}
    report = audit(system, folder, records=live.records[:-1], **given)
    assert "rows differ from what was handed in" in violated(report, "E0 rows")
    violated(report, "E1b never ingested")
    assert any(f.tensor for f in report.findings)
    system.close()


def test_a_reference_that_cannot_be_fitted_is_undecided(live: Any) -> None:
    live.system.delete(DELETED)

    class Failing:
        retire = None

        def fit(self, *_: Any) -> None:
            raise S3TError("no room")

    report = live.audit("E1b", lab=SimpleNamespace(make=lambda *_: Failing()))
    assert [f.message for f in report.findings] == ["the reference cannot be fitted: no room"]
    assert report.verdict is Verdict.UNDECIDED


def test_a_system_that_refuses_although_chains_survive(live: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise OfflineError("offline")

    live.system.delete(DELETED)
    honest = live.system
    live.system = Wrapped(honest, predict=refuse, weights=refuse)
    assert "expected but absent" in violated(live.audit("E1a"), "E1a clean room")
    violated(live.audit("E1b"), "E1b never ingested")
    live.system = honest


def test_no_capability_to_retire_is_undecided(live: Any) -> None:
    live.system.delete(DELETED)

    class Bare:
        def __init__(self, system: Any) -> None:
            self.fit, self.close = system.fit, system.close

    report = live.audit("E1b", lab=SimpleNamespace(make=lambda folder, _: Bare(live.make(folder))))
    assert report.verdict is Verdict.UNDECIDED
    assert "cannot retire" in report.findings[0].message
    assert live.audit("E1b", lab=None).verdict is Verdict.UNDECIDED


def test_command_line(live: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from verify.cli import main

    live.system.delete(DELETED)
    live.system.close()
    assert main([str(live.folder), "--no-isolate"]) == 0, capsys.readouterr().out
    shutil.copytree(live.folder / "nodes", live.folder / "nodes.bak")
    assert main([str(live.folder), "--level", "E0", "--json"]) == 1
    assert "nodes.bak" in capsys.readouterr().out


def test_references_made_elsewhere_are_undecided(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    live.system.delete(DELETED)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        report = live.audit("E1b", "E1c", "E4")
    finally:
        torch.set_num_threads(threads)
    assert {f.check: f.verdict for f in report.findings} == dict.fromkeys(("E1b", "E1c", "E4"), Verdict.UNDECIDED)
    assert f"was trained with threads {threads}, references are with {threads + 1}" in report.findings[0].message


def test_the_command_line_trains_references_on_the_threads_of_the_run(live: Any) -> None:
    import torch

    from verify.cli import main

    live.system.delete(DELETED)
    live.system.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert main([str(live.folder), "--level", "E1b"]) == 0
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
