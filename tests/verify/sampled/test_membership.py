"""E3: alarms as rare as stated, leaks found where the attack has power, and no verdict where it has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from s3t.errors import S3TError
from s3t.records import Record
from verify.case import Case
from verify.membership import E3Plan, World, Worlds, calibrate, check_membership, log_ratios, roc, threshold
from verify.report import Finding, Verdict
from verify.sampling import confidences, derived_seed, log_probabilities, true_class
from verify.statistics import StatisticsError

Pretend = Callable[..., Case]
FEW = E3Plan(guesses=24, shadows=12, checkpoints=False)


def checked(case: Case, plan: E3Plan = FEW) -> Finding:
    (finding,) = check_membership(case, plan)
    assert finding.check == "E3 membership"
    return finding


def test_a_clean_system_holds_and_says_on_what_evidence(pretend: Pretend) -> None:
    finding = checked(pretend(victims=2), E3Plan())
    assert finding.verdict is Verdict.HOLDS
    details = finding.details
    assert details["epsilon_low"]["post"] == details["epsilon_low"]["post loss"] == 0
    assert details["epsilon_low"]["pre"] > 1 and details["epsilon_low"]["pre+post"] > 1
    assert (details["guesses"], details["shadows"], details["confidence"]) == (48, 32, 0.95)
    assert details["victims"] == ["row-00", "row-01"]
    assert details["confidence_each"] == pytest.approx(1 - 0.05 / 6)
    assert set(details["roc"]) == {"pre", "post", "post loss", "pre+post"}
    for points in details["roc"].values():
        assert points[0] == [0, 0] and points[-1] == [1, 1]
    json.dumps(finding.to_json(), allow_nan=False)


@pytest.mark.parametrize("victims", [1, 3])
def test_a_record_still_in_what_is_served_is_found(pretend: Pretend, victims: int) -> None:
    finding = checked(pretend(victims=victims, fault="remembers"))
    assert finding.verdict is Verdict.VIOLATED
    assert finding.details["epsilon_low"]["post"] > 0
    assert "had been there: epsilon at least" in finding.message


def test_one_leaking_victim_is_named(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    case = pretend(victims=3)
    kind = type(case.system)
    forget = kind.delete

    def partly(self: Any, ids: Any) -> Any:
        held = dict(self.learned)
        receipt = forget(self, ids)
        if "row-01" in ids:
            self.learned = held
        return receipt

    monkeypatch.setattr(kind, "delete", partly)
    finding = checked(case)
    assert finding.verdict is Verdict.VIOLATED
    assert finding.details["by_victim"]["post"]["row-01"] > 0
    assert finding.details["by_victim"]["post"]["row-00"] == finding.details["by_victim"]["post"]["row-02"] == 0


def test_alarms_are_as_rare_as_stated(pretend: Pretend) -> None:
    case, alarms, runs = pretend(victims=2, records=4), 0, 40
    for number in range(runs):
        plan = E3Plan(guesses=20, shadows=8, confidence=0.9, checkpoints=False, label=f"alarm {number}")
        alarms += checked(case, plan).verdict is Verdict.VIOLATED
    assert alarms <= stats.binom.ppf(0.999, runs, 0.1)


def test_a_leak_is_found_with_power(pretend: Pretend) -> None:
    case = pretend(records=4, fault="remembers", memory=1.5)
    found = [checked(case, replace(FEW, label=f"power {i}")).verdict for i in range(10)]
    assert found.count(Verdict.VIOLATED) >= 9


def test_without_memory_the_control_fails_and_nothing_is_decided(pretend: Pretend) -> None:
    finding = checked(pretend(memory=0.0))
    assert finding.verdict is Verdict.UNDECIDED
    assert "the attack has no power here" in finding.message
    assert finding.details["epsilon_low"]["pre"] == 0


def test_too_few_guesses_decide_nothing(pretend: Pretend) -> None:
    finding = checked(pretend(), E3Plan(guesses=1, shadows=8, checkpoints=False))
    assert finding.verdict is Verdict.UNDECIDED
    assert None in (finding.details["tpr"]["pre"], finding.details["fpr"]["pre"])
    json.dumps(finding.to_json(), allow_nan=False)


@pytest.mark.parametrize(("fault", "why"), [("offline", "offline"), ("nan", "not finite"), ("unfit", "disk is full")])
def test_systems_that_cannot_be_attacked_are_undecided(pretend: Pretend, fault: str, why: str) -> None:
    finding = checked(pretend(fault=fault))
    assert finding.verdict is Verdict.UNDECIDED and why in finding.message


def test_a_system_that_cannot_say_what_it_claims_is_undecided(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = pretend()

    def broken() -> Any:
        raise S3TError("no provenance")

    monkeypatch.setattr(case.system, "provenance", broken)
    finding = checked(case)
    assert finding.verdict is Verdict.UNDECIDED and "no provenance" in finding.message


def test_nothing_deleted_is_nothing_to_hide(pretend: Pretend) -> None:
    assert checked(pretend(victims=0)).verdict is Verdict.HOLDS


def test_one_fit_serves_all_attacks_but_the_one_with_both_checkpoints(pretend: Pretend) -> None:
    case = pretend()
    lab: Any = case.lab
    finding = checked(case)
    assert len(lab.made) == 36
    assert sum(system.met for system in lab.made) == 6 + finding.details["met"]
    lab.made.clear()
    finding = checked(case, replace(FEW, checkpoints=True))
    assert len(lab.made) == 36 + 6 + 24 - finding.details["met"]
    assert len({system.seed for system in lab.made}) == len(lab.made)


def test_a_claim_of_retraining_is_compared_with_a_fresh_fit(pretend: Pretend) -> None:
    case = pretend(claim="retrained")
    assert checked(case).verdict is Verdict.HOLDS
    lab: Any = case.lab
    assert [system.dropped for system in lab.made] == [system.met for system in lab.made]


def test_another_record_of_the_same_slot_is_deleted_in_the_other_world(pretend: Pretend) -> None:
    case = pretend(victims=2)
    worlds = Worlds(case, E3Plan(), case.victims, None)
    assert worlds.decoys_share_slot
    seen = set()
    for number in range(20):
        events = worlds.decoyed("shadow", number)
        ids = [name for event in events for name in event.ids]
        assert [event.kind for event in events] == ["delete", "delete"]
        assert len(set(ids)) == 2 and not set(ids) & case.deleted
        assert [int(name[-1]) % 2 for name in ids] == [0, 1]
        seen |= set(ids)
    assert len(seen) > 4


def test_without_known_slots_any_record_will_do(pretend: Pretend) -> None:
    case = pretend(victims=1, records=2)
    worlds = Worlds(case, E3Plan(), case.victims, None)
    assert [event.ids for event in worlds.decoyed("guess", 0)] == [("row-01",)]
    case = pretend(victims=2, records=2)
    finding = checked(case, replace(FEW, checkpoints=True))
    assert finding.verdict is Verdict.UNDECIDED and "no retained record is left" in finding.message


def test_progress_counts_the_systems(pretend: Pretend) -> None:
    seen: list[tuple[int, int, str]] = []
    check_membership(pretend(), FEW, lambda *said: seen.append(said))
    assert seen == [(i, 36, "E3: systems fitted") for i in range(1, 37)]


def test_plans_that_make_no_sense_are_refused() -> None:
    for how in ({"guesses": 0}, {"shadows": 3}, {"victims": 0}):
        with pytest.raises(StatisticsError, match="give at least 1, 1 and 4"):
            E3Plan(**how)  # type: ignore[arg-type]
    with pytest.raises(StatisticsError, match="confidence=1"):
        E3Plan(confidence=1)
    with pytest.raises(StatisticsError, match="delta=-1"):
        E3Plan(delta=-1)


def test_coins_and_seeds_are_fixed_by_hash() -> None:
    coins = [E3Plan().coin(number) for number in range(200)]
    assert coins == [E3Plan(guesses=9).coin(number) for number in range(200)]
    assert coins != [E3Plan(label="other").coin(number) for number in range(200)]
    assert 70 < sum(coins) < 130
    assert derived_seed("a", 1) == derived_seed("a", 1) != derived_seed("a", 2)
    assert 0 <= derived_seed("a") < 2**63


def test_likelihood_ratios_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    means, features = rng.normal(size=(2, 3, 2)), rng.normal(size=(3, 2))
    covariances = np.array([np.eye(2) * (v + 1) + 0.3 for v in range(3)])
    ours = log_ratios(features, means, np.linalg.inv(covariances))
    for v in range(3):
        never, met = (stats.multivariate_normal(means[w, v], covariances[v]).logpdf(features[v]) for w in (0, 1))
        assert ours[v] == pytest.approx(met - never)


def test_calibration_pools_the_covariance_of_both_worlds() -> None:
    rng = np.random.default_rng(2)
    shadows = [World(i % 2, {"post": rng.normal(i % 2, 1, size=(2, 1))}) for i in range(40)]
    attack = calibrate(shadows, "post")
    met, never = (np.array([w.features["post"] for w in shadows if w.met == world]) for world in (1, 0))
    pooled = (met.var(axis=0, ddof=1) + never.var(axis=0, ddof=1)) / 2
    assert attack.means[1] == pytest.approx(met.mean(axis=0))
    assert attack.precisions[:, 0, 0] == pytest.approx(1 / (1.001 * pooled[:, 0]))
    assert attack.ratios(np.full((2, 1), 9.0)).min() > 0


def test_shadows_without_spread_calibrate_as_well() -> None:
    shadows = [World(i % 2, {"post": np.full((1, 1), float(i % 2))}) for i in range(6)]
    attack = calibrate(shadows, "post")
    assert attack.ratios(np.array([[1.0]]))[0] > attack.thresholds[0] > attack.ratios(np.array([[0.0]]))[0]


def test_the_threshold_is_the_best_on_the_shadows() -> None:
    coins = np.array([0, 0, 1, 1])
    assert threshold(np.array([-3.0, 1.0, 2.0, 9.0]), coins) == 1.5
    assert threshold(np.array([-3.0, -1.0, 2.0, 9.0]), coins) == 0
    assert threshold(np.zeros(4), coins) == 0


def test_roc_points_by_hand() -> None:
    assert roc([3.0, 2.0, 2.0, 1.0], [1, 0, 1, 0]) == [[0, 0], [0, 0.5], [0.5, 1], [1, 1]]
    assert roc([1.0], [1])[-1] == [1, 1]


def test_confidence_is_the_logit_of_the_true_class() -> None:
    asked = [Record("a", {}, 0), Record("b", {}, 2)]
    scores = np.array([[1.0, 0.5, -2.0], [0.0, 3.0, 1.0]])
    logs = log_probabilities(scores)
    p = np.exp(true_class(logs, asked))
    assert confidences(logs, asked) == pytest.approx(np.log(p / (1 - p)))
    sure = confidences(log_probabilities(np.array([[900.0, 0.0, 0.0]])), asked[:1])
    assert np.isfinite(sure).all() and sure[0] == pytest.approx(-np.log(1e-7), rel=0.1)


@pytest.mark.slow
def test_the_real_system_holds_and_a_stale_pointer_does_not(tiny: Pretend) -> None:
    from verify.leaks import LEAKS

    stale = next(leak for leak in LEAKS if leak.number == 19)
    plan = E3Plan(guesses=20, shadows=8)
    clean = checked(tiny(), plan)
    assert clean.verdict is Verdict.HOLDS, clean
    assert checked(tiny(stale), replace(plan, checkpoints=False)).verdict is Verdict.VIOLATED
