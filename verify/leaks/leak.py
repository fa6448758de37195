"""What a planted fault is: a small change of the real system, and the checks that must catch it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from s3t.building import Builder, Job
from s3t.contract import Cost, Progress
from s3t.engine.mode import FORMS
from s3t.errors import DivergedError
from s3t.facts import Facts
from s3t.plan import Plan
from s3t.records import Record
from s3t.runs import Run
from s3t.serving import Serving
from s3t.system import System
from s3t.training import Trained
from verify.brief import Scope
from verify.leaks.settings import Need, Setting

Step = Literal["delete", "delete beside", "delete another", "refresh"]
"""What happens after the fit: the victim, a record of the next slice, or one of another shard is deleted; or a refresh."""

Channel = Literal["rows", "statistics", "randomness", "memory", "selection", "erasure", "lineage", "numerics"]
"""How the deleted record gets through: rows or statistics of other slots, random streams, state kept in memory between
nodes or requests, the choice of what is served, files left behind, false records, or numbers that compare as they like."""

LINEAGE, SCAN, ROWS, RESIDUE = "E0 lineage", "E0 scan", "E0 rows", "E0 residue"
CLEANROOM, NEVER, LOUD = "E1a clean room", "E1b never ingested", "E1c loud"
CHECKS = (LINEAGE, SCAN, ROWS, RESIDUE, CLEANROOM, NEVER, LOUD)

OF_TEXTS: dict[str, str] = dict.fromkeys(FORMS, "it is about texts of several lengths, and these engines read images")
"""Why a fault is absent from the engines that read images."""
BY_LENGTH: dict[str, tuple[str, ...]] = dict.fromkeys(FORMS, (LOUD,))
"""Loud content shows these faults by being longer than what it replaces, and images all have one length."""

NOT_PLANTED: dict[int, str] = {
    37: "requests chosen from served outputs are a property of the requester: there is no step of the system to alter, and "
    "every bit is right for the requests that were made; over fresh slot keys the retained records are not spread as "
    "they should be, which verify.leaks.adaptive demonstrates with an exact test",
}
"""Faults of the catalogue that cannot be planted in any mode, and why."""


class Planted(System):
    """The real system, with room for a faulty builder, serving or view of the facts. As it stands it is clean.

    ``finished``: gives the folder of a clean run that was fitted on the given records, to begin with. ``tolerant``: train
    on where a loss is NaN.
    """

    builder: ClassVar[type[Builder]] = Builder
    serving: ClassVar[type[Serving]] = Serving
    facts: ClassVar[type[Facts]] = Facts
    finished: Callable[[Sequence[Record]], Path] | None = None
    tolerant: bool = False
    _worker: Builder | None = None

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        """Fit, or begin with a copy of a finished clean run."""
        if self.finished and not self.path.exists():
            shutil.copytree(self.finished(records), self.path)
        return super().fit(records, progress)

    def _attach(self, run: Run) -> None:
        super()._attach(run)
        self._facts = self.facts(run.ledger, run.config.plan)

    def _builder(self, run: Run, facts: Facts) -> Builder:
        if self._worker is None:  # one worker for the life of the system: what it remembers, it remembers
            self._worker = self.builder(run, self._loaded(), facts)
            self._worker.finite = not self.tolerant
            if self.builder.run_kernel is not Builder.run_kernel:
                alone = partial(_one_by_one, self._worker)
                self._worker.run_kernels = alone  # type: ignore[method-assign]
        return self._worker

    def _serving_for(self, run: Run) -> Serving:
        return self.serving(run, self._loaded())


def _one_by_one(worker: Builder, plan: Plan, jobs: Sequence[Job]) -> list[Trained | DivergedError]:
    """Train the nodes of a group each in a group of its own, by the step that a fault has altered."""
    return [worker.run_kernel(plan, job.node, job.stored) for job in jobs]


def planted(fault: type[Builder] | type[Serving] | type[Facts]) -> type[Planted]:
    """Return the system in which ``fault`` takes the place of the class that it alters."""
    place = next(
        name for name, kind in (("builder", Builder), ("serving", Serving), ("facts", Facts)) if _is(fault, kind)
    )
    return type(f"Planted{fault.__name__}", (Planted,), {place: fault, "__doc__": fault.__doc__})


def _is(fault: type[Any], kind: type[Any]) -> bool:
    return issubclass(fault, kind)


@dataclass(frozen=True, eq=False)
class Leak:
    """One fault of the catalogue. ``number`` is VERIFICATION's; ``caught_by``: the checks that MUST report VIOLATED, in
    every setting, every mode, and for every victim.

    ``sometimes``: checks that catch it in some settings or for some victims alone, each with the reason. ``blind``: which
    checks cannot see it by nature, and why. ``story``: what happens after the fit. ``scope``: the nodes that the clean
    room must retrain to see it. ``needs``: adapts a setting to one in which the fault has any effect. ``absent``: engines
    in which it cannot be planted (:attr:`s3t.engine.mode.Mode.name`), each with the reason. ``hidden``: those of
    ``caught_by`` from which an engine hides it, by the engine, with the reason beside it. The fault's docstring says why a real
    system falls into it.
    """

    number: int
    name: str
    channel: Channel
    plant: type[Planted]
    caught_by: tuple[str, ...]
    story: tuple[Step, ...] = ("delete",)
    scope: Scope = "served"
    blind: str = ""
    sometimes: Mapping[str, str] = field(default_factory=dict)
    needs: Need | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    hidden: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def due(self, setting: Setting) -> tuple[str, ...]:
        """Return the checks that must catch it in a setting."""
        return tuple(check for check in self.caught_by if check not in self.hidden.get(setting.mode.name, ()))

    @property
    def why(self) -> str:
        """Why a real system falls into it."""
        return " ".join((self.plant.__doc__ or "").split())

    @property
    def trains_cleanly(self) -> bool:
        """Whether the first fit is that of the clean system, so that a copy of a clean run serves as well."""
        plant = self.plant
        return plant.builder is Builder and plant.fit is Planted.fit and plant._start is System._start

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of the checks that must catch it."""
        return tuple(dict.fromkeys(check.split()[0] for check in self.caught_by))


def not_planted(leaks: Sequence[Leak], engine: str) -> dict[int, str]:
    """Return the faults of the catalogue that cannot be planted in ``engine``, by number, and why."""
    return NOT_PLANTED | {
        leak.number: f"{engine} engine: {leak.absent[engine]}" for leak in leaks if engine in leak.absent
    }
