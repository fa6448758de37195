"""Hyper-parameters, chosen on the validation split with the same budget for every method, and written down.

A trial trains one system with one order per shard on the training split and scores it on the validation split; the
test split is never read. Every method has the same number of trials: all combinations of its grid, or as many of them, drawn
by a fixed seed, as the smallest grid has. A grid is fixed beforehand, so the choice is a function of the data; it depends on
training records, so exact unlearning of the *choice* needs data that is never deleted (docs/TUNING.md): trials of a case
that is ``alone`` train on a part of the validation split and are scored on the rest. An analytic head is always chosen so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from s3t.analytic.head import AnalyticHead
from s3t.data.tasks import metrics_of
from s3t.errors import DataError, DivergedError, RecipeError, did_you_mean
from s3t.metrics import evaluate
from s3t.plan import MakePlan, Plan
from s3t.reading import parse_json
from s3t.records import Dataset, Layout, Recipe, Record

if TYPE_CHECKING:
    from s3t.backbone import Backbone
    from s3t.floors import TunedHead
    from s3t.system import System

FORMAT = 1
LORA_GRID: Mapping[str, tuple[float, ...]] = {"lr": (1e-3, 2e-3, 4e-3), "head_lr": (3e-3, 1e-2)}
FULL_GRID: Mapping[str, tuple[float, ...]] = {"lr": (5e-5, 1e-4, 2e-4), "head_lr": (3e-3, 1e-2)}
"""What is tried where nothing is said: full fine-tuning wants smaller steps than LoRA."""


@dataclass(frozen=True)
class Trial:
    """``scores``: the metric on validation, one per seed, 0 to 1 (Matthews' correlation: -1 to 1); ``seconds`` of all seeds.

    None in the place of a score: training diverged.
    """

    method: str
    recipe: Recipe
    scores: tuple[float | None, ...]
    seconds: float

    @property
    def score(self) -> float:
        """The mean over seeds; minus infinity if one diverged."""
        found = [score for score in self.scores if score is not None]
        return fmean(found) if len(found) == len(self.scores) else float("-inf")


@dataclass(frozen=True)
class Case:
    """What a trial shares with all others: data, base model, seeds, and the mode of the engine.

    ``alone``: trials are trained on a part of the validation split and scored on the rest, so that no training record is read.
    """

    data: Dataset
    backbone: Backbone
    seeds: tuple[int, ...] = (0,)
    engine: str = "reference"
    precision: str = "auto"
    alone: bool = False

    def __post_init__(self) -> None:
        if not self.data.validation:
            raise DataError(
                f"data {self.data.name!r} has no validation records, which recipes are chosen on; give some"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise RecipeError(f"seeds {self.seeds} are not usable; give distinct ones, at least one")

    @property
    def metric(self) -> str:
        """The first official metric of the data; accuracy where there is none."""
        return metrics_of(self.data.name, self.data.classes)[0]

    def split(self) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
        """Return the records that trials are trained on, and those that they are scored on.

        DataError where validation has too few groups for both.
        """
        if not self.alone:
            return self.data.train, self.data.validation
        from s3t.analytic.choosing import folds

        judging = folds(self.data.validation) == 0
        if judging.all():
            raise DataError(
                f"the validation records of {self.data.name!r} are of one group, so they cannot be split; give more"
            )
        parts = zip(self.data.validation, judging.tolist(), strict=True)
        sides = [(record, judged) for record, judged in parts]
        return tuple(r for r, judged in sides if not judged), tuple(r for r, judged in sides if judged)

    def score(self, scores: Any, records: Sequence[Record]) -> float:
        """Return the metric of ``scores`` (records, classes)."""
        return evaluate([self.metric], scores, records, self.data.classes)[self.metric]


def grid(base: Recipe, values: Mapping[str, Sequence[Any]]) -> list[Recipe]:
    """Return ``base`` with every combination of ``values`` by field. RecipeError for unknown fields, and for bad values."""
    fields = [field.name for field in dataclasses.fields(Recipe)]
    for name, tried in values.items():
        if name not in fields:
            raise RecipeError(f"unknown Recipe key {name!r}{did_you_mean(name, fields)}; it cannot be in a grid")
        if not tried:
            raise RecipeError(f"the grid has no value for {name!r}; give at least one")
    found = [
        dataclasses.replace(base, **dict(zip(values, chosen, strict=True))) for chosen in product(*values.values())
    ]
    return list(dict.fromkeys(found))


def same_budget(grids: Mapping[str, Sequence[Recipe]], trials: int | None = None) -> dict[str, list[Recipe]]:
    """Return as many recipes of each grid as the smallest has, or ``trials`` if that is fewer; drawn by a fixed seed.

    RecipeError for fewer than one.
    """
    count = min((len(recipes) for recipes in grids.values()), default=0)
    count = count if trials is None else min(count, trials)
    if count < 1:
        raise RecipeError(f"{count} trials per method are not possible: give at least one")
    drawn = {}
    for method, recipes in grids.items():
        places = random.Random(f"s3t tuning v1 {method}").sample(range(len(recipes)), count)
        drawn[method] = [recipes[place] for place in sorted(places)]
    return drawn


def tune(
    case: Case,
    plans: Mapping[str, tuple[Layout, MakePlan]],
    recipes: Mapping[str, Sequence[Recipe]],
    each: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Run every trial and return them in order. ``plans``: layout and constructor by method; ``each`` sees each as it ends."""
    trials = []
    for method, tried in recipes.items():
        layout, make = plans[method]
        for recipe in tried:
            began = time.perf_counter()
            plan = make(layout, recipe, case.backbone.layers)
            scores = tuple(_score(case, plan, recipe, seed) for seed in case.seeds)
            trials.append(Trial(method, recipe, scores, time.perf_counter() - began))
            each(trials[-1])
    return trials


def best(trials: Iterable[Trial]) -> dict[str, Trial]:
    """Return each method's best trial; of equal ones the first. RecipeError for a method of which all diverged."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.method not in found or trial.score > found[trial.method].score:
            found[trial.method] = trial
    for method, trial in found.items():
        if trial.score == float("-inf"):
            raise RecipeError(f"every recipe tried for {method} diverged; give smaller learning rates")
    return found


def write(
    path: Path,
    case: Case,
    trials: Sequence[Trial],
    layouts: Mapping[str, Layout],
    head: TunedHead | None = None,
) -> dict[str, Any]:
    """Write what was tried and chosen to ``path``, all or nothing, and return it. Nothing of it is content of a record."""
    from s3t.backbone import environment
    from s3t.engine.mode import choose

    told: dict[str, Any] = {
        "format": FORMAT,
        "data": {"name": case.data.name, "source": case.data.source, "digest": case.data.digest},
        "records": {"train": len(case.data.train), "validation": len(case.data.validation)},
        "trained_on": "validation" if case.alone or not trials else "train",
        "model": {"name": case.backbone.name, "digest": case.backbone.digest},
        "environment": environment(case.backbone.device, choose(case.engine, case.precision)),
        "seeds": list(case.seeds),
        "metric": case.metric,
        "layouts": {method: layout.to_json() for method, layout in layouts.items()},
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "best": {method: trial.recipe.to_json() for method, trial in best(trials).items()},
    }
    if head is not None:
        told["best"]["analytic"], told["head"] = head.recipe.to_json(), head.to_json()
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written ({error.strerror}); choose another file") from error
    finally:
        temporary.unlink(missing_ok=True)
    return told


def read_best(path: Path, method: str) -> Recipe:
    """Return the recipe that was chosen for ``method``. RecipeError if the file cannot be read, or has none for it."""
    chosen = _told(path)["best"]
    if method not in chosen:
        raise RecipeError(
            f"{path} has no recipe for {method!r}{did_you_mean(method, chosen)}; it has {', '.join(chosen)}"
        )
    return Recipe.from_json(chosen[method])


def read_head(path: Path, model: str, digest: str) -> AnalyticHead:
    """Return the analytic head that was chosen for features of the base model of this name and ``digest``.

    RecipeError if the file cannot be read, has none, or has one for another model.
    """
    told = _told(path)
    if "head" not in told:
        raise RecipeError(
            f"{path} has no analytic head, only {', '.join(told['best'])}; give a file of `s3t tune --method analytic`"
        )
    try:
        about, chosen = dict(told["model"]), dict(told["head"]["chosen"])
        name, found = about["name"], about["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as a file of `s3t tune` ({error!r}); give one") from error
    if found != digest:
        raise RecipeError(
            f"{path} has an analytic head for features of {name!r}, not of {model!r} as it is here; tune one on that"
        )
    return AnalyticHead.from_json(chosen)


def _told(path: Path) -> dict[str, Any]:
    """Return what a file of `s3t tune` says. RecipeError for any other."""
    try:
        told = parse_json(path.read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']!r} is not {FORMAT}")
        return {**told, "best": dict(told["best"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path} cannot be read as a file of `s3t tune` ({error}); give one") from error


@contextmanager
def fitted(case: Case, plan: Plan, recipe: Recipe, seed: int) -> Iterator[System]:
    """A system for as long as it is needed, trained as the case says. DivergedError if that fails."""
    from s3t.system import System

    key = hashlib.sha256(f"s3t tuning key {seed}".encode()).digest()
    how: dict[str, Any] = {"engine": case.engine, "precision": case.precision, "allow_empty": True}
    with tempfile.TemporaryDirectory(prefix="s3t-tune-") as scratch:
        system = System.create(
            Path(scratch) / "run",
            plan,
            recipe,
            model=case.backbone,
            classes=case.data.classes,
            seed=seed,
            key=key,
            **how,
        )
        with closing(system):
            system.fit(case.split()[0])
            yield system


def _score(case: Case, plan: Plan, recipe: Recipe, seed: int) -> float | None:
    judged = case.split()[1]
    try:
        with fitted(case, plan, recipe, seed) as system:
            return case.score(system.predict([record.inputs for record in judged]), judged)
    except DivergedError:
        return None
