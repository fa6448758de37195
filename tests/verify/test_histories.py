"""E4: equivalent histories end in the same bits, with crashes anywhere; the oracle; and what the check must catch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from s3t.contract import Slot, UnlearningSystem
from s3t.errors import S3TError
from s3t.records import Layout
from verify import crash, histories, machine
from verify.audit import audit
from verify.case import CannotPlayError, Case, play
from verify.effort import Effort
from verify.evidence import read_evidence
from verify.exhaustive import full_slots
from verify.histories import CHECK, AcceptedError, E4Plan, Player, check_histories, final_state, refuse
from verify.laboratory import RunLab, run_case
from verify.leaks import LEAKS
from verify.leaks.faulty import FaultyLab
from verify.report import Verdict
from verify.small import Small, SmallLab, draw
from verify.state import derive_state
from verify.trace import Step, read

LEAK = {leak.number: leak for leak in LEAKS}

LAYOUT = Layout(shards=2, slices=2, budget=1)
HOLDS, VIOLATED, UNDECIDED = Verdict.HOLDS, Verdict.VIOLATED, Verdict.UNDECIDED
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


# ---- the check, on clean systems ----


@pytest.fixture
def case_of(tmp_path: Path) -> Iterator[Callable[..., Case]]:
    """Make the case of a system after a history that is given in a line; victims are named by slot: 0, 1, ..."""
    opened: list[Any] = []

    def make(line: str, method: str = "s3t", lab: Callable[[Small], Any] = SmallLab, layout: Layout = LAYOUT) -> Case:
        small, victims = full_slots(layout)
        small = dataclasses.replace(small, method=method)
        names = list(victims.values())
        events = [
            dataclasses.replace(
                step.event, ids=(ids := tuple(names[int(i)] for i in step.ids)), slots=step.slots or _slots(small, ids)
            )
            for step in read(line)
        ]
        room = lab(small)
        opened.append(play(room.make(tmp_path / "audited"), small.records, events))
        return Case(opened[-1], room, small.records, tuple(events), small.probes)

    yield make
    for system in opened:
        system.close()


def _slots(small: Small, ids: Sequence[str]) -> tuple[Slot, ...]:
    return tuple(sorted({small.slot(name) for name in ids}))


STORIES = [
    ("s3t", 'delete ["0","1"]; delete ["2"]', 6),
    ("s3t", 'delete ["0"]; refresh; delete ["1","3"]; extend 2; retire [[1,1]]', 5),
    pytest.param("sequential", 'delete ["0","2"]; refresh', 5, marks=pytest.mark.slow),
    ("sisa-full", 'delete ["0"]; delete ["3","1"]', 4),
    ("retrain-lora", 'delete ["0"]', 5),
]


@pytest.mark.parametrize(("method", "line", "count"), STORIES)
def test_equivalent_histories_of_a_clean_system_end_alike(
    case_of: Callable[..., Case], method: str, line: str, count: int
) -> None:
    case = case_of(line, method, layout=Layout(1, 1, 1) if method.startswith("retrain") else LAYOUT)
    seen: list[str] = []
    found = check_histories(case, E4Plan(count), lambda done, total, what: seen.append(what))
    assert [finding.verdict for finding in found] == [HOLDS], found[0].message
    details = found[0].details
    assert details["histories"] == count == len({what for what in seen if "delete" in what})
    assert details["states"] == 1
    assert details["restarts"] > 0 and details["crashes"] > 0 and details["no_crashes"] == ""
    assert found[0].check == CHECK and f"{count} equivalent histories" in found[0].message


@pytest.mark.slow
@pytest.mark.replayed
@pytest.mark.parametrize("number", range(40))
def test_equivalent_histories_of_drawn_systems_end_alike(number: int, tmp_path: Path) -> None:
    small = draw(4, number)
    lab, folder = SmallLab(small), tmp_path / "run"
    system: Any = lab.make(folder)
    system.fit(list(small.records))
    for step in small.steps:
        system = Player(lab, folder).step(system, step)
    evidence = read_evidence(folder)
    case = run_case(system, evidence, derive_state(evidence), RunLab(evidence), small.records, small.probes)
    assert isinstance(case, Case)
    found = check_histories(case, E4Plan(12))
    assert [finding.verdict for finding in found] == [HOLDS], found[0].message
    system.close()


def test_an_audit_at_level_e4(case_of: Callable[..., Case]) -> None:
    case = case_of('delete ["0"]; delete ["2"]; refresh; delete ["1"]')
    folder = case.system.path  # type: ignore[attr-defined]
    given = {"levels": ("E4",), "records": case.records, "effort": Effort(histories=E4Plan(3))}
    report = audit(case.system, folder, lab=RunLab(read_evidence(folder)), **given)  # type: ignore[arg-type]
    assert [(f.check, f.verdict, f.details["histories"]) for f in report.findings] == [(CHECK, HOLDS, 3)]
    assert report.of("E4") is HOLDS


def test_the_sample_is_the_same_every_time(case_of: Callable[..., Case]) -> None:
    case = case_of('delete ["0","1"]; delete ["2"]; refresh')
    first = list(histories.histories(case, 20, kill=True))
    assert list(histories.histories(case, 20, kill=True)) == first
    assert len(set(first)) == 20
    assert any(step.kill for steps in first for step in steps)
    assert not any(step.kill for steps in histories.histories(case, 20, kill=False) for step in steps)


def test_an_untouched_system_has_one_end(case_of: Callable[..., Case]) -> None:
    found = check_histories(case_of("nothing"), E4Plan(3))
    assert found[0].verdict is HOLDS and found[0].details["states"] == 1


def test_the_plan_must_play_something() -> None:
    with pytest.raises(S3TError, match="histories=0 plays none"):
        E4Plan(0)


# ---- what it must catch, and what it cannot decide ----


@pytest.mark.parametrize(
    "number",
    [pytest.param(30, id="resurrection"), pytest.param(31, id="resume repeats an epoch", marks=pytest.mark.slow)],
)
def test_a_system_with_a_memory_is_caught(case_of: Callable[..., Case], number: int) -> None:
    line = 'delete ["1"]; delete ["2"]; refresh'
    case = case_of(line, lab=lambda small: FaultyLab(small, LEAK[number]), layout=Layout(2, 3, 1))
    found = check_histories(case, E4Plan(8))
    assert found and {finding.verdict for finding in found} == {VIOLATED}
    assert found[0].details["states"] > 1
    assert found[0].tensor and found[0].message.startswith("after ")
    line = found[0].message.removeprefix("after ").split(": ")[0]
    assert read(line), "the message holds the history that repeats it"


class Accepting(SmallLab):
    """Makes systems that take any request."""

    def open(self, folder: Path) -> UnlearningSystem:
        system: Any = super().open(folder)
        real = system.delete
        system.delete = lambda ids: real([name for name in ids if "unknown" not in name])
        return system


def test_a_request_for_an_unknown_id_must_fail(case_of: Callable[..., Case]) -> None:
    case = case_of('delete ["0"]; delete ["1"]', lab=Accepting)
    found = check_histories(case, E4Plan(20, crashes=False))
    assert {finding.verdict for finding in found} == {VIOLATED}
    assert "was accepted, though no record has the id 'unknown-0'" in found[0].message
    with pytest.raises(AcceptedError):
        refuse(case.lab.open(case.system.path), ["unknown-0"])  # type: ignore[attr-defined]


class Bare:
    """A system with the contract and nothing more."""

    def __init__(self, real: Any) -> None:
        for name in ("fit", "delete", "predict", "refresh", "provenance", "weights", "cost", "close"):
            setattr(self, name, getattr(real, name))


class BareLab(SmallLab):
    """Makes systems without capabilities, the first of them with all."""

    def open(self, folder: Path) -> UnlearningSystem:
        return Bare(super().open(folder))  # type: ignore[return-value]


def test_a_system_that_cannot_play_the_history_is_undecided(case_of: Callable[..., Case]) -> None:
    found = check_histories(case_of('delete ["0"]; retire [[0,1]]', lab=BareLab), E4Plan(4))
    assert [finding.verdict for finding in found] == [UNDECIDED]
    assert "the system cannot retire (no such method)" in found[0].message


class ClosedLab(SmallLab):
    """Makes systems that are gone once they are closed."""

    def open(self, folder: Path) -> UnlearningSystem:
        raise S3TError("this system lives in memory alone")


def test_a_system_that_cannot_be_opened_again_is_undecided(case_of: Callable[..., Case]) -> None:
    found = check_histories(case_of('delete ["0"]', lab=ClosedLab), E4Plan(4))
    assert [finding.verdict for finding in found] == [UNDECIDED]
    assert "closed and opened again: this system lives in memory alone" in found[0].message


def test_a_system_without_files_is_undecided(case_of: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of('delete ["0"]')
    elsewhere = case.lab.make
    monkeypatch.setattr(SmallLab, "make", lambda self, folder: elsewhere(folder.with_name("elsewhere")))
    found = check_histories(case, E4Plan(4))
    assert [finding.verdict for finding in found] == [UNDECIDED]
    assert "it keeps no files in the folder that it was given" in found[0].message


def test_an_unfinished_refresh_is_undecided(tmp_path: Path) -> None:
    small, victims = full_slots(LAYOUT)
    lab, folder = SmallLab(small), tmp_path / "run"
    system: Any = lab.make(folder)
    system.fit(list(small.records))
    system.delete(list(victims.values()))
    system.close()
    assert crash.killed(lambda: lab.open(folder).refresh(), 30), "the refresh is cut short"
    system = lab.open(folder)
    evidence = read_evidence(folder)
    case = run_case(system, evidence, derive_state(evidence), RunLab(evidence), small.records, small.probes)
    assert isinstance(case, Case)
    found = check_histories(case, E4Plan(4))
    assert [finding.verdict for finding in found] == [UNDECIDED]
    assert "there is an unfinished refresh in its history" in found[0].message
    system.close()


def test_without_crashes_the_finding_says_so(case_of: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of('delete ["0"]')
    assert "crashes not tried: not asked for" in check_histories(case, E4Plan(2, crashes=False))[0].message
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "torch runs on 2 threads" in crash.why_not()
    monkeypatch.delattr(os, "fork")
    assert crash.why_not() == "this platform has no fork"


def test_a_machine_without_git_or_a_known_processor_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine.subprocess, "run", missing)
    monkeypatch.setattr(Path, "read_text", missing)
    described = machine.describe_machine()
    assert (described["commit"], described["dirty"]) == (None, None)
    assert isinstance(described["processor"], str) and described["cores"] >= 1


def test_the_end_state_covers_what_is_compared(case_of: Callable[..., Case]) -> None:
    case = case_of('delete ["0"]')
    first = final_state(case.system, case.probes)
    assert final_state(case.system, case.probes) == first != final_state(case.system, case.probes[:1])
    case.system.refresh()
    assert final_state(case.system, case.probes) != first


def test_what_cannot_be_played_says_what_is_missing() -> None:
    with pytest.raises(CannotPlayError, match="cannot extend"):
        Player(SmallLab(full_slots(LAYOUT)[0]), Path()).step(object(), Step("extend", budget=2))  # type: ignore[arg-type]
