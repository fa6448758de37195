"""Runs made old in one stroke are runs like any other: the verifier reads them, and they delete."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import aged
from s3t.backbone import load
from s3t.records import Layout
from s3t.system import System
from s3t.unique import check_unique
from verify.evidence import read_evidence
from verify.report import Verdict
from verify.rows import check_rows
from verify.scan import check_scan
from verify.state import derive_state

LAYOUT = Layout(2, 2, 2)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> aged.Donor:
    return aged.make_donor(tmp_path_factory.mktemp("donor") / "run", LAYOUT, load("tiny"))


@pytest.mark.parametrize(("before", "gone"), [(0, 0), (30, 30), (90, 60)])
def test_an_aged_run_holds_and_deletes(tmp_path: Path, donor: aged.Donor, before: int, gone: int) -> None:
    path = tmp_path / "run"
    aged.ingest(path, donor.config, 120)
    assert aged.age(path, before) == gone
    system = System.open(path, load("tiny"))
    donor.lend(*system._opened())
    status = system.status()
    assert (status.requests, status.deleted, status.retained) == (before, gone, 120 - gone)
    assert (status.missing_nodes, status.surviving_nodes) == (0, 8)
    assert system.ids() == [aged.name(i) for i in range(gone, 120)]
    assert system.predict([{"text": "is it so"}]).shape == (1, 2)
    receipt = system.delete([aged.name(119), aged.name(0)])
    assert receipt.deleted == ((aged.name(119),) if gone else (aged.name(119), aged.name(0)))
    assert receipt.request == f"r{before + 1:06d}"
    system.close()
    evidence = read_evidence(path)
    state = derive_state(evidence)
    assert evidence.problems == ()
    assert {f.verdict for f in (*check_rows(evidence, state), *check_scan(evidence, state))} == {Verdict.HOLDS}


def test_a_start_is_measured(tmp_path: Path, donor: aged.Donor) -> None:
    taken = aged.ingest(tmp_path / "run", donor.config, 50)
    opened, status = aged.start(tmp_path / "run")
    assert min(taken.seconds, opened.seconds, status) > 0
    assert min(taken.grown, opened.grown) >= 0


def test_made_records_are_a_sequence_of_distinct_records(tmp_path: Path) -> None:
    made = aged.Made(30)
    check_unique(made)
    assert len(made) == 30
    assert [record.id for record in made[28:]] == [aged.name(28), aged.name(29)]
    with pytest.raises(IndexError):
        made[30]
    assert [len(times) for times in aged.disk(tmp_path, 3)] == [3, 3]
