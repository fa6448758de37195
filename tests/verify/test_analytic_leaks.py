"""Every fault of an analytic head is caught by every check that must, beside chains and alone; clean heads raise no alarm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from s3t.records import Layout, Recipe
from verify.distribution import CHECK as DISTRIBUTION
from verify.distribution import E2Plan
from verify.effort import Effort
from verify.leaks import CHECKS, CLEAN, LEAKS, Bench, Leak
from verify.leaks.bench import verdicts
from verify.leaks.leak import LOUD
from verify.leaks.matrix import LEVELS
from verify.leaks.settings import SETTINGS, Setting, with_head
from verify.membership import CHECK as MEMBERSHIP
from verify.membership import E3Plan
from verify.report import Verdict

ALONE = Setting("analytic", "analytic", Layout(1, 1, 1), Recipe(), seed=5, layers=2)
OF_HEADS = [leak for leak in LEAKS if leak.needs is with_head]
RENEWED = ("delete", "refresh")
SAMPLED = Effort(E2Plan(), E3Plan(guesses=48, shadows=16, checkpoints=False))
HEADED = replace(CLEAN, needs=with_head, scope="surviving")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("alone"), with_head(ALONE), 1)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("beside"), SETTINGS[1])


def test_there_are_faults_of_heads() -> None:
    assert [leak.number for leak in OF_HEADS] == list(range(46, 53))


@pytest.mark.parametrize("leak", OF_HEADS, ids=lambda leak: leak.name)
def test_the_fault_is_caught_where_the_head_is_alone(alone: Bench, leak: Leak) -> None:
    report = alone.audit(leak, LEVELS)
    said = verdicts(report)
    caught = {check for check, verdict in said.items() if verdict is Verdict.VIOLATED}
    assert caught == set(leak.caught_by), report.dumps()


@pytest.mark.parametrize("leak", OF_HEADS, ids=lambda leak: leak.name)
def test_the_fault_is_caught_beside_chains(beside: Bench, leak: Leak) -> None:
    report = beside.audit(leak, [level for level in leak.levels if level != "E1c"])
    said = verdicts(report)
    caught = {check for check, verdict in said.items() if verdict is Verdict.VIOLATED}
    assert caught == set(leak.caught_by) - {LOUD}, report.dumps()


@pytest.mark.parametrize("story", [("delete",), ("delete", "refresh", "delete another")], ids=", ".join)
def test_clean_heads_beside_chains_raise_no_alarm(beside: Bench, story: tuple[str, ...]) -> None:
    report = beside.audit(replace(HEADED, story=story), ("E0", "E1a", "E1b"))
    assert verdicts(report) == {check: Verdict.HOLDS for check in CHECKS if check != LOUD}, report.dumps()


def test_a_clean_head_alone_raises_no_alarm(alone: Bench, tmp_path: Path) -> None:
    report = alone.audit(HEADED, LEVELS)
    assert verdicts(report) == dict.fromkeys(CHECKS, Verdict.HOLDS), report.dumps()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["alone", "beside"])
def test_membership_and_distribution_hold_for_clean_heads(place: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(place).audit(replace(HEADED, story=RENEWED), ("E2", "E3"), SAMPLED)
    assert verdicts(report) == {DISTRIBUTION: Verdict.HOLDS, MEMBERSHIP: Verdict.HOLDS}, report.dumps()


@pytest.mark.slow
def test_membership_finds_a_head_that_was_not_solved_anew(alone: Bench) -> None:
    (stale,) = (leak for leak in LEAKS if leak.name == "head not solved anew")
    report = alone.audit(stale, ("E3",), SAMPLED)
    assert verdicts(report) == {MEMBERSHIP: Verdict.VIOLATED}, report.dumps()
