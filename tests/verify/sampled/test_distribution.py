"""E2: alarms as rare as stated, planted differences found, and no verdict without the evidence for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from s3t.errors import S3TError
from s3t.records import Record
from verify.case import Case
from verify.distribution import ACCURACY, LOSS, MEASURES, PROBABILITY, VICTIMS, E2Plan, check_distribution, scalars
from verify.report import Finding, Verdict
from verify.sampling import log_probabilities
from verify.statistics import StatisticsError

Pretend = Callable[..., Case]
FEW = E2Plan(n=8, permutations=199)


def checked(case: Case, plan: E2Plan = FEW) -> Finding:
    (finding,) = check_distribution(case, plan)
    assert finding.check == "E2 distribution"
    return finding


def test_the_plan_fixes_n_for_the_wanted_power() -> None:
    plan = E2Plan()
    assert plan.size == plan.needed
    assert plan.joint_power(plan.size) >= plan.power > plan.joint_power(plan.size - 2)
    tight = E2Plan(measures=(replace(PROBABILITY, margin=0.01),))
    assert tight.needed > 200 and tight.size == 200
    assert E2Plan(looks=4).needed > plan.needed


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(StatisticsError, match="measures \\['mood'\\] are not among"):
        E2Plan(measures=(replace(PROBABILITY, name="mood"),))
    with pytest.raises(StatisticsError, match="measures"):
        E2Plan(measures=())
    with pytest.raises(StatisticsError, match="not positive"):
        E2Plan(measures=(replace(PROBABILITY, margin=0.0),))
    for how in ({"n": 1}, {"most": 1}, {"permutations": 0}):
        with pytest.raises(StatisticsError, match="at least"):
            E2Plan(**how)  # type: ignore[arg-type]
    with pytest.raises(StatisticsError, match="looks=0"):
        E2Plan(looks=0)


def test_a_clean_system_holds_and_says_on_what_evidence(pretend: Pretend) -> None:
    plan = E2Plan(permutations=199)
    finding = checked(pretend(), plan)
    assert finding.verdict is Verdict.HOLDS
    details = finding.details
    assert details["n"] == details["n_needed"] == plan.size
    assert details["power"]["achieved"] == details["power"]["planned"] >= 0.9
    assert set(details["p_values"]) == {"energy distance", "MMD"}
    assert details["looks"] == {"planned": 1, "taken": 1}
    assert set(details["samples"]) == {measure.name for measure in MEASURES}
    for sides in details["samples"].values():
        assert {name: len(values) for name, values in sides.items()} == dict.fromkeys(
            ("unlearned", "reference"), plan.size
        )


def test_both_sides_are_drawn_with_seeds_of_their_own_and_asked_before_the_history(pretend: Pretend) -> None:
    case = pretend()
    checked(case)
    made: Any = case.lab
    assert len(made.made) == 16
    assert len({system.seed for system in made.made}) == 16
    assert sum(system.met for system in made.made) == 8
    assert all(system.dropped for system in made.made)


def test_a_claim_of_retraining_is_compared_with_a_fresh_fit(pretend: Pretend) -> None:
    case = pretend(claim="retrained")
    assert checked(case, E2Plan(permutations=199)).verdict is Verdict.HOLDS
    made: Any = case.lab
    assert [system.dropped for system in made.made] == [system.met for system in made.made]


def test_a_difference_without_a_deletion_is_nothing_to_check(pretend: Pretend) -> None:
    assert checked(pretend(victims=0)).verdict is Verdict.HOLDS


@pytest.mark.parametrize("fault", ["remembers", "shifted"])
def test_planted_leaks_are_found(pretend: Pretend, fault: str) -> None:
    finding = checked(pretend(fault=fault), E2Plan(permutations=199))
    assert finding.verdict is Verdict.VIOLATED
    assert "serve otherwise" in finding.message
    assert min(finding.details["p_values"].values()) == 1 / 200


def test_a_shift_is_found_with_the_power_that_simulation_gives(pretend: Pretend) -> None:
    """A shift of about one deviation, n = 20: found in more than half of 12 repetitions."""
    plan = E2Plan(n=20, permutations=99)
    found = [checked(pretend(fault="shifted", shift=0.4), replace(plan, label=f"power {i}")) for i in range(12)]
    assert sum(f.verdict is Verdict.VIOLATED for f in found) > 6


def test_alarms_are_as_rare_as_stated(pretend: Pretend) -> None:
    case, alarms, runs = pretend(records=4, probes=3), 0, 50
    for number in range(runs):
        plan = E2Plan(n=6, permutations=79, label=f"alarm {number}", alpha=0.1)
        alarms += checked(case, plan).verdict is Verdict.VIOLATED
    assert alarms <= stats.binom.ppf(0.999, runs, 0.1)


def test_alarms_stay_as_rare_over_several_looks(pretend: Pretend) -> None:
    case, alarms, runs = pretend(records=4, probes=3, noise=2.0), 0, 30
    for number in range(runs):
        plan = E2Plan(n=9, looks=3, permutations=99, label=f"looks {number}", alpha=0.15)
        alarms += checked(case, plan).verdict is Verdict.VIOLATED
    assert alarms <= stats.binom.ppf(0.999, runs, 0.15)


def test_looks_stop_as_soon_as_one_decides(pretend: Pretend) -> None:
    plan = E2Plan(n=40, looks=4, permutations=199)
    violated = checked(pretend(fault="remembers", memory=6.0), plan)
    assert violated.verdict is Verdict.VIOLATED
    assert violated.details["looks"] == {"planned": 4, "taken": 1}
    assert violated.details["n"] == 10
    wide = tuple(replace(measure, margin=0.9) for measure in MEASURES)
    holds = checked(pretend(), replace(plan, measures=wide))
    assert holds.verdict is Verdict.HOLDS and holds.details["looks"]["taken"] == 1


def test_too_few_systems_show_no_equivalence(pretend: Pretend) -> None:
    finding = checked(pretend(noise=1.0), E2Plan(n=4, permutations=99))
    assert finding.verdict is Verdict.UNDECIDED
    assert "equivalence is not shown either for" in finding.message
    assert finding.details["power"]["achieved"] < 0.9


def test_a_cap_on_n_is_stated_as_lost_power(pretend: Pretend) -> None:
    finding = checked(pretend(), E2Plan(most=5, permutations=99))
    assert finding.details["n"] == 5 < finding.details["n_needed"]
    assert finding.details["power"]["planned"] < finding.details["power"]["wanted"]


def test_offline_on_both_sides_is_undecided(pretend: Pretend) -> None:
    finding = checked(pretend(fault="offline"))
    assert finding.verdict is Verdict.UNDECIDED
    assert "unlearned: 8 of 8 offline; reference: 8 of 8 offline" in finding.message


@pytest.mark.parametrize(("fault", "why"), [("offline if met", "offline"), ("nan", "not finite")])
def test_what_one_side_alone_fails_to_serve_is_a_difference(pretend: Pretend, fault: str, why: str) -> None:
    finding = checked(pretend(fault=fault))
    assert finding.verdict is Verdict.VIOLATED
    assert "availability" in finding.message
    assert finding.details["unusable"] == {"unlearned": 8, "reference": 0}
    undecided = checked(pretend(fault=fault), E2Plan(n=3, permutations=99))
    assert undecided.verdict is Verdict.UNDECIDED
    assert f"unlearned: 3 of 3 {why}; reference: 0 of 3 unusable" in undecided.message


def test_systems_that_cannot_be_made_or_asked_are_undecided(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the disk is full" in checked(pretend(fault="unfit")).message
    assert checked(pretend(fault="unfit")).verdict is Verdict.UNDECIDED
    assert checked(pretend(probes=0)).verdict is Verdict.UNDECIDED
    case = pretend()

    def broken() -> Any:
        raise S3TError("no provenance")

    monkeypatch.setattr(case.system, "provenance", broken)
    finding = checked(case)
    assert finding.verdict is Verdict.UNDECIDED and "no provenance" in finding.message


def test_progress_counts_the_systems(pretend: Pretend) -> None:
    seen: list[tuple[int, int, str]] = []
    check_distribution(pretend(), FEW, lambda *said: seen.append(said))
    assert seen == [(i, 8, "E2: systems drawn per side") for i in range(1, 9)]


def test_scalars_by_hand() -> None:
    asked = [Record("a", {}, 0), Record("b", {}, 1), Record("v", {}, 1)]
    logs = np.log(np.array([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]]))
    found = scalars(logs, asked, 2)
    assert found == pytest.approx(
        {
            PROBABILITY.name: 0.625,
            LOSS.name: -(np.log(0.75) + np.log(0.5)) / 2,
            ACCURACY.name: 0.5,
            VICTIMS.name: 0.1,
        }
    )


def test_what_is_served_is_read_as_probabilities() -> None:
    logits = np.array([[2.0, -1.0], [0.0, 1000.0]])
    logs = log_probabilities(logits)
    assert np.exp(logs[0]) == pytest.approx(np.exp(logits[0]) / np.exp(logits[0]).sum())
    assert logs[1] == pytest.approx([np.log(1e-7), 0])
    served = np.array([[0.25, 0.75], [0.0, 1.0]])
    assert np.exp(log_probabilities(served)) == pytest.approx(np.maximum(served, 1e-7))


@pytest.mark.slow
def test_the_real_system_holds_and_a_stale_pointer_does_not(tiny: Pretend) -> None:
    from verify.leaks import LEAKS

    stale = next(leak for leak in LEAKS if leak.number == 19)
    plan = E2Plan(n=12)
    assert checked(tiny(), plan).verdict is not Verdict.VIOLATED
    assert checked(tiny(stale), plan).verdict is Verdict.VIOLATED
