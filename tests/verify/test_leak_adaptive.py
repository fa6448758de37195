"""Fault 37: requests chosen from outputs leave every bit right, and the retained records spread otherwise than they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from verify.audit import audit
from verify.leaks import NOT_PLANTED
from verify.leaks.adaptive import ROWS, Outcome, by_name, by_outputs, corpus, over_keys
from verify.report import Verdict


def test_requests_chosen_from_outputs_depend_on_the_key(tmp_path: Path) -> None:
    seen = over_keys(by_outputs, tmp_path, keys=3)
    assert (seen.keys, seen.deleted) == (3, 3 * ROWS // 4)
    assert seen.p_value < 1e-3, seen


def test_requests_chosen_beforehand_do_not(tmp_path: Path) -> None:
    blind = over_keys(by_name, tmp_path, keys=3)
    assert isinstance(blind, Outcome) and blind.p_value > 0.05, blind


@pytest.mark.slow
def test_twenty_keys(tmp_path: Path) -> None:
    assert over_keys(by_outputs, tmp_path / "a", keys=20).p_value < 1e-12
    assert over_keys(by_name, tmp_path / "b", keys=20).p_value > 0.05


def test_no_check_of_one_run_sees_it(tmp_path: Path) -> None:
    assert "property of the requester" in NOT_PLANTED[37]
    made = []

    def remember(*given: object) -> list[str]:
        made.append(given[0])
        return by_outputs(*given)  # type: ignore[arg-type]

    over_keys(remember, tmp_path, keys=1)
    system = type(made[0]).open(tmp_path / "run-000")  # type: ignore[attr-defined]
    report = audit(system, tmp_path / "run-000", levels=("E0", "E1a"), isolate=False, records=corpus())
    system.close()
    assert report.verdict is Verdict.HOLDS, report.dumps()
