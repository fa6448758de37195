"""The oracle of surviving nodes, a state machine of steps that it judges, and all histories of small systems."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
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

from s3t.contract import Slot
from s3t.errors import S3TError
from s3t.records import Layout
from verify import exhaustive, histories
from verify.exhaustive import Walk, full_slots, random_histories
from verify.histories import CHECK, Player
from verify.leaks import LEAKS, Leak
from verify.leaks.faulty import FaultyLab
from verify.oracle import Expected, Oracle, Tally
from verify.report import Finding, Verdict
from verify.small import Small, SmallLab
from verify.trace import Step

LEAK = {leak.number: leak for leak in LEAKS}
CHEAP = 352
"""Seed whose first two random systems are small."""

LAYOUT = Layout(shards=2, slices=2, budget=1)
HOLDS, VIOLATED, UNDECIDED = Verdict.HOLDS, Verdict.VIOLATED, Verdict.UNDECIDED
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def _lab(small: Small, fault: Leak | None = None) -> SmallLab:
    return SmallLab(small) if fault is None else FaultyLab(small, fault)


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


def test_random_histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "PER_SYSTEM", 1)
    found = random_histories(2, CHEAP, tmp_path)
    assert found["different"] == [] and found["histories"] == 2 == sum(found["methods"].values())
    assert found["states"] >= 2 and found["nodes"] > 2 and found["ulps"] == 0
    assert random_histories(2, CHEAP, tmp_path) == found


def _gone(*_: Any) -> None:
    raise S3TError("this system lives in memory alone")


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
    monkeypatch.setattr(SmallLab, "open", _gone)
    assert histories.main(["--random", "1"]) == 2
    assert "error: this system lives in memory alone" in capsys.readouterr().err
