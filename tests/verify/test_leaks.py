"""The verifier rejects every planted fault with every check that must, and raises no alarm on the clean system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from verify.audit import DEFAULT as LEVELS
from verify.leaks import CHECKS, CLEAN, LEAKS, NOT_PLANTED, Bench, Leak, matrix
from verify.leaks.bench import describe_matrix, verdicts
from verify.leaks.leak import Step
from verify.report import Verdict

FAST = {1, 4, 5, 9, 12, 16, 17, 18, 19, 20, 21, 24, 25, 27, 38, 39, 40, 43}
"""Faults of the fast tier: at least one for every channel."""

CATALOGUE = range(1, 44)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One bench for all; on one thread, for tensors this small gain nothing from more and lose much to a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(tmp_path_factory.mktemp("leaks"))
    torch.set_num_threads(threads)


def marked(leak: Leak) -> object:
    name = f"{leak.number:02d} {leak.name}"
    return pytest.param(leak, id=name, marks=() if leak.number in FAST else pytest.mark.slow)


@pytest.mark.parametrize("leak", [marked(leak) for leak in LEAKS])
def test_the_fault_is_caught(bench: Bench, leak: Leak) -> None:
    report = bench.audit(leak)
    assert report.verdict is Verdict.VIOLATED, report.dumps()
    said = verdicts(report)
    missed = {check: said.get(check) for check in leak.caught_by if said.get(check) is not Verdict.VIOLATED}
    assert not missed, report.dumps()


STORIES: list[tuple[Step, ...]] = [
    ("delete",),
    ("delete", "refresh"),
    ("delete", "delete another"),
    ("delete", "refresh", "delete another"),
]


@pytest.mark.parametrize("story", STORIES, ids=", ".join)
def test_the_clean_system_raises_no_alarm(bench: Bench, story: tuple[Step, ...]) -> None:
    report = bench.audit(replace(CLEAN, story=story, scope="surviving"), LEVELS)
    assert report.verdict is Verdict.HOLDS, report.dumps()
    assert verdicts(report) == dict.fromkeys(CHECKS, Verdict.HOLDS)


@pytest.mark.parametrize("position", [0, 17, pytest.param(30, marks=pytest.mark.slow)])
def test_the_clean_system_raises_no_alarm_for_other_victims(bench: Bench, position: int) -> None:
    report = bench.audit(CLEAN, LEVELS, bench.records[position])
    assert verdicts(report) == dict.fromkeys(CHECKS, Verdict.HOLDS), report.dumps()


def test_the_catalogue_is_accounted_for() -> None:
    numbers = [leak.number for leak in LEAKS]
    assert len(numbers) == len(set(numbers))
    assert sorted([*numbers, *NOT_PLANTED]) == list(CATALOGUE)


def test_every_fault_says_why_and_who_catches_it() -> None:
    for leak in LEAKS:
        assert leak.why.endswith("."), leak.name
        assert leak.caught_by and set(leak.caught_by) <= set(CHECKS), leak.name
        assert len(leak.caught_by) > 1 or leak.blind, f"{leak.name}: one check alone, and no reason"
    assert {leak.channel for leak in LEAKS} == {leak.channel for leak in LEAKS if leak.number in FAST}


def test_every_check_is_needed() -> None:
    caught = {check for leak in LEAKS for check in leak.caught_by}
    assert caught == set(CHECKS)
    alone = {leak.caught_by for leak in LEAKS if len({check.split()[0] for check in leak.caught_by}) == 1}
    assert {check.split()[0] for checks in alone for check in checks} == set(LEVELS), "each level catches one alone"


def test_the_matrix(tmp_path: Path) -> None:
    chosen = [leak for leak in LEAKS if leak.number in (19, 25)]
    seen: list[str] = []
    table = matrix(chosen, tmp_path, ("E0",), lambda done, total, what: seen.append(what))
    assert seen == [leak.name for leak in chosen]
    assert describe_matrix(table).splitlines()[2:] == [
        "| 19 old chain still served | selection |   |   |   |   | ! | ! |",
        "| 25 checkpoint not erased | erasure |   | X |   | X |   |   |",
    ]
