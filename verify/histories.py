"""E4: histories that are equivalent to the audited one end in the same bits.

The base is fitted once on all records; every history (:mod:`verify.trace` says which are equivalent) is played on a copy of
its folder, opened as after a restart. What serves then, how it was selected, which shards are offline, and what is predicted
for probes and deleted records must be what the audited system shows. A finding names the history in a line, and
``Player(lab, copy of the fitted base).play(read(line))`` repeats it.
``python -m verify histories`` checks small systems exhaustively and at random (:mod:`verify.exhaustive`).
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from s3t.contract import Progress, Slot, UnlearningSystem
from s3t.errors import RecordError, S3TError
from s3t.records import canonical_json, sha256
from verify import crash
from verify.brief import PROBES
from verify.case import CannotPlayError, Case, Lab, apply
from verify.derive import tensors_digest
from verify.reference import differences
from verify.replay import predicted, serving
from verify.report import Finding, Verdict
from verify.trace import Extras, Step, skeleton, written

CHECK = "E4 histories"
MOST = 5
"""Histories with a difference after which no more are played."""


@dataclass(frozen=True)
class E4Plan:
    """How many ``histories`` are played (fewer only if there are no more), and whether processes are killed in them."""

    histories: int = 24
    crashes: bool = True

    def __post_init__(self) -> None:
        if self.histories < 1:
            raise S3TError(f"histories={self.histories} plays none; give at least 1")


@dataclass
class Player:
    """Plays steps on the system in ``folder``, made and opened by ``lab``; counts restarts and crashes.

    ``eager``: whether the system rebuilds within a deletion; a deletion that was killed is then completed by a refresh.
    """

    lab: Lab
    folder: Path
    eager: bool = False
    restarts: int = 0
    crashes: int = 0

    def play(self, steps: Sequence[Step]) -> UnlearningSystem:
        """Open the system, play all steps, and return it live. Raises S3TError if a step cannot be played."""
        system = self.lab.open(self.folder)
        try:
            for step in steps:
                system = self.step(system, step)
        except BaseException:
            close(system)
            raise
        return system

    def step(self, system: UnlearningSystem, step: Step) -> UnlearningSystem:
        """Play one step and return the system, which is another object after a restart."""
        if step.kind == "restart":
            self.restarts += 1
            return self._restart(system)
        if step.kind == "unknown":
            refuse(system, step.ids)
            return system
        if step.kill:
            close(system)
            if crash.killed(lambda: apply(self.lab.open(self.folder), step.event, step.ids), step.kill):
                self.crashes += 1
            system = self.lab.open(self.folder)
        apply(system, step.event, step.ids)
        if step.kill and step.kind == "delete" and self.eager:
            system.refresh()
        return system

    def _restart(self, system: UnlearningSystem) -> UnlearningSystem:
        close(system)
        return self.lab.open(self.folder)


class AcceptedError(S3TError):
    """A request with an unknown id did not raise RecordError."""


def refuse(system: UnlearningSystem, ids: Sequence[str]) -> None:
    """Ask for the deletion of ``ids``, one of which no record has. AcceptedError unless that raises RecordError."""
    try:
        system.delete(list(ids))
    except RecordError:
        return
    raise AcceptedError(f"the deletion of {list(ids)} was accepted, though no record has the id {ids[-1]!r}")


def close(system: Any) -> None:
    """Close a system, if it can be closed."""
    getattr(system, "close", lambda: None)()


def check_histories(case: Case, plan: E4Plan, progress: Progress | None = None) -> list[Finding]:
    """Play ``plan.histories`` equivalent histories and compare their ends with ``case.system``, bit for bit."""
    asked = [*case.probes, *case.victims[:PROBES]]
    why = crash.why_not() if plan.crashes else "not asked for"
    found: list[Finding] = []
    tally, states = Player(case.lab, Path()), {final_state(case.system, asked)}
    played = 0
    with tempfile.TemporaryDirectory(prefix="s3t-histories-") as name:
        base = Path(name) / "base"
        try:
            eager = _fit(case, base, progress)
            chosen = list(histories(case, plan.histories, kill=not why, eager=eager))
            for played, steps in enumerate(chosen, start=1):
                if progress:
                    progress(played - 1, len(chosen), written(steps))
                here = _play(case, base, Path(name) / str(played), steps, eager, asked, states, tally, played == 1)
                found += here[:1]
                if len(found) == MOST or any(f.verdict is Verdict.UNDECIDED for f in here):
                    break
        except S3TError as error:
            message = f"the system cannot be fitted, closed and opened again: {error}"
            found.append(Finding(CHECK, Verdict.UNDECIDED, message))
    details = {
        "histories": played,
        "states": len(states),
        "restarts": tally.restarts,
        "crashes": tally.crashes,
        "no_crashes": why,
    }
    if not found:
        crashes = f"crashes not tried: {why}" if why else f"{tally.crashes} crashes"
        message = (
            f"{played} equivalent histories with {tally.restarts} restarts, {crashes}: one end state, the same bits"
        )
        return [Finding(CHECK, Verdict.HOLDS, message, details=details)]
    return [dataclasses.replace(finding, details={**details, **finding.details}) for finding in found]


def histories(case: Case, count: int, *, kill: bool, eager: bool = False) -> Iterator[tuple[Step, ...]]:
    """Yield up to ``count`` distinct histories equivalent to that of ``case``, the audited one first.

    Arrangements of the deletions come one by one if there are no more than ``count``, otherwise at random; restarts, crashes
    and requests that change nothing are strewn in at random. The random numbers are seeded by the case's history.
    """
    plain = tuple(Step(e.kind, e.ids, () if e.kind == "delete" else e.slots, e.budget) for e in case.history)
    frame, seed = skeleton(case.history), sha256(canonical_json(written(plain)))
    few = list(itertools.islice(frame.every(), count + 1))
    extras = _extras(case, kill, eager)
    yield plain
    seen = {plain}
    for number in range(4 * count):
        rng = Random(f"s3t histories v1 {seed} {number}")
        steps = few[number % len(few)] if len(few) <= count else frame.sample(rng)
        steps = extras.strew(steps, rng)
        if len(seen) < count and steps not in seen:
            seen.add(steps)
            yield steps


def _extras(case: Case, kill: bool, eager: bool) -> Extras:
    known = {record.id for record in case.records}
    unknown = next(name for number in itertools.count() if (name := f"unknown-{number}") not in known)
    keep = case.retained[0].id if case.retained else ""
    named = {name: event.slots[0] for event in case.history if len(event.slots) == 1 for name in event.ids}

    def slot(name: str) -> Slot | None:
        return case.lab.slot(name) if hasattr(case.lab, "slot") else named.get(name)

    return Extras(case.system.provenance().claim, slot, keep, unknown, kill, eager)


def _fit(case: Case, base: Path, progress: Progress | None) -> bool:
    """Fit the base on all records and close it; return whether systems of this kind rebuild within a deletion."""
    system = case.lab.make(base)
    try:
        system.fit(list(case.records), progress)
    finally:
        close(system)
    if not base.is_dir():
        raise CannotPlayError("it keeps no files in the folder that it was given")
    if not case.victims:
        return False
    trial = base.with_name("trial")
    shutil.copytree(base, trial, symlinks=True)
    system = case.lab.open(trial)
    try:
        system.delete([case.victims[0].id])
        return system.provenance().claim == "retrained"
    finally:
        close(system)
        shutil.rmtree(trial)


def _play(
    case: Case,
    base: Path,
    folder: Path,
    steps: Sequence[Step],
    eager: bool,
    asked: Sequence[Any],
    states: set[str],
    tally: Player,
    plain: bool,
) -> list[Finding]:
    """Play one history on a copy of ``base``; return how its end differs. ``states`` and ``tally`` are added to.

    ``plain``: it is the audited history itself; if other nodes survive then, that history cannot be repeated (UNDECIDED).
    """
    shutil.copytree(base, folder, symlinks=True)
    player = Player(case.lab, folder, eager)
    after, system = f"after {written(steps)}: ", None
    try:
        system = player.play(steps)
        states.add(final_state(system, asked))
        found = list(differences(system, system.provenance(), case.system, asked, CHECK))
        if not _same_survivors(case, folder):
            message = (
                "other nodes survive, so there is an unfinished refresh in its history: refresh it and audit again"
            )
            verdict = Verdict.UNDECIDED if plain else Verdict.VIOLATED
            found = [Finding(CHECK, verdict, message if plain else "other nodes survive"), *([] if plain else found)]
        return [dataclasses.replace(finding, message=after + finding.message) for finding in found]
    except AcceptedError as error:
        return [Finding(CHECK, Verdict.VIOLATED, f"{after}{error}")]
    except S3TError as error:
        return [Finding(CHECK, Verdict.UNDECIDED, f"{after}the history cannot be played: {error}")]
    finally:
        tally.restarts += player.restarts
        tally.crashes += player.crashes
        if system is not None:
            close(system)
        shutil.rmtree(folder, ignore_errors=True)


def _same_survivors(case: Case, folder: Path) -> bool:
    """Say whether the nodes that survive in ``folder`` are those of the case, where both are known."""
    survivors = getattr(case.lab, "survivors", None)
    return case.survivors is None or survivors is None or survivors(folder) == case.survivors


def final_state(system: UnlearningSystem, asked: Sequence[Any]) -> str:
    """Return a digest of all that :func:`verify.reference.differences` compares."""
    provenance = system.provenance()
    chains = [[c.shard, c.order, c.weight, [list(n.prefix) for n in c.nodes]] for c in provenance.chains]
    tensors = {name: tensors_digest(dict(named)) for name, named in serving(system).items()}
    scores = tensors_digest(predicted(system, asked)) if asked else ""
    return sha256(canonical_json([chains, sorted(provenance.offline), tensors, scores]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m verify histories``; see :mod:`verify.exhaustive`."""
    from verify.exhaustive import main as run

    return run(arguments)
