"""E2: what systems serve that met the deleted records and deleted them, against systems that never met them, over seeds.

For conditions under which bits cannot match. Two questions, both fixed before anything is drawn (:class:`E2Plan`): is there
a difference (permutation tests on whole output vectors; yes is VIOLATED), and are the means of a few scalars equivalent
within a margin (two one-sided tests; yes for all is HOLDS)? Neither is UNDECIDED: "no difference found" alone proves nothing.

Cost: 2n fits and histories (n from the plan, 31 by default); the statistics take about a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from s3t.contract import Progress
from s3t.errors import S3TError
from s3t.records import Record
from verify.case import CannotPlayError, Case, Event
from verify.report import Finding, Verdict
from verify.sampling import derived_seed, draw, log_probabilities, true_class, workplace
from verify.statistics import StatisticsError, holm, per_look, tost, tost_power, tost_size, two_sample

CHECK = "E2 distribution"
SIDES = ("unlearned", "reference")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A scalar per system whose means must agree within ``margin``; ``deviation`` bounds its standard deviation over seeds."""

    name: str
    margin: float
    deviation: float


PROBABILITY = Measure("true-class probability on probes", 0.05, 0.05)
LOSS = Measure("loss on probes", 0.15, 0.15)
ACCURACY = Measure("accuracy on probes", 0.1, 0.1)
VICTIMS = Measure("true-class probability on victims", 0.1, 0.1)
MEASURES = (PROBABILITY, LOSS, ACCURACY, VICTIMS)
"""Margins in probability, nats and share of probes. Tighter margins or larger deviations need n in proportion to
(deviation / margin) squared."""


@dataclass(frozen=True)
class E2Plan:
    """What E2 will do, frozen before any data is seen.

    All ``measures`` are found equivalent with probability at least ``power`` if the means are equal and the deviations
    within their bounds; both errors are at most ``alpha`` over all ``looks`` (Bonferroni), at which the systems drawn so far
    are judged. ``n`` systems per side, by default as many as power demands and at most ``most``. ``unusable``: the share of
    systems on a side that may be offline or serve NaN. ``label`` fixes the seeds.
    """

    measures: tuple[Measure, ...] = MEASURES
    alpha: float = 0.05
    power: float = 0.9
    looks: int = 1
    n: int | None = None
    most: int = 200
    permutations: int = 999
    unusable: float = 0.1
    label: str = "E2"

    def __post_init__(self) -> None:
        """Refuse what cannot be planned: StatisticsError names the value."""
        per_look(self.alpha, self.looks)
        known = {measure.name for measure in MEASURES}
        odd = [measure.name for measure in self.measures if measure.name not in known]
        if odd or not self.measures:
            raise StatisticsError(f"measures {odd} are not among {sorted(known)}; give some of these")
        if any(measure.margin <= 0 or measure.deviation <= 0 for measure in self.measures):
            raise StatisticsError("a margin or deviation is not positive; both are needed to fix n beforehand")
        if (self.n is not None and self.n < 2) or self.most < 2 or self.permutations < 1:
            raise StatisticsError("n and most are at least 2 and permutations at least 1")

    @property
    def needed(self) -> int:
        """n per side for the wanted power: each of k measures gets power 1 - (1 - power) / k, so that all have it jointly."""
        each = 1 - (1 - self.power) / len(self.measures)
        level = per_look(self.alpha, self.looks)
        return max(tost_size(measure.margin, measure.deviation, level, each) for measure in self.measures)

    @property
    def size(self) -> int:
        """n per side that will be drawn."""
        return self.n if self.n is not None else min(self.needed, self.most)

    def joint_power(self, n: int, deviations: Mapping[str, float] | None = None) -> float:
        """Return a lower bound on the power of all measures together with ``n`` per side (at their bounds, or as given)."""
        level = per_look(self.alpha, self.looks)
        sds = {measure.name: measure.deviation for measure in self.measures} | dict(deviations or {})
        return max(0.0, 1 - sum(1 - tost_power(n, m.margin, sds[m.name], level) for m in self.measures))


@dataclass
class _Side:
    """The systems of one side so far: output vectors, scalars by name, and why others could not be used."""

    vectors: list[Array] = field(default_factory=list)
    scalars: dict[str, list[float]] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)

    @property
    def drawn(self) -> int:
        return len(self.vectors) + len(self.unusable)


def check_distribution(case: Case, plan: E2Plan, progress: Progress | None = None) -> list[Finding]:
    """Draw the systems of ``plan`` and judge them at every look; stop at the first that decides."""
    if not case.victims:
        return [Finding(CHECK, Verdict.HOLDS, "nothing was deleted: nothing to leave out")]
    if not case.probes:
        return [Finding(CHECK, Verdict.UNDECIDED, "there are no probes to ask; give records with known classes")]
    sides = {side: _Side() for side in SIDES}
    finding: Finding | None = None
    try:
        worlds = {"unlearned": (case.records, case.history), "reference": (case.retained, case.never_ingested())}
        for look in range(1, plan.looks + 1):
            wanted = max(2, plan.size * look // plan.looks)
            for number in range(sides["reference"].drawn, wanted):
                for side, (records, history) in worlds.items():
                    _add(sides[side], case, plan, side, number, records, history)
                if progress:
                    progress(number + 1, plan.size, "E2: systems drawn per side")
            finding = _judge(plan, sides, look)
            if finding.verdict is not Verdict.UNDECIDED:
                break
    except CannotPlayError as error:
        return [Finding(CHECK, Verdict.UNDECIDED, str(error))]
    except S3TError as error:
        return [Finding(CHECK, Verdict.UNDECIDED, f"the systems cannot be asked: {error}")]
    assert finding is not None
    return [finding]


def _add(
    side: _Side,
    case: Case,
    plan: E2Plan,
    name: str,
    number: int,
    records: Sequence[Record],
    history: Sequence[Event],
) -> None:
    asked = [*case.probes, *case.victims]
    with workplace() as folder:
        drawn = draw(case, folder / "run", derived_seed(plan.label, name, number), records, history, asked)
    if drawn.after is None:
        side.unusable.append(drawn.why)
        return
    logs = log_probabilities(drawn.after)
    side.vectors.append(np.exp(logs).ravel())
    for measure, value in scalars(logs, asked, len(case.probes)).items():
        side.scalars.setdefault(measure, []).append(value)


def scalars(logs: Array, asked: Sequence[Record], probes: int) -> dict[str, float]:
    """Return the measures of one system from log probabilities of ``asked``: the first ``probes`` are probes, then victims."""
    own = true_class(logs, asked)
    labels = np.array([record.label for record in asked[:probes]])
    return {
        PROBABILITY.name: float(np.exp(own[:probes]).mean()),
        LOSS.name: float(-own[:probes].mean()),
        ACCURACY.name: float((logs[:probes].argmax(axis=1) == labels).mean()),
        VICTIMS.name: float(np.exp(own[probes:]).mean()),
    }


def _judge(plan: E2Plan, sides: Mapping[str, _Side], look: int) -> Finding:
    """Return the verdict on what was drawn so far, at the level of one look."""
    level = per_look(plan.alpha, plan.looks)
    met, never = (sides[side] for side in SIDES)
    details = _facts(plan, sides, look)
    lost = max(len(side.unusable) / side.drawn for side in sides.values())
    p_values, statistics = dict[str, float](), dict[str, float]()
    if met.unusable or never.unusable:
        counts = np.array([[len(side.unusable), len(side.vectors)] for side in (met, never)])
        p_values["availability"] = float(stats.fisher_exact(counts).pvalue)
    if min(len(met.vectors), len(never.vectors)) >= 2:
        tested = two_sample(
            np.array(met.vectors), np.array(never.vectors), plan.permutations, derived_seed(plan.label, "tests") % 2**32
        )
        p_values |= {name: outcome.p for name, outcome in tested.items()}
        statistics = {name: outcome.statistic for name, outcome in tested.items()}
    details |= {"p_values": p_values, "statistics": statistics}
    rejected = [n for n, no in zip(p_values, holm(list(p_values.values()), level), strict=True) if no]
    if rejected:
        worst = min(rejected, key=lambda name: p_values[name])
        message = (
            f"systems that deleted the records serve otherwise than systems that never met them: {worst}, "
            f"p = {p_values[worst]:.2g} (n = {met.drawn} per side, alpha {plan.alpha})"
        )
        return Finding(CHECK, Verdict.VIOLATED, message, details=details)
    if lost > plan.unusable or min(len(met.vectors), len(never.vectors)) < 2:
        said = "; ".join(f"{name}: {len(side.unusable)} of {side.drawn} {_why(side)}" for name, side in sides.items())
        return Finding(CHECK, Verdict.UNDECIDED, f"too many systems could not be compared ({said})", details=details)
    equivalence = {
        measure.name: tost(np.array(met.scalars[measure.name]), np.array(never.scalars[measure.name]), measure.margin)
        for measure in plan.measures
    }
    details |= {"equivalence_p": equivalence}
    short = [name for name, p in equivalence.items() if p > level]
    n = min(len(met.vectors), len(never.vectors))
    shown = f"n = {n} per side, planned power {plan.joint_power(n):.2f}"
    if short:
        message = f"no difference found, but equivalence is not shown either for: {', '.join(short)} ({shown})"
        return Finding(CHECK, Verdict.UNDECIDED, message, details=details)
    message = f"{len(equivalence)} measures equivalent within their margins, no difference in whole outputs ({shown})"
    return Finding(CHECK, Verdict.HOLDS, message, details=details)


def _why(side: _Side) -> str:
    return " or ".join(sorted(set(side.unusable))) or "unusable"


def _facts(plan: E2Plan, sides: Mapping[str, _Side], look: int) -> dict[str, Any]:
    """Return what the plan fixed, what was drawn, and the power that is left of it."""
    n = min(len(side.vectors) for side in sides.values())
    spread = {
        measure.name: max(float(np.std(side.scalars[measure.name], ddof=1)) for side in sides.values())
        for measure in plan.measures
        if n >= 2
    }
    return {
        "n": n,
        "n_needed": plan.needed,
        "margin": {measure.name: measure.margin for measure in plan.measures},
        "deviation_bound": {measure.name: measure.deviation for measure in plan.measures},
        "deviation": spread,
        "alpha": plan.alpha,
        "power": {
            "wanted": plan.power,
            "planned": plan.joint_power(plan.size),
            "achieved": plan.joint_power(n),
            "at_observed_deviation": plan.joint_power(n, spread),
        },
        "looks": {"planned": plan.looks, "taken": look},
        "permutations": plan.permutations,
        "unusable": {name: len(side.unusable) for name, side in sides.items()},
        "samples": {
            m.name: {name: side.scalars.get(m.name, []) for name, side in sides.items()} for m in plan.measures
        },
    }
