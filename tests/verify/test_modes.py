"""The fast engine under audit: every level that decides bit for bit holds in both precisions, and one changed bit does not.

What a build keeps of rows on disk is gone whenever no build runs, and an engine is part of every key and of the run's facts.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from s3t import S3T, requests, runs
from s3t.building import Builder
from s3t.digests import tensors_digest
from s3t.engine import activations
from s3t.engine.mode import MODES, Mode
from s3t.errors import BusyError, RunError
from s3t.facts import Facts
from s3t.records import Layout, Recipe, Record, sha256
from s3t.resources import Resources
from s3t.system import System
from verify.audit import audit
from verify.effort import Effort
from verify.evidence import entry_digest, read_evidence
from verify.histories import E4Plan
from verify.laboratory import RunLab
from verify.report import Report, Verdict
from verify.scan import check_scan
from verify.state import derive_state

KEY = bytes(range(32))
LAYOUT = Layout(2, 2, 2)
RECIPE = Recipe(rank=2, epochs=1.0, batch_size=6, window=2, dropout=0.1)
WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath")
RECORDS = [
    Record(f"row-{i:03d}", {"text": " ".join(WORDS[(i * j + j) % 8] for j in range(1, 4 + i % 9))}, i % 3)
    for i in range(40)
]
PROBES = [Record(f"probe-{i}", {"text": f"{WORDS[i]} {WORDS[i + 1]}"}, i % 3) for i in range(4)]
FAST = MODES[1:]
BOTH = pytest.mark.parametrize("mode", FAST, ids=lambda mode: mode.precision)


def make(folder: Path, mode: Mode, resources: Resources | None = None) -> S3T:
    return S3T(
        folder,
        LAYOUT,
        classes=("a", "b", "c"),
        model="tiny-3",
        recipe=RECIPE,
        key=KEY,
        evaluation=((), PROBES),
        engine=mode.engine,
        precision=mode.precision,
        resources=resources,
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[Mode, Path]:
    """A run in every mode, on the same records with the same seed; tests work on copies."""
    made = {}
    for mode in MODES:
        made[mode] = tmp_path_factory.mktemp(mode.precision) / "run"
        system = make(made[mode], mode)
        system.fit(RECORDS)
        system.close()
    return made


@pytest.fixture
def opened(fitted: dict[Mode, Path], tmp_path: Path) -> Callable[[Mode], System]:
    """Open a copy of the run in a mode."""

    def copy(mode: Mode) -> System:
        shutil.copytree(fitted[mode], tmp_path / "run")
        return System.open(tmp_path / "run")

    return copy


def judged(system: System, *levels: str, **how: Any) -> Report:
    lab = RunLab(read_evidence(system.path))
    given: dict[str, Any] = {"isolate": False, "lab": lab, "records": RECORDS} | how
    return audit(system, system.path, levels=levels, **given)


def aged(system: System) -> System:
    """Delete, refresh, delete."""
    system.delete([RECORDS[3].id, RECORDS[11].id])
    system.refresh()
    system.delete([RECORDS[20].id])
    return system


@BOTH
def test_every_level_that_decides_bit_for_bit_holds(opened: Callable[[Mode], System], mode: Mode) -> None:
    system = opened(mode)
    assert system.config.kernel == mode.kernel
    levels = ("E0", "E1a", "E1b", "E1c", "E4")
    report = judged(aged(system), *levels, scope="surviving", effort=Effort(histories=E4Plan(histories=4)))
    assert report.verdict is Verdict.HOLDS, report.dumps()
    assert {finding.check.split()[0] for finding in report.findings} == set(levels)


def test_a_fresh_process_retrains_the_same_bits(opened: Callable[[Mode], System]) -> None:
    report = judged(aged(opened(FAST[1])), "E1a", isolate=True)
    assert report.verdict is Verdict.HOLDS, report.dumps()


@BOTH
@pytest.mark.parametrize("part", ["adapter", "head"])
def test_a_flipped_bit_is_named(opened: Callable[[Mode], System], mode: Mode, part: str) -> None:
    system = aged(opened(mode))
    node = system.provenance().chains[0].nodes[-1]
    weights = system.weights()[node.name]
    name = next(name for name in sorted(weights) if name.startswith(part) and weights[name].any())
    weights[name].data.view(torch.int32).flatten()[1] ^= 1
    report = judged(system, "E1a", "E1b")
    first = report.first(Verdict.VIOLATED)
    assert first is not None and (first.tensor, first.details["max_ulps"]) == (name, 1), report.dumps()
    assert {f.check.split()[0] for f in report.findings if f.verdict is Verdict.VIOLATED} == {"E1a", "E1b"}


def test_a_flipped_bit_in_a_file_is_found(opened: Callable[[Mode], System]) -> None:
    system = opened(FAST[0])
    path = system.path / "nodes" / system.provenance().chains[0].nodes[-1].key / "head.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    report = judged(system, "E0")
    assert report.verdict is Verdict.VIOLATED
    assert f"nodes/{path.parent.name}/head.safetensors is not the file that the ledger recorded" in report.dumps()


@BOTH
def test_the_oracle_does_not_follow_the_fast_engine_and_says_so(opened: Callable[[Mode], System], mode: Mode) -> None:
    report = judged(opened(mode), "E1a", kernel="oracle")
    assert report.verdict is Verdict.UNDECIDED, report.dumps()
    assert f"it was trained with kernel '{mode.kernel}', here is '2'" in report.dumps()


def test_the_mode_is_part_of_every_key_and_of_the_environment(fitted: dict[Mode, Path]) -> None:
    states = {mode: derive_state(read_evidence(folder)) for mode, folder in fitted.items()}
    keys = [{node.key for node in state.survivors.values()} for state in states.values()]
    assert [len(found) for found in keys] == [len(states[MODES[0]].survivors)] * 3
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    for mode, state in states.items():
        said = {(node.environment["engine"], node.environment["dtype"]) for node in state.survivors.values()}
        assert said == {(mode.engine, mode.precision)}
    assert {json.loads((folder / "run.json").read_bytes())["kernel"] for folder in fitted.values()} == {
        mode.kernel for mode in MODES
    }


def test_a_run_whose_kernel_is_altered_is_refused(opened: Callable[[Mode], System]) -> None:
    system = opened(FAST[1])
    assert judged(system, "E0").verdict is Verdict.HOLDS
    altered(system.path, FAST[0])
    report = judged(system, "E0", "E1a")
    assert report.verdict is Verdict.UNDECIDED
    assert "run.json is not the one that the ledger was created for" in report.dumps()
    with pytest.raises(RunError, match="not the configuration that the ledger was opened with"):
        System.open(system.path)


@pytest.mark.parametrize("mode", [MODES[0], FAST[0]], ids=lambda mode: mode.kernel)
def test_with_the_ledger_altered_too_every_key_is_wrong(opened: Callable[[Mode], System], mode: Mode) -> None:
    system = opened(FAST[1])
    chained(system.path, altered(system.path, mode))
    report = judged(system, "E0", "E1a", lab=None)
    assert report.verdict is Verdict.VIOLATED
    caught = [finding for finding in report.findings if finding.verdict is Verdict.VIOLATED]
    assert {finding.check for finding in caught} == {"E0 lineage"} and "key" in report.dumps()
    refused = [finding for finding in report.findings if finding.check == "E1a clean room"]
    assert {finding.verdict for finding in refused} == {Verdict.UNDECIDED}, "its environment is not that of the kernel"


def altered(folder: Path, mode: Mode) -> str:
    """Write another kernel into run.json and return the file's digest."""
    raw = json.loads((folder / "run.json").read_bytes())
    (folder / "run.json").write_bytes(json.dumps(raw | {"kernel": mode.kernel}).encode())
    return sha256((folder / "run.json").read_bytes())


def chained(folder: Path, digest: str) -> None:
    """Enter another digest of run.json in the ledger's first entry, and mend the chain behind it."""
    ledger = sqlite3.connect(folder / "ledger.sqlite")
    for (trigger,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        ledger.execute(f"DROP TRIGGER {trigger}")
    previous = ""
    for seq, kind, body in ledger.execute("SELECT seq, kind, body FROM entries ORDER BY seq").fetchall():
        text = body.replace(json.loads(body)["run"], digest) if kind == "create" else body
        now = entry_digest(seq, kind, text, previous)
        ledger.execute("UPDATE entries SET body=?, previous=?, digest=? WHERE seq=?", (text, previous, now, seq))
        previous = now
    ledger.commit()
    ledger.close()


def folder_of(system: System) -> Path:
    return system.path / runs.ACTIVATIONS


def test_what_is_spilled_is_gone_after_every_build_and_moves_no_bit(
    fitted: dict[Mode, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spilled: list[int] = []
    close = activations.Activations.close

    def counting(self: activations.Activations) -> None:
        spilled.append(self.spilled)
        close(self)

    monkeypatch.setattr(activations.Activations, "close", counting)
    system = make(tmp_path / "run", FAST[0], Resources(cache_gb=0))
    system.fit(RECORDS)
    assert spilled[-1] > 0 and not folder_of(system).exists()
    other = System.open(fitted[FAST[0]])
    assert {n: tensors_digest(t) for n, t in system.weights().items()} == {
        n: tensors_digest(t) for n, t in other.weights().items()
    }
    other.close()
    system.delete([RECORDS[0].id])
    assert not folder_of(system).exists()
    system.refresh()
    assert len(spilled) == 2 and spilled[-1] > 0 and not folder_of(system).exists()
    assert judged(system, "E0").verdict is Verdict.HOLDS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", ["open", "delete", "refresh"])
def test_what_a_crash_leaves_is_reported_and_goes_with_the_next_step(
    opened: Callable[[Mode], System], step: str
) -> None:
    system = opened(FAST[0])
    system.delete([RECORDS[0].id])
    system.close()
    child = os.fork()
    if child == 0:
        Builder.finish = lambda *given, **how: os._exit(77)  # type: ignore[method-assign]
        System.open(system.path, resources=Resources(cache_gb=0)).refresh()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
    place = min(folder_of(system).iterdir())
    assert not any(path.is_file() for path in folder_of(system).rglob("*"))  # spilled files have no name
    (place / "000").write_bytes(bytes(64))  # as if it had died between the making of a file and its unlinking
    evidence = read_evidence(system.path)
    named = [f.details.get("path") for f in check_scan(evidence, derive_state(evidence))]
    assert runs.ACTIVATIONS in named
    if step == "open":
        system = System.open(system.path)
    else:
        run = runs.open_run(system.path)
        if step == "delete":
            requests.delete(run, [RECORDS[1].id])
            requests.erase(run, set())
        run.close()
        if step == "refresh":
            system = System.open(system.path)
            system.refresh()
    assert not folder_of(system).exists()


def test_a_build_under_way_keeps_what_it_spilled(opened: Callable[[Mode], System]) -> None:
    system = opened(FAST[0])
    run = system._opened()[0]
    folder_of(system).mkdir()
    with run.building():
        requests.recover(run, Facts(run.ledger, run.config.plan))
        assert folder_of(system).exists()
        with pytest.raises(BusyError):
            system.refresh()
    requests.recover(run, Facts(run.ledger, run.config.plan))
    assert not folder_of(system).exists()


def test_status_lists_every_place_where_rows_may_lie(opened: Callable[[Mode], System]) -> None:
    system = opened(FAST[0])
    assert f"{runs.ACTIVATIONS}/" in system.status().stores
