"""The bench: 60 records on the tiny model, a fit, a story of deletions, an audit; and the table of verdicts.

The slots' sizes and the victim are chosen so that faults matter: the victim is the only long row (statistics move with
it), it lies in slice 1 of shard 0 (another order serves then, and most nodes are trained after one that has read it),
and it alone makes the first order's first two slices the larger ones.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from s3t import runs
from s3t.backbone import Backbone, load
from s3t.building import Builder
from s3t.contract import Progress
from s3t.describing import describe
from s3t.facts import Facts
from s3t.partition import slot
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.runs import Run, RunConfig
from verify.audit import DEFAULT, audit
from verify.case import SAME, Variant
from verify.laboratory import poison, quiet_word
from verify.leaks.leak import CHECKS, Leak, Planted
from verify.report import Report, Verdict

KEY = bytes(range(32))
LAYOUT = Layout(shards=2, slices=3, budget=3)
RECIPE = Recipe(epochs=2.0, batch_size=6, window=2, dropout=0.1, rank=2)
CLASSES = ("a", "b", "c")
SIZES = {(0, 0): 10, (0, 1): 11, (0, 2): 10, (1, 0): 10, (1, 1): 9, (1, 2): 10}
WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty")
CLEAN = Leak(0, "the clean system", "rows", Planted, ())
"""The control: the same bench, no fault. Every check must hold."""


def make_records() -> tuple[list[Record], Record, Record]:
    """Return the training records, the victim (slot 0, 1) and another one to delete (slot 1, 2)."""
    left, records = dict(SIZES), list[Record]()
    for number in range(1000):
        name = f"row-{number:04d}"
        place = slot(KEY, name, LAYOUT)
        if left[place]:
            left[place] -= 1
            records.append(Record(name, {"text": _text(len(records))}, (0, 1, 2, 0)[len(records) % 4]))
    first, other = (next(i for i, r in enumerate(records) if slot(KEY, r.id, LAYOUT) == s) for s in ((0, 1), (1, 2)))
    rare = " ".join(f"item{number}" for number in range(len(records)))
    records[first] = Record(records[first].id, {"text": f"{_text(first)} {rare}"}, records[first].label)
    return records, records[first], records[other]


def _text(number: int) -> str:
    words = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 7, 2, 9, 4, 6, 8, 5, 1)]
    return " ".join([*words[: 4 + number % 7], f"item{number}"])


class Bench:
    """Plays faults in ``folder``, which must exist. The clean run that many of them start from is fitted once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records, self.victim, self.other = make_records()
        probes = [Record(f"probe-{i:03d}", {"text": _text(i + 100)}, i % 3) for i in range(8)]
        self.evaluation: tuple[Sequence[Record], Sequence[Record]] = ((), probes)
        self.backbone: Backbone = load("tiny")
        plan = s3t_plan(LAYOUT, RECIPE, self.backbone.layers)
        self.config: RunConfig = describe(plan, RECIPE, self.backbone, {"classes": list(CLASSES)}, seed=3)

    def system(self, leak: Leak, folder: Path) -> Planted:
        """Describe a faulty system in ``folder``."""
        given = {"key": KEY, "evaluation": self.evaluation, "backbone": self.backbone}
        return leak.plant(folder, self.config, allow_empty=True, **given)  # type: ignore[arg-type]

    def reference(self, leak: Leak, folder: Path, gone: frozenset[str]) -> Planted:
        """Describe a faulty system that is to be fitted without the ids ``gone``; where the fit is clean, begin with it."""
        if leak.trains_cleanly:
            shutil.copytree(self._clean(gone), folder)
        return self.system(leak, folder)

    def _clean(self, gone: frozenset[str] = frozenset()) -> Path:
        """Return the folder of a clean run that never had the ids ``gone``, fitted at the first call."""
        folder = self.folder / "-".join(["clean", *sorted(gone)])
        if not folder.exists():
            system = self.system(CLEAN, folder)
            system.fit([record for record in self.records if record.id not in gone])
            system.close()
        return folder

    def fitted(self, leak: Leak) -> Planted:
        """Return a faulty system after its fit, in a folder of its own."""
        folder = Path(tempfile.mkdtemp(prefix=f"leak-{leak.number:02d}-", dir=self.folder)) / "run"
        system = self.system(leak, folder)
        if not leak.trains_cleanly:
            system.fit(self.records)
            return system
        shutil.copytree(self._clean(), folder)
        system._attach(runs.open_run(folder))
        return system

    def play(self, leak: Leak, victim: Record | None = None) -> Planted:
        """Fit the faulty system, let it serve, and play the leak's story; return it live."""
        system = self.fitted(leak)
        system.predict([record.inputs for record in self.evaluation[1]])
        gone = iter(self.deleted(leak, victim))
        for step in leak.story:
            if step == "refresh":
                system.refresh()
            else:
                system.delete([next(gone)])
        return system

    def deleted(self, leak: Leak, victim: Record | None = None) -> list[str]:
        """Return the ids that the leak's story deletes, in order."""
        first = (victim or self.victim).id
        return [first if step == "delete" else self.other.id for step in leak.story if step != "refresh"]

    def audit(self, leak: Leak, levels: Sequence[str] = (), victim: Record | None = None) -> Report:
        """Play the leak and audit it, by default at the levels of the checks that must catch it."""
        system = self.play(leak, victim)
        gone = frozenset(self.deleted(leak, victim))
        try:
            return audit(
                system,
                system.path,
                levels=levels or leak.levels,
                isolate=False,
                lab=BenchLab(self, leak, gone),
                records=self.records,
                scope=leak.scope,
            )
        finally:
            system.close()


class BenchLab:
    """Makes further faulty systems, as :class:`verify.case.Lab` asks; with no variant, one that never meets ``gone``."""

    def __init__(self, bench: Bench, leak: Leak, gone: frozenset[str]) -> None:
        self.bench, self.leak, self.gone = bench, leak, gone

    def make(self, folder: Path, variant: Variant = SAME) -> Planted:
        """Describe a faulty system; a variant is always fitted anew, for its rows may have other content."""
        return self.bench.reference(self.leak, folder, self.gone) if variant == SAME else self._made(folder, variant)

    def _made(self, folder: Path, variant: Variant) -> Planted:
        bench, backbone = self.bench, self.bench.backbone
        seed = bench.config.seed if variant.seed is None else variant.seed
        if variant.poisoned:
            backbone = poison(backbone, variant.poisoned)
        kind = type(self.leak.plant.__name__, (Tolerant, self.leak.plant), {}) if variant.tolerant else self.leak.plant
        config = dataclasses.replace(bench.config, seed=seed)
        made: Planted = kind(folder, config, key=KEY, evaluation=bench.evaluation, backbone=backbone, allow_empty=True)
        return made

    def open(self, folder: Path) -> Planted:
        """Open what a faulty system left, as after a restart."""
        system = self.bench.system(self.leak, folder)
        system._attach(runs.open_run(folder))
        return system

    def slot(self, name: str) -> tuple[int, int]:
        """Return the slot of an id."""
        return slot(KEY, name, LAYOUT)

    def quiet_word(self, avoid: Sequence[Record]) -> str | None:
        """Return a word none of whose tokens occurs in the records ``avoid``."""
        return quiet_word(self.bench.backbone, avoid, RECIPE.max_length)


class Tolerant(Planted):
    """A system that goes on training where the loss is NaN."""

    def _builder(self, run: Run, facts: Facts) -> Builder:
        worker = super()._builder(run, facts)
        worker.finite = False
        return worker


def verdicts(report: Report) -> dict[str, Verdict]:
    """Return the verdict of every check that ran; VIOLATED outweighs UNDECIDED outweighs HOLDS."""
    rank = (Verdict.HOLDS, Verdict.UNDECIDED, Verdict.VIOLATED)
    found: dict[str, Verdict] = {}
    for finding in report.findings:
        found[finding.check] = max(found.get(finding.check, Verdict.HOLDS), finding.verdict, key=rank.index)
    return found


def matrix(
    leaks: Iterable[Leak], folder: Path, levels: Sequence[str] = DEFAULT, progress: Progress | None = None
) -> dict[Leak, Mapping[str, Verdict]]:
    """Play every leak in ``folder`` and return what every check said of it."""
    bench, table, chosen = Bench(folder), dict[Leak, Mapping[str, Verdict]](), list(leaks)
    for done, leak in enumerate(chosen):
        if progress:
            progress(done, len(chosen), leak.name)
        table[leak] = verdicts(bench.audit(leak, levels))
    return table


def describe_matrix(table: Mapping[Leak, Mapping[str, Verdict]]) -> str:
    """Return the table as Markdown: X for caught, ! for a catch that is due and missing, ? for undecided."""
    head = ["| fault | channel | " + " | ".join(CHECKS) + " |", "|---" * (len(CHECKS) + 2) + "|"]
    for leak, said in table.items():
        cells = [_cell(said.get(check), check in leak.caught_by) for check in CHECKS]
        head.append(f"| {leak.number} {leak.name} | {leak.channel} | {' | '.join(cells)} |")
    return "\n".join(head)


def _cell(verdict: Verdict | None, due: bool) -> str:
    if verdict is Verdict.VIOLATED:
        return "X"
    return "!" if due else "?" if verdict is Verdict.UNDECIDED else " "
