"""The bench: 60 records around one victim in one setting, a fit, a story of deletions, an audit.

Faults whose first fit is clean share that fit. What a fault needs beyond the setting, it gets on a bench of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from s3t import runs
from s3t.backbone import Backbone, load
from s3t.describing import describe
from s3t.partition import slot
from s3t.records import Record, canonical_json, sha256
from s3t.runs import RunConfig
from verify.audit import audit
from verify.case import SAME, Variant
from verify.effort import Effort
from verify.laboratory import poison, quiet_word
from verify.leaks.leak import Leak, Planted
from verify.leaks.settings import CLASSES, SETTINGS, Setting, make_corpus, text
from verify.report import Report, Verdict

CLEAN = Leak(0, "the clean system", "rows", Planted, ())
"""The control: the same bench, no fault. Every check must hold."""

PROBES = 8


class Bench:
    """Plays faults around victim ``number`` of ``setting``, in ``folder``, which must exist."""

    def __init__(self, folder: Path, setting: Setting = SETTINGS[0], number: int = 0) -> None:
        self.folder, self.setting, self.number = folder, setting, number
        self.corpus = make_corpus(setting, number)
        probes = [Record(f"probe-{i:03d}", setting.inputs(text(i + 100)), i % len(CLASSES)) for i in range(PROBES)]
        self.evaluation: tuple[Sequence[Record], Sequence[Record]] = ((), probes)
        self.backbone = _backbone(setting.model)
        plan = setting.plan(self.backbone.layers)
        about = {"classes": list(CLASSES)}
        self.config: RunConfig = describe(plan, setting.recipe, self.backbone, about, setting.seed, setting.mode)
        self._others: dict[Setting, Bench] = {}

    def fit_for(self, leak: Leak) -> Bench:
        """Return a bench in which ``leak`` has an effect: this one, unless it needs another setting."""
        setting = leak.needs(self.setting) if leak.needs else self.setting
        if setting == self.setting:
            return self
        if setting not in self._others:
            folder = Path(tempfile.mkdtemp(prefix="bench-", dir=self.folder))
            self._others[setting] = Bench(folder, setting, self.number)
        return self._others[setting]

    def system(self, leak: Leak, folder: Path, variant: Variant = SAME) -> Planted:
        """Describe a faulty system in ``folder``; where its first fit is clean, it will begin with a finished one."""
        config, backbone = self.config, self.backbone
        if variant.seed is not None:
            config = dataclasses.replace(config, seed=variant.seed)
        if variant.poisoned:
            backbone = poison(backbone, variant.poisoned)
        made = leak.plant(
            folder, config, key=self.setting.key, evaluation=self.evaluation, backbone=backbone, allow_empty=True
        )
        made.tolerant = variant.tolerant
        if leak.trains_cleanly:
            made.finished = functools.partial(self.clean, variant=variant)
        return made

    def clean(self, records: Sequence[Record], variant: Variant = SAME) -> Path:
        """Return the folder of a clean run on ``records``, fitted at the first call."""
        about = [dataclasses.asdict(variant), [sha256(record.content()) for record in records]]
        folder = self.folder / f"clean-{sha256(canonical_json(about))[:16]}"
        if not folder.exists():
            system = self.system(CLEAN, folder, variant)
            system.finished = None
            system.fit(records)
            system.close()
        return folder

    def play(self, leak: Leak) -> Planted:
        """Fit the faulty system in a folder of its own, let it serve, and play the leak's story; return it live."""
        system = self.system(leak, Path(tempfile.mkdtemp(prefix=f"leak-{leak.number:02d}-", dir=self.folder)) / "run")
        system.fit(self.corpus.records)
        system.predict([record.inputs for record in self.evaluation[1]])
        gone = iter(self.deleted(leak))
        for step in leak.story:
            if step == "refresh":
                system.refresh()
            else:
                system.delete([next(gone)])
        return system

    def deleted(self, leak: Leak) -> list[str]:
        """Return the ids that the leak's story deletes, in order."""
        corpus = self.corpus
        named = {"delete": corpus.victim, "delete beside": corpus.beside, "delete another": corpus.other}
        return [named[step].id for step in leak.story if step != "refresh"]

    def audit(self, leak: Leak, levels: Sequence[str] = (), effort: Effort | None = None) -> Report:
        """Play the leak in a setting that suits it and audit it, by default at the levels of the checks that must catch it.

        ``effort``: of the levels E2 to E4.
        """
        bench = self.fit_for(leak)
        system = bench.play(leak)
        try:
            return audit(
                system,
                system.path,
                levels=levels or leak.levels,
                isolate=False,
                lab=BenchLab(bench, leak),
                records=bench.corpus.records,
                scope=leak.scope,
                effort=effort,
            )
        finally:
            system.close()


class BenchLab:
    """Makes further systems with the same fault, as :class:`verify.case.Lab` asks."""

    def __init__(self, bench: Bench, leak: Leak) -> None:
        self._bench, self._leak = bench, leak

    def make(self, folder: Path, variant: Variant = SAME) -> Planted:
        """Describe a faulty system in ``folder``; nothing is trained."""
        return self._bench.system(self._leak, folder, variant)

    def open(self, folder: Path) -> Planted:
        """Open what a faulty system left, as after a restart."""
        system = self._bench.system(self._leak, folder)
        system._attach(runs.open_run(folder))
        return system

    def slot(self, name: str) -> tuple[int, int]:
        """Return the slot of an id."""
        return slot(self._bench.setting.key, name, self._bench.setting.layout)

    def quiet_word(self, avoid: Sequence[Record]) -> str | None:
        """Return a word none of whose tokens occurs in the records ``avoid``, or None if none is found, or NaN is refused."""
        if self._bench.setting.head is not None:
            return None
        return quiet_word(self._bench.backbone, avoid, self._bench.setting.recipe.max_length)


@functools.cache
def _backbone(name: str) -> Backbone:
    return load(name)


def verdicts(report: Report) -> dict[str, Verdict]:
    """Return the verdict of every check that ran; VIOLATED outweighs UNDECIDED outweighs HOLDS."""
    rank = (Verdict.HOLDS, Verdict.UNDECIDED, Verdict.VIOLATED)
    found: dict[str, Verdict] = {}
    for finding in report.findings:
        found[finding.check] = max(found.get(finding.check, Verdict.HOLDS), finding.verdict, key=rank.index)
    return found
