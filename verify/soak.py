"""The soak: audits of many clean small systems, none of which may raise an alarm.

Every verification draws its own system (layout, method, recipe, records, keys) and its own history from its number and the
soak's seed alone, so that one that raises an alarm can be repeated. ``python -m verify soak`` runs it; the upper limit of the
false-alarm rate is that of Clopper and Pearson (Biometrika 1934), one-sided, 95 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3t.errors import S3TError
from verify.report import Report, Verdict
from verify.small import Small, SmallLab, draw
from verify.trace import written

LEVELS = ("E0", "E1a", "E1b")
SMALL = 6
"""Systems of at most so many nodes are compared with a never-ingested reference always, larger ones every fourth time."""

EVERY = 50
"""Verifications between two writings of the outcome."""


def verify(small: Small, levels: Sequence[str]) -> Report:
    """Fit ``small``, play its history, and audit it at ``levels``."""
    from verify.audit import audit
    from verify.histories import Player, close

    lab = SmallLab(small)
    with tempfile.TemporaryDirectory(prefix="s3t-soak-") as name:
        folder = Path(name) / "run"
        system: Any = lab.make(folder)
        try:
            system.fit(list(small.records))
            if small.seed % 2 and small.probes:
                system.predict([record.inputs for record in small.probes])
            player = Player(lab, folder)
            for step in small.steps:
                system = player.step(system, step)
            return audit(
                system, folder, levels=levels, isolate=False, lab=lab, records=small.records, scope="surviving"
            )
        finally:
            close(system)


@dataclass
class Outcome:
    """What a soak has found so far; ``seconds`` is its time over all sittings."""

    seed: int
    levels: tuple[str, ...]
    start: int
    done: int = 0
    seconds: float = 0.0
    methods: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    nodes: int = 0
    alarms: list[dict[str, Any]] = field(default_factory=list)
    undecided: list[dict[str, Any]] = field(default_factory=list)

    def add(self, number: int, small: Small, report: Report) -> str:
        """Count one verification; return what to print if it does not hold."""
        self.done += 1
        self.methods[small.method] += 1
        self.ran.update(report.levels)
        self.steps.update(step.kind for step in small.steps)
        self.nodes += sum(int(f.details.get("nodes", 0)) for f in report.findings)
        if report.verdict is Verdict.HOLDS:
            return ""
        said = [f"{f.check}: {f.message}" for f in report.findings if f.verdict is report.verdict]
        again = f"python -m verify soak --seed {self.seed} --start {number} --n 1"
        fault = {"number": number, "verdict": str(report.verdict), "method": small.method, "found": said[:3]}
        fault |= {"history": written(small.steps), "again": again}
        (self.alarms if report.verdict is Verdict.VIOLATED else self.undecided).append(fault)
        return f"{report.verdict} {small.method}: {said[0] if said else 'nothing was checked'}; again: {again}"

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values, with the machine it was reached on."""
        from verify.machine import describe_machine

        return {
            "schema": 1,
            "what": "false-alarm soak of clean small systems",
            **{k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in self.__dict__.items()},
            "seconds": round(self.seconds, 1),
            "n": self.done,
            "false_alarm_rate_upper_95": upper_limit(len(self.alarms), self.done),
            "machine": describe_machine(),
        }


def upper_limit(alarms: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper Clopper-Pearson limit of a rate of which ``alarms`` in ``n`` were seen."""
    from scipy.stats import beta

    return 1.0 if alarms >= n else float(beta.ppf(confidence, alarms + 1, n - alarms))


def resumed(path: Path, seed: int, levels: tuple[str, ...], start: int) -> Outcome:
    """Return the outcome written to ``path``. S3TError if it is of another soak."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    if (raw["seed"], tuple(raw["levels"]), raw["start"]) != (seed, levels, start):
        raise S3TError(f"{path} is of another soak (seed {raw['seed']}, levels {raw['levels']}); give another --out")
    counts = {name: Counter(raw[name]) for name in ("methods", "ran", "steps")}
    rest: dict[str, Any] = {name: raw[name] for name in ("done", "seconds", "nodes", "alarms", "undecided")}
    return Outcome(seed, levels, start, **(counts | rest))


def levels_of(small: Small, number: int, levels: Sequence[str]) -> tuple[str, ...]:
    """Return the levels of one verification: E1b only for small plans, and every fourth time for others."""
    costly = small.nodes > SMALL and number % 4
    return tuple(level for level in levels if not (costly and level == "E1b"))


def soak(outcome: Outcome, n: int, out: Path | None) -> None:
    """Go on with ``outcome`` until it counts ``n`` verifications; write it to ``out`` now and then and at the end."""
    before, began = outcome.seconds, time.monotonic()
    while outcome.done < n:
        number = outcome.start + outcome.done
        small = draw(outcome.seed, number)
        said = outcome.add(number, small, verify(small, levels_of(small, number, outcome.levels)))
        outcome.seconds = before + time.monotonic() - began
        if said:
            print(said, file=sys.stderr, flush=True)
        if outcome.done % EVERY == 0 or outcome.done == n:
            print(
                f"{outcome.done}/{n}: {len(outcome.alarms)} alarms, {outcome.seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            if out is not None:
                partial = out.with_name(f".{out.name}.partial")
                partial.write_text(json.dumps(outcome.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                partial.replace(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m verify soak``: 0 for no alarm and nothing undecided, 1 for an alarm, 3 for undecided, 2 bad input."""
    made = argparse.ArgumentParser(prog="python -m verify soak", description=__doc__)
    made.add_argument(
        "--n", type=int, default=3000, help="verifications (default 3000: 0 alarms bound the rate below 0.1 %%)"
    )
    made.add_argument("--seed", type=int, default=0, help="what all systems and histories are drawn from")
    made.add_argument("--start", type=int, default=0, help="number of the first verification")
    made.add_argument("--levels", default=",".join(LEVELS), help="levels, comma-separated")
    made.add_argument("--out", type=Path, help="file of the outcome (JSON)")
    made.add_argument("--resume", action="store_true", help="go on with the outcome in --out")
    given = made.parse_args(arguments)
    from verify.audit import resolve_levels

    try:
        levels = resolve_levels(given.levels.split(","))
        outcome = Outcome(given.seed, levels, given.start)
        if given.resume and given.out is not None and given.out.exists():
            outcome = resumed(given.out, given.seed, levels, given.start)
        _one_thread()
        soak(outcome, given.n, given.out)
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(outcome.to_json(), indent=1, ensure_ascii=False))
    return 1 if outcome.alarms else 3 if outcome.undecided else 0


def _one_thread() -> None:
    """Tensors this small gain nothing from more threads and lose much on a busy machine."""
    import torch

    torch.set_num_threads(1)
