"""An analytic head, and its share beside chains, chosen on the validation split alone, which is never deletable.

No training record is read, here or in what is called: the choice is the same whatever they say (docs/ANALYTIC.md, "Tuned").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from s3t.analytic.head import AnalyticHead, Form
from s3t.ensembling import among, answer
from s3t.errors import RecipeError
from s3t.plan import MakePlan
from s3t.records import Layout, Recipe
from s3t.tuning import Case, fitted

if TYPE_CHECKING:
    from s3t.analytic.choosing import Choice

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""What is tried for the weight of an analytic head beside chains."""


@dataclass(frozen=True)
class TunedHead:
    """The best head of each form, its ridge carried over to ``records``; the best of them is chosen, of equals the first.

    ``recipe``: by which its records were read (``max_length``). ``shares``: by method of the chains beside it, the score of
    every share that was tried.
    """

    choices: Mapping[Form, Choice]
    records: int
    recipe: Recipe
    shares: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    @property
    def best(self) -> Choice:
        """The choice of highest score."""
        return max(self.choices.values(), key=lambda choice: choice.score)

    def share(self, method: str) -> float:
        """Return the share of highest score beside a method's chains, of equals the largest."""
        scores = self.shares[method]
        return max(scores, key=lambda share: (scores[share], share))

    def to_json(self) -> dict[str, Any]:
        """Return all that was tried, and what was chosen."""
        tried = {
            form: {
                "ridge": choice.ridge,
                "temperature": choice.head.temperature,
                "score": choice.score,
                "cross_entropy": choice.cross_entropy,
                "scores": {str(ridge): score for ridge, score in choice.scores.items()},
            }
            for form, choice in self.choices.items()
        }
        shares = {
            method: {"best": self.share(method), "scores": {str(share): score for share, score in scores.items()}}
            for method, scores in self.shares.items()
        }
        about = {"fitted_on": self.best.records, "carried_to": self.records}
        return {"chosen": self.best.head.to_json(), **about, "forms": tried, "shares": shares}


def tune_head(
    case: Case,
    head: AnalyticHead,
    recipe: Recipe,
    forms: Sequence[Form],
    ridges: Sequence[float],
    records: int | None = None,
) -> TunedHead:
    """Choose ridge and temperature of ``head`` for every form on the validation split alone, and carry the ridge over.

    ``records``: to so many; None: to as many as there are training records, of which nothing else is looked at. Random features
    are drawn from the first seed. Errors as :func:`s3t.analytic.choosing.choose` and ``Reader``.
    """
    from s3t.analytic.choosing import choose, folds, read
    from s3t.analytic.features import Reader

    validation, classes = case.data.validation, case.data.classes
    part = read(Reader(case.backbone, head, case.seeds[0]), case.backbone, validation, classes, recipe.max_length)
    fold, count = folds(validation), len(case.data.train) if records is None else records
    found = {}
    for form in forms:
        choice = choose(
            replace(head, form=form), part, len(classes), ridges, lambda scores, _: case.score(scores, validation), fold
        )
        found[form] = choice.carried(count)
    return TunedHead(found, count, recipe)


def tune_share(
    case: Case, made: tuple[Layout, MakePlan], recipe: Recipe, head: TunedHead, tried: Sequence[float] = SHARES
) -> dict[float, float]:
    """Return the mean score over seeds by share of an analytic head beside the chains of a plan; all chains live.

    Chains and head are trained on one part of the validation split and scored on the other: RecipeError for a case that is not
    ``alone``, for then the share would depend on training records.
    """
    if not case.alone:
        raise RecipeError("a share chosen beside chains of training records depends on them; tune on validation alone")
    (layout, make), (trained, judged) = made, case.split()
    beside = head.best.carried(len(trained)).head
    plans = {share: make(layout, recipe, case.backbone.layers).with_head(beside, share) for share in tried}
    found: dict[float, list[float]] = {share: [] for share in plans}
    for seed in case.seeds:
        with fitted(case, plans[tried[0]], recipe, seed) as system:
            outputs, _ = system.served().outputs([record.inputs for record in judged])
        for share, plan in plans.items():
            scores = answer(outputs, plan, recipe.ensemble, among(plan, outputs.lengths))
            found[share].append(case.score(scores, judged))
    return {share: fmean(scores) for share, scores in found.items()}
