"""The verifier rejects every planted fault with every check that must, and raises no alarm on the clean system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from s3t.building import Builder
from s3t.engine.mode import FOR_IMAGES, MODES, Mode
from s3t.plan import Stage
from s3t.training import Trained
from verify.leaks import CHECKS, CLEAN, LEAKS, NOT_PLANTED, Bench, Leak
from verify.leaks.bench import verdicts
from verify.leaks.leak import CLEANROOM, LOUD, Step, planted
from verify.leaks.matrix import LEVELS, reduced
from verify.leaks.settings import find_setting, in_mode
from verify.report import Verdict

FAST = {1, 5, 9, 17, 19, 24, 25, 28, 34, 35, 38, 39, 43}
IN_FAST_ENGINE = {8, 14, 16, 28, 42, 43, 44, 45}
"""Faults of the fast tier, without the loud counterfactuals: at least one for every channel; and those that have a form
of their own in the fast engine."""

FLOAT32 = MODES[1]
CATALOGUE = range(1, 54)
PLANTED = [leak for leak in LEAKS if "reference" not in leak.absent]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One bench for all, so that clean fits are shared."""
    return Bench(tmp_path_factory.mktemp("leaks"))


def named(leaks: list[Leak]) -> list[object]:
    return [pytest.param(leak, id=f"{leak.number:02d} {leak.name}") for leak in leaks]


@pytest.mark.parametrize("leak", named([leak for leak in LEAKS if leak.number in FAST]))
def test_the_fault_is_caught(bench: Bench, leak: Leak) -> None:
    due = set(leak.caught_by) - {LOUD}
    report = bench.audit(leak, [level for level in leak.levels if level != "E1c"])
    assert report.verdict is Verdict.VIOLATED, report.dumps()
    said = verdicts(report)
    assert {check: said.get(check) for check in due} == dict.fromkeys(due, Verdict.VIOLATED), report.dumps()


@pytest.fixture(scope="module")
def fast_bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same in the fast engine."""
    return Bench(tmp_path_factory.mktemp("fast"), in_mode(FLOAT32)[0])


@pytest.mark.parametrize("leak", named([leak for leak in LEAKS if leak.number in IN_FAST_ENGINE]))
def test_the_fault_is_caught_in_the_fast_engine(fast_bench: Bench, leak: Leak) -> None:
    due = set(leak.caught_by) - {LOUD}
    said = verdicts(fast_bench.audit(leak, [level for level in leak.levels if level != "E1c"]))
    assert {check: said.get(check) for check in due} == dict.fromkeys(due, Verdict.VIOLATED)


@pytest.mark.parametrize("mode", [*MODES[1:], *FOR_IMAGES], ids=lambda mode: mode.kernel)
def test_the_clean_system_raises_no_alarm_in_the_fast_engine(tmp_path: Path, mode: Mode) -> None:
    bench = Bench(tmp_path, in_mode(mode)[0], 2)
    assert bench.config.kernel == mode.kernel
    report = bench.audit(replace(CLEAN, story=STORIES[1], scope="surviving"), ("E0", "E1a", "E1b"))
    assert verdicts(report) == {check: Verdict.HOLDS for check in CHECKS if check != LOUD}, report.dumps()


PLACES = {leak: place for place, leaks in reduced(LEAKS).items() for leak in leaks}


@pytest.mark.slow
@pytest.mark.replayed
@pytest.mark.parametrize("leak", named(PLANTED))
def test_the_fault_is_caught_at_all_levels(benches: dict[str, Bench], leak: Leak) -> None:
    report = benches[PLACES[leak].setting].audit(leak, LEVELS)
    said = verdicts(report)
    missed = {check: said.get(check) for check in leak.caught_by if said.get(check) is not Verdict.VIOLATED}
    assert not missed, report.dumps()
    caught = {check for check, verdict in said.items() if verdict is Verdict.VIOLATED}
    assert caught <= {*leak.caught_by, *leak.sometimes}, "a catch that is not understood"


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    return {
        place.setting: Bench(tmp_path_factory.mktemp(place.setting), find_setting(place.setting), place.victim)
        for place in reduced(LEAKS)
    }


STORIES: list[tuple[Step, ...]] = [
    ("delete", "refresh", "delete another"),
    ("delete beside", "refresh", "delete"),
]


@pytest.mark.parametrize("story", STORIES, ids=", ".join)
def test_the_clean_system_raises_no_alarm(bench: Bench, story: tuple[Step, ...]) -> None:
    report = bench.audit(replace(CLEAN, story=story, scope="surviving"), ("E0", "E1a", "E1b"))
    assert report.verdict is Verdict.HOLDS, report.dumps()
    assert verdicts(report) == {check: Verdict.HOLDS for check in CHECKS if check != LOUD}


@pytest.mark.slow
@pytest.mark.parametrize(
    "story", [("delete",), ("delete", "refresh"), ("delete", "delete another"), *STORIES], ids=", ".join
)
def test_the_clean_system_raises_no_alarm_in_any_setting(benches: dict[str, Bench], story: tuple[Step, ...]) -> None:
    for name, bench in benches.items():
        report = bench.audit(replace(CLEAN, story=story, scope="surviving"), LEVELS)
        assert verdicts(report) == dict.fromkeys(CHECKS, Verdict.HOLDS), f"{name}: {report.dumps()}"


def test_a_fault_of_ones_own_is_a_dozen_lines(tmp_path: Path) -> None:
    class Rounded(Builder):
        """Adapters are stored in half precision to save disk; what was trained is another thing."""

        def files(self, stage: Stage, trained: Trained, reads: list[str]) -> dict[str, bytes]:
            half = {name: tensor.half().float() for name, tensor in trained.adapter.items()}
            return super().files(stage, replace(trained, adapter=half), reads)

    leak = Leak(
        53, "rounded on disk", "numerics", planted(Rounded), (CLEANROOM,), blind="E1b: the reference rounds as well"
    )
    said = verdicts(Bench(tmp_path).audit(leak, ("E0", "E1a", "E1b")))
    assert [check for check, verdict in said.items() if verdict is Verdict.VIOLATED] == [CLEANROOM]


def test_the_catalogue_is_accounted_for() -> None:
    numbers = [leak.number for leak in LEAKS]
    assert len(numbers) == len(set(numbers))
    assert sorted([*numbers, *NOT_PLANTED]) == list(CATALOGUE)


def test_every_fault_says_why_and_who_catches_it() -> None:
    for leak in LEAKS:
        assert leak.why.endswith("."), leak.name
        assert leak.caught_by and set(leak.caught_by) <= set(CHECKS), leak.name
        assert len(leak.caught_by) > 1 or leak.blind, f"{leak.name}: one check alone, and no reason"
        assert not set(leak.sometimes) & set(leak.caught_by), leak.name
        assert set(leak.sometimes) <= set(CHECKS) and all(leak.sometimes.values()), leak.name
        assert "fast" not in leak.absent and all(leak.absent.values()), f"{leak.name}: some engine must have it"
        assert all(set(checks) < set(leak.caught_by) for checks in leak.hidden.values()), leak.name
        assert leak.needs is None or (leak.needs.__doc__ or "").strip().endswith("."), leak.name
    assert {leak.channel for leak in LEAKS} == {leak.channel for leak in LEAKS if leak.number in FAST}


def test_every_check_is_needed() -> None:
    caught = {check for leak in LEAKS for check in leak.caught_by}
    assert caught == set(CHECKS)
    alone = {leak.levels for leak in LEAKS if len(leak.levels) == 1}
    assert {("E0",), ("E1a",)} <= alone, "these levels catch some fault alone"
