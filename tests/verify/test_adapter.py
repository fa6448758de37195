"""A system that is known by the contract alone is audited through an adapter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s3t.contract import Cost, NodeFacts, Provenance, Receipt, ServedChain
from s3t.errors import S3TError
from s3t.records import Record
from verify.adapter import Adapter, audit_adapter, load_adapter
from verify.case import SAME, CannotPlayError, Case, Event, Variant, apply
from verify.cli import main
from verify.report import Verdict

RECORDS = [Record(f"person-{i:02d}", {"text": f"a sentence that only number {i:02d} wrote"}, i % 2) for i in range(8)]
PROBES = [Record("probe", {"text": "a question"}, 0)]


class Centroids:
    """A tiny foreign system: a mean length per class. It retrains at once, and keeps a file of what it has seen."""

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.folder, self.fault = folder, fault
        self.known: dict[str, Record] = {}
        self.seen: set[str] = set()

    def fit(self, records: Sequence[Record], progress: Any = None) -> Cost:
        self.folder.mkdir(parents=True)
        self.known = {record.id: record for record in records}
        self._train()
        return Cost(nodes=1)

    def _train(self) -> None:
        import torch

        self.seen = set(self.known)
        means = [[np.mean([self._length(r) for r in self.known.values() if r.label == c]) for c in (0, 1)]]
        self.means = torch.tensor(means, dtype=torch.float64)
        (self.folder / "rows.txt").write_text("\n".join(r.inputs["text"] for r in self.known.values()))  # type: ignore[misc]

    @staticmethod
    def _length(record: Record) -> float:
        return sum(map(ord, str(record.inputs["text"]))) / 1000

    def delete(self, ids: Sequence[str]) -> Receipt:
        for name in ids:
            if name not in self.known:
                raise S3TError(f"no record {name!r}")
            self.known.pop(name)
        if self.fault != "stale":
            rows = (self.folder / "rows.txt").read_text()
            self._train()
            if self.fault == "residue":
                (self.folder / "rows.old").write_text(rows)
        return Receipt("r", tuple(ids), (), ((0, 0),), (), (), Cost())

    def predict(self, inputs: Sequence[Any]) -> Any:
        lengths = np.array([[sum(map(ord, str(i["text"]))) / 1000] for i in inputs])
        return -np.abs(lengths - self.means.numpy()).astype(np.float32)

    def refresh(self, progress: Any = None) -> Cost:
        return Cost()

    def provenance(self) -> Provenance:
        reads = None if self.fault == "blind" else frozenset(self.seen)
        chain = ServedChain(0, 0, 1.0, (NodeFacts("all", "k", 0, (0,), None, reads),))
        return Provenance("centroids", "retrained", (chain,), (), None if self.fault == "blind" else frozenset())

    def weights(self) -> Any:
        return {"all": {"means": self.means}}

    def cost(self) -> Cost:
        return Cost()


class Foreign:
    classes = 2
    records = RECORDS
    probes = PROBES

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def make(self, folder: Path, variant: Variant = SAME) -> Any:
        return Centroids(folder, self.fault)

    def open(self, folder: Path) -> Any:
        raise NotImplementedError


DELETE = [Event("delete", ("person-03",))]


def verdicts(fault: str, levels: Sequence[str] = ("E0", "E1b", "E1c")) -> dict[str, Verdict]:
    report = audit_adapter(Foreign(fault), DELETE, levels=levels)
    assert report.system == "centroids" and report.claim == "retrained"
    return {level: report.of(level) for level in levels}


def test_a_clean_foreign_system_holds() -> None:
    assert set(verdicts("").values()) == {Verdict.HOLDS}


def test_what_is_served_from_before_the_deletion_is_found_by_every_level() -> None:
    assert set(verdicts("stale").values()) == {Verdict.VIOLATED}


def test_what_is_left_in_its_folder_is_found() -> None:
    found = audit_adapter(Foreign("residue"), DELETE, levels=("E0",)).findings
    assert {f.message for f in found if f.verdict is Verdict.VIOLATED} == {
        "input 'text' of deleted record 'person-03' is in rows.old",
    }


def test_reads_that_nobody_observed_are_undecided() -> None:
    report = audit_adapter(Foreign("blind"), DELETE, levels=("E0",))
    assert report.verdict is Verdict.UNDECIDED
    assert [f.message for f in report.findings if f.verdict is Verdict.UNDECIDED] == [
        "the system did not observe which records it read",
        "reads outside any node were not observed",
    ]


def test_a_clean_room_needs_a_declared_derivation() -> None:
    assert verdicts("", ("E1a",)) == {"E1a": Verdict.UNDECIDED}


def test_a_system_that_cannot_live_through_the_history_is_undecided() -> None:
    for history in ([Event("delete", ("nobody",))], [Event("retire", slots=((0, 0),))], [Event("extend", budget=2)]):
        report = audit_adapter(Foreign(), history)
        assert report.verdict is Verdict.UNDECIDED
        assert "cannot be brought through the history" in report.findings[0].message


def test_a_folder_that_the_system_does_not_use_is_undecided(tmp_path: Path) -> None:
    class Elsewhere(Foreign):
        def make(self, folder: Path, variant: Variant = SAME) -> Any:
            return Centroids(tmp_path / f"elsewhere-{folder.name}-{len(list(tmp_path.iterdir()))}")

    report = audit_adapter(Elsewhere(), DELETE, levels=("E0",))
    assert "keeps no files" in " ".join(f.message for f in report.findings)
    assert report.verdict is Verdict.UNDECIDED


def test_nothing_deleted_holds() -> None:
    assert audit_adapter(Foreign(), []).verdict is Verdict.HOLDS


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = SimpleNamespace(
        clean=Foreign, stale=lambda: Foreign("stale"), bare=lambda: SimpleNamespace(records=[])
    )
    monkeypatch.setitem(sys.modules, "foreign_adapter", module)
    assert isinstance(load_adapter("foreign_adapter:clean"), Adapter)
    assert main(["--adapter", "foreign_adapter:clean", "--refresh"]) == 0
    assert main(["--adapter", "foreign_adapter:stale", "--delete", "person-05"]) == 1
    assert main(["--adapter", "foreign_adapter:clean", "--level", "E1a"]) == 3
    assert main(["--adapter", "foreign_adapter:clean", "--delete", "nobody"]) == 2
    assert "'nobody' is not among the 8 records" in capsys.readouterr().err
    assert main(["--adapter", "foreign_adapter:bare"]) == 2
    assert "has no 'probes'" in capsys.readouterr().err


def test_what_is_deleted_in_part_is_retired_and_deleted() -> None:
    done: list[Any] = []
    system = SimpleNamespace(retire=lambda slots: done.append(slots), delete=lambda ids: done.append(ids))
    apply(system, Event("delete", ("a", "b"), ((0, 1),)), {"a"})
    assert done == [((0, 1),), ["a"]]
    with pytest.raises(CannotPlayError, match="cannot retire"):
        apply(SimpleNamespace(), Event("delete", ("b",), ((0, 1),)), {"a"})


def test_the_reference_of_a_case_follows_its_claim() -> None:
    history = (Event("delete", ("r1",), ((0, 0),)), Event("extend", budget=2), Event("refresh"))
    records = tuple(Record(f"r{i}", {"text": "x"}, 0) for i in range(3))

    def case(claim: str) -> Case:
        system: Any = SimpleNamespace(provenance=lambda: SimpleNamespace(claim=claim))
        return Case(system, Foreign(), records, history, ())

    assert case("retrained").never_ingested() == (Event("extend", budget=2),)
    assert case("non-interference").never_ingested() == history
    assert [r.id for r in case("retrained").victims] == ["r1"]
    assert [r.id for r in case("retrained").retained] == ["r0", "r2"]
