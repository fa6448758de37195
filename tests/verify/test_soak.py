"""The soak: what is drawn, what is counted, that it can be resumed and repeated, and that it can raise an alarm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import S3TError
from verify import soak as module
from verify.leaks.served import SharedHead
from verify.report import Finding, Report, Verdict
from verify.small import Small, SmallLab, draw
from verify.soak import Outcome, levels_of, main, resumed, soak, upper_limit, verify
from verify.trace import Step

CHEAP = 352
"""Seed whose first systems are small."""


def test_systems_are_drawn_from_seed_and_number_alone() -> None:
    assert draw(1, 2) == draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 2)
    assert draw(1, 2, steps=False) == dataclasses.replace(draw(1, 2), steps=())


def test_what_is_drawn_covers_what_it_should() -> None:
    from baselines.methods import METHODS

    drawn = [draw(0, number) for number in range(400)]
    assert {small.method for small in drawn} == set(METHODS)
    assert {small.layout.shards for small in drawn} == {small.layout.slices for small in drawn} == {1, 2, 3}
    assert {small.layout.budget for small in drawn} >= {1, 2, 3, 4}
    assert {small.recipe.ensemble for small in drawn} == {"mean-logits", "mean-probabilities", "vote"}
    assert any(small.recipe.epochs % 1 for small in drawn) and any(small.recipe.rslora for small in drawn)
    assert min(len(small.records) for small in drawn) == 6 and max(len(small.records) for small in drawn) == 40
    kinds = {step.kind for small in drawn for step in small.steps}
    assert kinds == {"delete", "retire", "extend", "refresh", "restart", "unknown"}
    slots = [
        (small.layout.shards * small.layout.slices, len({small.slot(r.id) for r in small.records})) for small in drawn
    ]
    assert any(filled < planned for planned, filled in slots), "some slots are empty"
    assert any(len(set(step.ids)) < len(step.ids) for small in drawn for step in small.steps), "some ids come twice"
    assert any(sum(step.kind == "delete" for step in small.steps) > 2 for small in drawn)
    heads = [small.head for small in drawn if small.head is not None]
    assert all(small.head is not None for small in drawn if small.method == "analytic")
    assert any(small.head is not None for small in drawn if small.method != "analytic")
    assert {head.form for head in heads} == {"ridge", "balanced", "prototypes"}
    assert any(head.layers for head in heads) and any(head.random for head in heads)


def test_nodes_are_counted() -> None:
    small = next(s for s in (draw(0, number) for number in range(400)) if (s.layout.slices, s.layout.budget) == (3, 3))
    assert small.nodes == small.layout.shards * 9


def test_costly_levels_are_run_every_fourth_time() -> None:
    drawn = [(number, draw(0, number)) for number in range(200)]
    ran = {number: levels_of(small, number, ("E0", "E1a", "E1b")) for number, small in drawn}
    assert all(levels[:2] == ("E0", "E1a") for levels in ran.values())
    assert all("E1b" in ran[number] for number, small in drawn if small.nodes <= module.SMALL or number % 4 == 0)
    assert sum("E1b" in levels for levels in ran.values()) < 200


@pytest.mark.parametrize(("alarms", "n"), [(0, 3000), (0, 5), (1, 100), (5, 5)])
def test_the_upper_limit_is_that_of_clopper_and_pearson(alarms: int, n: int) -> None:
    from scipy.stats import binom

    limit = upper_limit(alarms, n)
    if alarms == n:
        assert limit == 1.0
    else:
        assert binom.cdf(alarms, n, limit) == pytest.approx(0.05, rel=1e-6), "as many or fewer: 5 % at the limit"
    if alarms == 0:
        assert limit == pytest.approx(1 - 0.05 ** (1 / n))


def test_three_thousand_without_an_alarm_bound_the_rate_below_a_thousandth() -> None:
    assert upper_limit(0, 3000) < 0.001 < upper_limit(0, 2990)


def _without_times(outcome: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outcome.items() if name not in ("seconds", "machine")}


def test_a_soak_holds_and_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once, twice = tmp_path / "once.json", tmp_path / "twice.json"
    assert main(["--n", "4", "--seed", str(CHEAP), "--out", str(once)]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole == json.loads(once.read_text())
    assert whole["n"] == whole["done"] == sum(whole["methods"].values()) == 4
    assert whole["alarms"] == whole["undecided"] == []
    assert whole["ran"]["E0"] == whole["ran"]["E1a"] == 4 and whole["nodes"] > 0
    assert whole["false_alarm_rate_upper_95"] == upper_limit(0, 4)
    assert {"torch", "commit", "cores"} <= whole["machine"].keys()
    assert main(["--n", "1", "--seed", str(CHEAP), "--out", str(twice)]) == 0
    assert main(["--n", "4", "--seed", str(CHEAP), "--out", str(twice), "--resume"]) == 0
    assert _without_times(json.loads(twice.read_text())) == _without_times(whole)
    assert main(["--n", "4", "--seed", "1", "--out", str(twice), "--resume"]) == 2
    assert "is of another soak (seed 352" in capsys.readouterr().err
    with pytest.raises(S3TError, match="give another --out"):
        resumed(twice, CHEAP, ("E0",), 0)


@pytest.mark.slow
@pytest.mark.replayed
def test_a_longer_soak_holds() -> None:
    outcome = Outcome(7, ("E0", "E1a", "E1b"), 0)
    soak(outcome, 60, None)
    assert (outcome.done, outcome.alarms, outcome.undecided) == (60, [], [])
    assert len(outcome.methods) == 8


class FaultyLab(SmallLab):
    """Makes systems whose server keeps one head for all chains."""

    def make(self, *given: Any) -> Any:
        system: Any = super().make(*given)
        system._serving_for = lambda run: SharedHead(run, system._loaded())
        return system


def _faulty() -> Small:
    """A system whose first chain gets shorter, and which has served before."""
    for number in range(1000):
        small = draw(3, number, steps=False)
        if small.method == "s3t" and (small.layout.slices, small.layout.budget) == (2, 1) and small.seed % 2:
            victim = next((r.id for r in small.records if small.slot(r.id) == (0, 1)), None)
            first = [r.id for r in small.records if small.slot(r.id) == (0, 0)]
            if victim and first:
                return dataclasses.replace(small, steps=(Step("delete", (victim,)),))
    raise AssertionError("no such system was drawn")


def test_a_soak_can_raise_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = _faulty()
    monkeypatch.setattr(module, "draw", lambda seed, number: small)
    assert main(["--n", "1"]) == 0
    monkeypatch.setattr(module, "SmallLab", FaultyLab)
    capsys.readouterr()
    assert main(["--n", "2", "--seed", "3", "--start", "40", "--out", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr()
    outcome = json.loads(said.out)
    assert [alarm["number"] for alarm in outcome["alarms"]] == [40, 41]
    assert outcome["alarms"][0]["again"] == "python -m verify soak --seed 3 --start 40 --n 1"
    assert outcome["alarms"][0]["again"] in said.err and "VIOLATED s3t: E1a clean room" in said.err
    assert outcome["false_alarm_rate_upper_95"] == 1.0


def test_the_undecided_are_counted_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = (Finding("E0 scan", Verdict.UNDECIDED, "a file is missing"),)
    monkeypatch.setattr(module, "verify", lambda *_: Report("", "s3t", "", ("E0",), found))
    assert main(["--n", "3", "--levels", "E0"]) == 3
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["alarms"], len(outcome["undecided"])) == ([], 3)
    assert outcome["undecided"][0]["found"] == ["E0 scan: a file is missing"]
    assert outcome["false_alarm_rate_upper_95"] == upper_limit(0, 3)


def test_an_unknown_level_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--n", "1", "--levels", "E9"]) == 2
    assert "level 'E9' is unknown" in capsys.readouterr().err


def test_a_verification_closes_what_it_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small = draw(CHEAP, 0)
    assert verify(small, ("E0",)).verdict is Verdict.HOLDS
    assert list(tmp_path.iterdir()) == []
