"""Verdict logic, exhaustively, and what a report prints."""

from __future__ import annotations

import io
import itertools
import json

import pytest
from rich.console import Console

from verify.report import LIMITS, Finding, Report, Verdict, combine

H, V, U = Verdict.HOLDS, Verdict.VIOLATED, Verdict.UNDECIDED


def report(*findings: Finding, levels: tuple[str, ...] = ("E0", "E1a")) -> Report:
    return Report("run", "s3t", "non-interference", levels, findings, ("not run: something",))


@pytest.mark.parametrize("verdicts", [c for n in range(4) for c in itertools.product((H, V, U), repeat=n)])
def test_combination(verdicts: tuple[Verdict, ...]) -> None:
    expected = V if V in verdicts else U if U in verdicts or not verdicts else H
    assert combine(verdicts) is expected


def test_exit_codes() -> None:
    assert [v.exit_code for v in (H, V, U)] == [0, 1, 3]


def test_a_level_without_findings_is_undecided() -> None:
    assert report().verdict is U
    assert report(Finding("E0 scan", H, "fine")).verdict is U
    assert report(Finding("E0 scan", H, "fine"), Finding("E1a clean room", H, "fine")).verdict is H
    assert report(Finding("E0 scan", V, "bad")).verdict is V
    assert report(levels=()).verdict is U


def test_broken_evidence_touches_every_level() -> None:
    one = report(Finding("evidence", U, "torn"))
    assert [one.of("E0"), one.of("E1a"), one.verdict] == [U, U, U]


def test_a_level_is_not_a_prefix_of_another() -> None:
    one = report(Finding("E1b never ingested", V, "bad"), levels=("E1a", "E1b"))
    assert one.of("E1a") is U
    assert one.of("E1b") is V


def test_first() -> None:
    one = report(Finding("E0 scan", H, "fine"), Finding("E0 rows", V, "bad", "n", "t"), Finding("E0 rows", V, "worse"))
    found = one.first(V)
    assert found is not None
    assert found.message == "bad"
    assert one.first(U) is None


def test_json_is_complete() -> None:
    raw = json.loads(report(Finding("E0 scan", V, "bad", "node", "tensor", {"ulps": 3})).dumps())
    assert raw["verdict"] == "VIOLATED"
    assert raw["claim"] == "non-interference"
    assert raw["levels"] == {"E0": "VIOLATED", "E1a": "UNDECIDED"}
    assert raw["findings"][0]["details"] == {"ulps": 3}
    assert raw["limits"] == list(LIMITS)
    assert raw["notes"] == ["not run: something"]


def test_table_names_problems_first_and_takes_no_markup() -> None:
    stream = io.StringIO()
    findings = [Finding("E0 scan", H, "fine"), Finding("E1a clean room", V, "differs [bold]", "shard 0", "head.weight")]
    report(*findings).print(Console(file=stream, width=200))
    shown = stream.getvalue()
    assert shown.index("head.weight: differs [bold]") < shown.index("fine")
    assert "not run: something" in shown
    assert shown.rstrip().endswith("VIOLATED  E0, E1a")
    assert "Gupta" in shown
