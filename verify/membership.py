"""E3: can an attacker tell that a deleted record was ever there? A lower bound on epsilon from a fixed number of guesses.

LiRA (Carlini et al. 2022): shadow systems with and without the deleted records calibrate Gaussians of the logit-scaled
confidence in each record's true class; then systems are fitted of which a coin decides whether they met (and deleted) the
records, and the attack guesses the coin. Attacks:

- ``post`` sees what is served after the deletion; ``post loss`` is the same with the loss alone (Yeom et al. 2018). They
  decide the level, for every victim alone and for all victims together.
- ``pre`` sees the model before the deletion: the positive control. If it cannot tell members, the attack has no power here;
  it is held to the level of the attacks that decide.
- ``pre+post`` sees both checkpoints (arXiv 2505.24379); in the other world another record is deleted, so that a deletion
  happens in both. A measured limit of every exact method; it turns no verdict.

Cost: one fit and history per shadow and guess, and another for those without the records if ``pre+post`` is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3t.contract import Progress
from s3t.errors import S3TError
from s3t.records import Record
from verify.case import CannotPlayError, Case, Event
from verify.report import Finding, Verdict
from verify.sampling import Drawn, confidences, derived_seed, draw, log_probabilities, true_class, workplace
from verify.statistics import Epsilon, StatisticsError, epsilon_lower_bound

CHECK = "E3 membership"
DECIDING = ("post", "post loss")
TOGETHER = "all victims"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class E3Plan:
    """What E3 will do, frozen before any data is seen.

    ``guesses`` systems are guessed and ``shadows`` calibrate the attack (half of them with the records). ``victims``: how
    many deleted records are attacked. ``confidence`` of the whole statement: it is split over all attacks that decide.
    ``checkpoints``: whether ``pre+post`` is measured too. ``label`` fixes seeds and coins.
    """

    guesses: int = 48
    shadows: int = 32
    victims: int = 3
    confidence: float = 0.95
    delta: float = 0.0
    checkpoints: bool = True
    label: str = "E3"

    def __post_init__(self) -> None:
        """Refuse what cannot be planned: StatisticsError names the value."""
        if self.guesses < 1 or self.victims < 1 or self.shadows < 4:
            raise StatisticsError(
                f"guesses={self.guesses}, victims={self.victims}, shadows={self.shadows}: give at least 1, 1 and 4"
            )
        epsilon_lower_bound(0, 1, 0, 1, self.delta, self.confidence)

    def coin(self, number: int) -> int:
        """Return whether guess ``number`` met the records (1) or not (0), by hash."""
        return derived_seed(self.label, "coin", number) % 2


@dataclass(frozen=True)
class World:
    """What one system gives the attacks: by attack, features of shape (victims, k)."""

    met: int
    features: Mapping[str, Array]


@dataclass(frozen=True)
class Attack:
    """A calibrated Gaussian likelihood ratio per victim and thresholds, all from shadows alone."""

    means: Array
    precisions: Array
    thresholds: Array
    joint_threshold: float

    def ratios(self, features: Array) -> Array:
        """Return the log-likelihood ratio "met" against "never met" of each victim for ``features`` (victims, k)."""
        return log_ratios(features, self.means, self.precisions)


class _Unusable(S3TError):
    """A system of E3 could not be asked."""


def check_membership(case: Case, plan: E3Plan, progress: Progress | None = None) -> list[Finding]:
    """Calibrate on shadows, guess the coins of fresh systems, and bound epsilon from below."""
    victims = case.victims[: plan.victims]
    if not victims:
        return [Finding(CHECK, Verdict.HOLDS, "nothing was deleted: there is no membership to hide")]
    try:
        worlds = Worlds(case, plan, victims, progress)
        shadows = [worlds.world("shadow", number, number % 2) for number in range(plan.shadows)]
        attacks = {name: calibrate(shadows, name) for name in shadows[0].features}
        fresh = [worlds.world("guess", number, plan.coin(number)) for number in range(plan.guesses)]
    except (CannotPlayError, _Unusable) as error:
        return [Finding(CHECK, Verdict.UNDECIDED, str(error))]
    except S3TError as error:
        return [Finding(CHECK, Verdict.UNDECIDED, f"the systems cannot be attacked: {error}")]
    return [_verdict(plan, victims, attacks, fresh, worlds.decoys_share_slot)]


class Worlds:
    """Fits systems of either world and reads off the attacks' features."""

    def __init__(self, case: Case, plan: E3Plan, victims: Sequence[Record], progress: Progress | None) -> None:
        self.case, self.plan, self.victims, self.progress = case, plan, victims, progress
        self.without = case.never_ingested()
        self.decoys_share_slot = callable(getattr(case.lab, "slot", None))
        self.done = 0

    def world(self, purpose: str, number: int, met: int) -> World:
        """Fit system ``number`` of ``purpose``, which met the records or not, and return what the attacks see."""
        case = self.case
        records, history = (case.records, case.history) if met else (case.retained, self.without)
        seed = derived_seed(self.plan.label, purpose, number)
        before, after = self._seen(seed, records, history)
        features = {
            "pre": _column(confidences(before, self.victims)),
            "post": _column(confidences(after, self.victims)),
            "post loss": _column(-true_class(after, self.victims)),
        }
        if self.plan.checkpoints:
            if not met:
                other = derived_seed(self.plan.label, purpose, "another deleted", number)
                before, after = self._seen(other, records, self.decoyed(purpose, number))
            first, last = confidences(before, self.victims), confidences(after, self.victims)
            features["pre+post"] = np.stack([first, first - last], axis=1)
        self.done += 1
        if self.progress:
            self.progress(self.done, self.plan.shadows + self.plan.guesses, "E3: systems fitted")
        return World(met, features)

    def _seen(self, seed: int, records: Sequence[Record], history: Sequence[Event]) -> tuple[Array, Array]:
        with workplace() as folder:
            drawn: Drawn = draw(self.case, folder / "run", seed, records, history, self.victims)
        if drawn.before is None or drawn.after is None:
            raise _Unusable(
                f"a system could not be attacked: it was {drawn.why}; delete less, or refresh before the audit"
            )
        return log_probabilities(drawn.before), log_probabilities(drawn.after)

    def decoyed(self, purpose: str, number: int) -> tuple[Event, ...]:
        """Return the history with retained records deleted in place of the victims, from the same slots if these are known.

        Another slot would give the world away by what was dropped, not by who was there.
        """
        left = sorted(self.case.retained, key=lambda r: derived_seed(self.plan.label, purpose, number, r.id))
        place: Any = getattr(self.case.lab, "slot", None) if self.decoys_share_slot else None
        decoys: dict[str, str] = {}
        for name in sorted(self.case.deleted):
            near = [r for r in left if place is None or place(r.id) == place(name)] or left
            if not near:
                raise CannotPlayError(
                    "no retained record is left to be deleted in place of a victim; leave out pre+post"
                )
            decoys[name] = near[0].id
            left.remove(near[0])
        return tuple(replace(event, ids=tuple(decoys[name] for name in event.ids)) for event in self.case.history)


def _column(values: Array) -> Array:
    return values[:, None]


def calibrate(shadows: Sequence[World], name: str) -> Attack:
    """Fit the attack ``name`` on the shadows: means per world, one covariance for both, thresholds of best accuracy.

    One covariance for both worlds, as Carlini et al. 2022 (section VI-C) find best where shadows are few.
    """
    met = np.array([world.features[name] for world in shadows if world.met])
    never = np.array([world.features[name] for world in shadows if not world.met])
    means = np.stack([never.mean(axis=0), met.mean(axis=0)])
    centred = np.concatenate([met - means[1], never - means[0]])
    covariances = np.einsum("nvi,nvj->vij", centred, centred) / max(1, len(centred) - 2)
    scale = np.trace(covariances, axis1=1, axis2=2) / covariances.shape[1]
    ridge = np.maximum(1e-3 * scale, 1e-12)[:, None, None] * np.eye(covariances.shape[1])
    precisions = np.linalg.inv(covariances + ridge)
    coins = np.array([world.met for world in shadows])
    ratios = np.array([log_ratios(world.features[name], means, precisions) for world in shadows])
    thresholds = np.array([threshold(ratios[:, v], coins) for v in range(ratios.shape[1])])
    return Attack(means, precisions, thresholds, threshold(ratios.sum(axis=1), coins))


def log_ratios(features: Array, means: Array, precisions: Array) -> Array:
    """Return log N(x; met) - log N(x; never) per victim; ``means`` (2, victims, k), ``precisions`` (victims, k, k)."""
    apart = [np.einsum("vi,vij,vj->v", features - mean, precisions, features - mean) for mean in means]
    return np.asarray((apart[0] - apart[1]) / 2, dtype=np.float64)


def threshold(ratios: Array, coins: NDArray[np.int_]) -> float:
    """Return the threshold above which "met" is guessed: best balanced accuracy on the shadows, then nearest to 0."""
    ordered = np.unique(ratios)
    candidates = [0.0, *((ordered[1:] + ordered[:-1]) / 2)]

    def merit(cut: float) -> tuple[float, float]:
        guessed = ratios > cut
        return float(guessed[coins == 1].mean() - guessed[coins == 0].mean()), -abs(cut)

    return float(max(candidates, key=merit))


def roc(ratios: Sequence[float], coins: Sequence[int]) -> list[list[float]]:
    """Return the ROC points [false positive rate, true positive rate] over all thresholds, from (0, 0) to (1, 1)."""
    positives, negatives = max(1, sum(coins)), max(1, len(coins) - sum(coins))
    points = [[0.0, 0.0]]
    for cut in sorted(set(ratios), reverse=True):
        above = [coin for ratio, coin in zip(ratios, coins, strict=True) if ratio >= cut]
        points.append([(len(above) - sum(above)) / negatives, sum(above) / positives])
    return points if points[-1] == [1.0, 1.0] else [*points, [1.0, 1.0]]


def _verdict(
    plan: E3Plan, victims: Sequence[Record], attacks: Mapping[str, Attack], fresh: Sequence[World], share: bool
) -> Finding:
    coins = [world.met for world in fresh]
    alone = len(victims) if len(victims) > 1 else 0
    counted = len(DECIDING) * (alone + 1)
    strict = 1 - (1 - plan.confidence) / counted
    bounds: dict[str, dict[str, Epsilon]] = {}
    curves = {}
    for name, attack in attacks.items():
        ratios = np.array([attack.ratios(world.features[name]) for world in fresh])
        level = plan.confidence if name == "pre+post" else strict
        together = ratios.sum(axis=1)
        bounds[name] = {TOGETHER: _bound(together > attack.joint_threshold, coins, plan.delta, level)}
        for v, victim in enumerate(victims[:alone]):
            bounds[name][victim.id] = _bound(ratios[:, v] > attack.thresholds[v], coins, plan.delta, level)
        curves[name] = roc([float(r) for r in together], coins)
    details = {
        "guesses": plan.guesses,
        "met": sum(coins),
        "shadows": plan.shadows,
        "confidence": plan.confidence,
        "confidence_each": strict,
        "delta": plan.delta,
        "victims": [victim.id for victim in victims],
        "epsilon_low": {name: each[TOGETHER].low for name, each in bounds.items()},
        "tpr": {name: _rate(each[TOGETHER].tpr) for name, each in bounds.items()},
        "fpr": {name: _rate(each[TOGETHER].fpr) for name, each in bounds.items()},
        "by_victim": {name: {who: bound.low for who, bound in each.items()} for name, each in bounds.items()},
        "roc": curves,
        "pre+post deletes another of the same slot": share,
    }
    told = f"{plan.guesses} guesses, {plan.shadows} shadows, confidence {plan.confidence}"
    name, who = max(((n, w) for n in DECIDING for w in bounds[n]), key=lambda pair: bounds[pair[0]][pair[1]].low)
    worst, control = bounds[name][who], bounds["pre"][TOGETHER]
    if worst.low > 0:
        message = (
            f"what is served after the deletion tells that {who} had been there: epsilon at least {worst.low:.2f} "
            f"(attack {name}, TPR {worst.tpr:.2f}, FPR {worst.fpr:.2f}; {told})"
        )
        return Finding(CHECK, Verdict.VIOLATED, message, details=details)
    if control.low <= 0:
        message = (
            f"the attack has no power here: not even before the deletion does it tell members (TPR {control.tpr:.2f}, "
            f"FPR {control.fpr:.2f}; {told}); more guesses or longer training would be needed"
        )
        return Finding(CHECK, Verdict.UNDECIDED, message, details=details)
    limit = f"; with both checkpoints at least {bounds['pre+post'][TOGETHER].low:.2f}" if "pre+post" in bounds else ""
    shown = f"no leakage found by an attack that shows epsilon of at least {control.low:.2f} before the deletion"
    return Finding(CHECK, Verdict.HOLDS, f"{shown} ({told}){limit}", details=details)


def _bound(guessed: NDArray[np.bool_], coins: Sequence[int], delta: float, confidence: float) -> Epsilon:
    met = np.array(coins, dtype=bool)
    hits, false = int((guessed & met).sum()), int((guessed & ~met).sum())
    return epsilon_lower_bound(hits, int(met.sum()), false, int((~met).sum()), delta, confidence)


def _rate(value: float) -> float | None:
    return None if np.isnan(value) else value
