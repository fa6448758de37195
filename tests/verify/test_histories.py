"""E4: equivalent histories end in the same bits, with crashes anywhere; the oracle; and what the check must catch."""

from __future__ import annotations

import builtins
import dataclasses
import io
import itertools
import json
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from s3t import runs
from s3t.contract import Claim, Slot, UnlearningSystem
from s3t.errors import S3TError
from s3t.records import Layout
from verify import crash, exhaustive, histories, machine
from verify.audit import audit
from verify.case import SAME, CannotPlayError, Case, Event, Variant, play
from verify.effort import Effort
from verify.evidence import read_evidence
from verify.exhaustive import Walk, full_slots, random_histories
from verify.histories import CHECK, AcceptedError, E4Plan, Player, check_histories, final_state, refuse
from verify.laboratory import RunLab, run_case
from verify.leaks import LEAKS, Leak
from verify.oracle import Expected, Oracle, Tally
from verify.report import Finding, Verdict
from verify.small import Small, SmallLab, draw
from verify.state import derive_state
from verify.trace import Extras, Step, ordered_partitions, read, refreshable, skeleton, written

LEAK = {leak.number: leak for leak in LEAKS}
CHEAP = 352
"""Seed whose first two random systems are small."""

LAYOUT = Layout(shards=2, slices=2, budget=1)
HOLDS, VIOLATED, UNDECIDED = Verdict.HOLDS, Verdict.VIOLATED, Verdict.UNDECIDED
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


# ---- histories as data ----


def test_the_ways_to_split_requests_are_counted_right() -> None:
    for items, count in (("", 1), ("a", 1), ("ab", 3), ("abc", 13), ("abcd", 75)):
        ways = list(ordered_partitions(items))
        assert len(ways) == len(set(ways)) == count
        assert all(sorted(itertools.chain(*way)) == sorted(items) for way in ways)


def test_what_is_written_is_read_back() -> None:
    for number in range(300):
        steps = draw(0, number).steps
        extras = Extras("retrained", lambda _: None, 'odd "id"; refresh', "unknown-0", kill=True)
        steps = extras.strew(steps, Random(number))
        assert read(written(steps)) == steps
    assert written(()) == "nothing" and read("nothing") == ()
    with pytest.raises(S3TError, match="'undelete' does not begin a step; known are delete"):
        read('delete ["a"]; undelete')


def test_a_restart_is_no_event() -> None:
    with pytest.raises(S3TError, match="'restart' is no event"):
        _ = Step("restart").event


def _delete(*ids: str) -> Event:
    return Event("delete", ids, ((0, 0),))


RETIRE, EXTEND, REFRESH = Event("retire", slots=((0, 1),)), Event("extend", budget=2), Event("refresh")


@pytest.mark.parametrize(
    ("history", "places"),
    [
        ((_delete("a", "b"), _delete("c")), {"a": (0,), "b": (0,), "c": (0,)}),
        ((_delete("a"), REFRESH, _delete("b")), {"a": (0,), "b": (1,)}),
        ((_delete("a"), REFRESH, _delete("b"), EXTEND, _delete("c")), {"a": (0, 1), "b": (0, 1), "c": (2,)}),
        ((_delete("a"), RETIRE, _delete("b")), {"a": (0,), "b": (1,)}),
        ((_delete("a"), RETIRE, _delete("b"), REFRESH), {"a": (0, 1), "b": (0, 1)}),
        ((_delete("a"), REFRESH, _delete("a")), {"a": (0,)}),
    ],
    ids=["one phase", "refresh", "extend", "retire", "retire before refresh", "again"],
)
def test_where_a_deletion_may_come(history: tuple[Event, ...], places: dict[str, tuple[int, ...]]) -> None:
    frame = skeleton(history)
    assert frame.places == places
    fixed = [event.kind for event in history if event.kind != "delete"]
    every = list(frame.every())
    assert len(every) == len(set(every))
    for steps in [*every, *(frame.sample(Random(i)) for i in range(20))]:
        assert [step.kind for step in steps if step.kind != "delete"] == fixed
        assert sorted(name for step in steps for name in step.ids) == sorted(places)
        assert [dataclasses.replace(step, ids=tuple(sorted(step.ids))) for step in steps] in [
            list(one) for one in every
        ]


def test_every_arrangement_of_one_phase_is_found() -> None:
    assert len(list(skeleton([_delete("a", "b"), _delete("c")]).every())) == 13
    assert len(list(skeleton([_delete("a"), REFRESH, _delete("b"), REFRESH]).every())) == 2 + 2 * 3
    many = skeleton([_delete(*map(str, range(60))), REFRESH, _delete("last")])
    assert len(set(itertools.islice(many.every(), 50))) == 50, "more than the atoms of the world, but one at a time"


@pytest.mark.parametrize(
    ("claim", "line", "free"),
    [
        ("retrained", 'delete ["a0"]; refresh', "yyy"),
        ("non-interference", 'delete ["a0"]', "yn"),
        ("non-interference", 'delete ["a0"]; delete ["a1"]', "yyn"),
        ("non-interference", 'delete ["a0"]; delete ["b1"]', "ynn"),
        ("non-interference", 'delete ["a0"]; delete ["b0"]; delete ["a1","b1"]', "yyyn"),
        ("non-interference", 'delete ["a0"]; refresh; delete ["b0"]; retire [[0,1]]', "yyyyn"),
        ("non-interference", 'delete ["b0"]; retire [[0,1]]', "yyn"),
        ("non-interference", 'refresh; delete ["?0"]; delete ["?0"]', "yynn"),
    ],
)
def test_where_a_further_refresh_changes_nothing(claim: Claim, line: str, free: str) -> None:
    slots: dict[str, Slot | None] = {"a": (0, 0), "b": (0, 1), "?": None}
    assert refreshable(read(line), claim, lambda name: slots[name[0]]) == [said == "y" for said in free]


# ---- the check, on clean systems ----


def _lab(small: Small, fault: Leak | None = None) -> SmallLab:
    return SmallLab(small) if fault is None else FaultyLab(small, fault)


@dataclasses.dataclass(frozen=True)
class FaultyLab(SmallLab):
    """Makes systems with a planted fault."""

    fault: Leak

    def make(self, folder: Path, variant: Variant = SAME) -> UnlearningSystem:
        clean: Any = super().make(folder, variant)
        return self.fault.plant(
            folder, clean.config, key=clean._key, evaluation=clean._evaluation, backbone=clean._backbone
        )

    def open(self, folder: Path) -> UnlearningSystem:
        system: Any = self.make(folder)
        system._attach(runs.open_run(folder))
        return system


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


# ---- killing a process ----


def _writes(folder: Path) -> None:
    (folder / "a").write_bytes(b"0123456789")
    (folder / "b").mkdir()
    with sqlite3.connect(folder / "c.sqlite") as db:
        db.execute("CREATE TABLE t(x)")
        db.execute("INSERT INTO t VALUES (1)")
    os.rename(folder / "b", folder / "d")


def test_a_process_dies_at_every_write(tmp_path: Path) -> None:
    ends = []
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        died = crash.killed(lambda folder=folder: _writes(folder), at)
        held = (folder / "a").read_bytes() if (folder / "a").exists() else None
        ends.append((held, sorted(path.name for path in folder.iterdir() if path.suffix != ".sqlite-journal")))
        if not died:
            break
    assert at == 8, "two in a file, mkdir, two statements, the end of the transaction, rename; then none"
    assert [held for held, _ in ends[:3]] == [b"", b"01234", b"0123456789"]
    assert ends[-1][1] == ["a", "c.sqlite", "d"] and ends[-2][1] == ["a", "b", "c.sqlite"]


def test_write_points_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in ((os, crash.CALLS), (sqlite3, ("connect",)), (io, ("open",)), (builtins, ("open",))):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    counting = crash.Kill(0)
    counting.arm()
    _writes(tmp_path)
    with sqlite3.connect(tmp_path / "c.sqlite") as db:
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]
        assert counting.points == 7
        db.executemany("INSERT INTO t VALUES (?)", [(2,), (3,)])
        db.executescript("DROP TABLE t")
        assert counting.points == 9
    db.close()
    (tmp_path / "text").write_text("text is written whole")
    assert counting.points == 10, "the end of the transaction"
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    last = crash.Kill(2)
    last.point()
    assert not ended
    last.point()
    assert ended == [crash.CRASHED]


def test_a_process_that_fails_by_itself_is_no_crash() -> None:
    def work() -> None:
        raise ValueError("no such thing")

    with pytest.raises(S3TError, match=r"at write 3 failed by itself .ValueError: no such thing"):
        crash.killed(work, 3)


# ---- the oracle ----


def _started(tmp_path: Path, fault: Leak | None = None) -> tuple[Any, Path, dict[Slot, str], Oracle]:
    small, victims = full_slots(LAYOUT)
    lab, folder = _lab(small, fault), tmp_path / "run"
    system: Any = lab.make(folder)
    system.fit(list(small.records))
    return system, folder, victims, Oracle(small, Tally())


def test_the_oracle_agrees_with_a_clean_run(tmp_path: Path) -> None:
    system, folder, victims, oracle = _started(tmp_path)
    expected = Expected(oracle.small)
    for step in (
        Step("delete", (victims[0, 1],)),
        Step("retire", slots=((1, 0),)),
        Step("refresh"),
        Step("extend", budget=2),
    ):
        system = Player(SmallLab(oracle.small), folder).step(system, step)
        expected.happen(step.event)
        assert oracle.check(system, folder, expected) == []
    system.close()
    tally = oracle.tally
    assert (tally.states, tally.nodes, tally.ulps) == (4, 3 + 1 + 4 + 8, 0)
    assert tally.trained == 3 + 1 + 4, "each node once per set of rows"
    assert tally.tensors > 5 * tally.nodes and tally.predictions == 4 * 4


def test_the_oracle_sees_a_changed_bit_on_disk_and_in_memory(tmp_path: Path) -> None:
    system, folder, _, oracle = _started(tmp_path)
    assert oracle.check(system, folder) == []
    head = system.weights()["shard-00/0-1"]["head.bias"]
    with torch.no_grad():
        head[1] = torch.nextafter(head[1], torch.tensor(9.0))
    found = oracle.check(system, folder)
    assert (found[0].node, found[0].tensor) == ("shard 0, slices 0-1", "head.bias")
    assert oracle.tally.ulps == 1
    file = next(folder.glob("nodes/*/head.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert any(finding.message.startswith("on disk: ") for finding in oracle.check(system, folder))
    file.unlink()
    assert any("on disk: the tensor is expected but absent" in f.message for f in oracle.check(system, folder))
    system.close()


def test_the_oracle_sees_a_history_that_did_not_happen(tmp_path: Path) -> None:
    system, folder, victims, oracle = _started(tmp_path)
    system.delete([victims[0, 0]])
    found = [finding.message for finding in oracle.check(system, folder, Expected(oracle.small))]
    assert found == [
        "it survives, or does not, against the history",
        "the run holds other records than the history leaves",
    ]
    system.close()
    (folder / "ledger.sqlite").unlink()
    assert oracle.check(system, folder)[0].verdict is UNDECIDED


# ---- a state machine ----


class Life(RuleBasedStateMachine):
    """A run and everything that may happen to it; after each step the oracle must agree."""

    fault: ClassVar[Leak | None] = None
    bases: ClassVar[dict[Leak | None, tuple[tempfile.TemporaryDirectory[str], Oracle]]] = {}

    @initialize()
    def begin(self) -> None:
        small, _ = full_slots(LAYOUT, each=3)
        self.lab = _lab(small, self.fault)
        if self.fault not in self.bases:
            home = tempfile.TemporaryDirectory(prefix="s3t-life-")
            system: Any = self.lab.make(Path(home.name) / "base")
            system.fit(list(small.records))
            system.close()
            self.bases[self.fault] = home, Oracle(small, Tally())
        home, self.oracle = self.bases[self.fault]
        self.player = Player(self.lab, Path(home.name) / "run")
        shutil.rmtree(self.player.folder, ignore_errors=True)
        shutil.copytree(Path(home.name) / "base", self.player.folder)
        self.expected = Expected(small)
        self.system = self.lab.open(self.player.folder)

    def happen(self, step: Step) -> None:
        self.system = self.player.step(self.system, step)
        if step.kind not in ("restart", "unknown"):
            self.expected.happen(step.event)

    def pick(self, numbers: Sequence[int], *, gone: bool = False) -> list[str]:
        everything = {record.id for record in self.oracle.small.records}
        among = sorted(everything - self.expected.left if gone else self.expected.left)
        return list(dict.fromkeys(among[number % len(among)] for number in numbers)) if among else []

    numbers = st.lists(st.integers(0, 11), min_size=1, max_size=3)
    kills = st.one_of(st.just(0), st.integers(1, 40))

    @rule(numbers=numbers, kill=kills)
    def delete(self, numbers: list[int], kill: int) -> None:
        if ids := self.pick(numbers):
            self.happen(Step("delete", tuple(ids), kill=kill))

    @rule(numbers=numbers, fresh=st.booleans())
    def delete_again(self, numbers: list[int], fresh: bool) -> None:
        gone = self.pick(numbers, gone=True)
        if gone:
            self.happen(Step("delete", (*gone, *(self.pick(numbers[:1]) if fresh else ()), gone[0])))

    @rule(numbers=numbers)
    def unknown(self, numbers: list[int]) -> None:
        self.happen(Step("unknown", (*self.pick(numbers), "never seen")))

    @rule(
        slots=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=2, unique=True), kill=kills
    )
    def retire(self, slots: list[Slot], kill: int) -> None:
        self.happen(Step("retire", slots=tuple(slots), kill=kill))

    @rule(kill=kills)
    def refresh(self, kill: int) -> None:
        self.happen(Step("refresh", kill=kill))

    @precondition(lambda self: self.expected.budget == 1)
    @rule(kill=kills)
    def extend(self, kill: int) -> None:
        self.happen(Step("extend", budget=2, kill=kill))

    @rule()
    def restart(self) -> None:
        self.happen(Step("restart"))

    @invariant()
    def the_oracle_agrees(self) -> None:
        found = self.oracle.check(self.system, self.player.folder, self.expected)
        assert not found, found[0].message

    def teardown(self) -> None:
        if hasattr(self, "system"):
            self.system.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def _bases() -> Iterator[None]:
    yield
    for home, _ in Life.bases.values():
        home.cleanup()
    Life.bases.clear()


def _live(examples: int, steps: int, fault: Leak | None = None) -> None:
    machine = type("Life", (Life,), {"fault": fault})
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_a_life_of_any_steps_is_exact() -> None:
    _live(6, 8)
    tally = Life.bases[None][1].tally
    assert tally.states > 20 and tally.nodes > 40 and tally.ulps == 0


@pytest.mark.slow
def test_many_lives_are_exact() -> None:
    _live(60, 15)


@pytest.mark.parametrize("number", [17, *(pytest.param(n, marks=pytest.mark.slow) for n in (19, 30))])
def test_a_life_with_a_fault_is_found_out(number: int) -> None:
    with pytest.raises(AssertionError, match=r"derived are|elements differ|the tensor is|read set|not its own"):
        _live(60, 8, LEAK[number])


# ---- all histories ----


def _walk(layout: Layout, tmp_path: Path) -> dict[str, Any]:
    seen: list[str] = []
    found = Walk(*full_slots(layout, each=2), tmp_path, lambda done, total, what: seen.append(what)).run()
    slots = layout.shards * layout.slices
    assert found["different"] == []
    assert (found["slots"], found["orders"], found["sets"]) == (slots, math.factorial(slots), 2**slots)
    assert found["refreshed_sets"] == found["sets"]
    beginnings = sum(math.perm(slots, length) for length in range(slots + 1))
    assert found["states"] == beginnings + found["sets"]
    assert found["ulps"] == 0 and found["nodes"] > found["states"]
    return found


def test_all_histories_of_two_slots(tmp_path: Path) -> None:
    assert _walk(Layout(1, 2, 2), tmp_path)["trained"] == 2 * 2 + 2 * 4, "each node once per set of rows"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(1, 3, 3), Layout(2, 2, 2)], ids=["three slots", "four slots"])
def test_all_histories_of_more_slots(layout: Layout, tmp_path: Path) -> None:
    _walk(layout, tmp_path)


def test_orders_that_end_differently_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "_bits", lambda system, folder, small: folder.name)
    found = Walk(*full_slots(Layout(1, 2, 1), each=1), tmp_path).run()
    assert found["different"] == ["order [(0, 1), (0, 0)] ends in other bits than another order of the same slots"]


def test_random_histories_that_differ_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "check", lambda *_: [Finding(CHECK, VIOLATED, "no", "shard 0", "head.bias")])
    monkeypatch.setattr(exhaustive, "draw_steps", lambda *_: (Step("restart"), Step("unknown", ("never seen",))))
    found = random_histories(1, CHEAP, tmp_path)
    assert found["steps"] == {"delete": 1, "restart": 1, "unknown": 1} and len(found["different"]) == 3
    assert found["different"][0].startswith("system 0, delete [") and found["different"][0].endswith(
        "shard 0 head.bias no"
    )


def test_a_machine_without_git_or_a_known_processor_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine.subprocess, "run", missing)
    monkeypatch.setattr(Path, "read_text", missing)
    described = machine.describe_machine()
    assert (described["commit"], described["dirty"]) == (None, None)
    assert isinstance(described["processor"], str) and described["cores"] >= 1


def test_random_histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "PER_SYSTEM", 1)
    found = random_histories(2, CHEAP, tmp_path)
    assert found["different"] == [] and found["histories"] == 2 == sum(found["methods"].values())
    assert found["states"] >= 2 and found["nodes"] > 2 and found["ulps"] == 0
    assert random_histories(2, CHEAP, tmp_path) == found


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert histories.main([]) == 2
    assert "nothing to do" in capsys.readouterr().err
    monkeypatch.setattr(exhaustive, "LAYOUT", Layout(1, 1, 1))
    assert (
        histories.main(["--exhaustive", "--random", "1", "--seed", str(CHEAP), "--out", str(tmp_path / "out.json")])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out.json").read_text())
    assert printed["exhaustive"]["orders"] == 1 and printed["random"]["histories"] == 1
    assert {"torch", "commit", "cores"} <= printed["machine"].keys()
    monkeypatch.setattr(Oracle, "check", lambda *_: [Finding(CHECK, VIOLATED, "no", "shard 0", "head.bias")])
    assert histories.main(["--exhaustive"]) == 1
    assert json.loads(capsys.readouterr().out)["exhaustive"]["different"][0] == "order []: shard 0 head.bias no"
    monkeypatch.setattr(SmallLab, "open", ClosedLab.open)
    assert histories.main(["--random", "1"]) == 2
    assert "error: this system lives in memory alone" in capsys.readouterr().err


def test_the_end_state_covers_what_is_compared(case_of: Callable[..., Case]) -> None:
    case = case_of('delete ["0"]')
    first = final_state(case.system, case.probes)
    assert final_state(case.system, case.probes) == first != final_state(case.system, case.probes[:1])
    case.system.refresh()
    assert final_state(case.system, case.probes) != first


def test_what_cannot_be_played_says_what_is_missing() -> None:
    with pytest.raises(CannotPlayError, match="cannot extend"):
        Player(SmallLab(full_slots(LAYOUT)[0]), Path()).step(object(), Step("extend", budget=2))  # type: ignore[arg-type]
