"""The kill matrix: fault x check x setting x victim. Played cell by cell, resumable, written as JSON and Markdown.

The faults around one victim of one setting share a bench, and so their clean fits; such groups may run side by side. Every
finished cell is a line in ``OUT/cells/`` with the digest of the code that played it, and an interrupted run of the same code
goes on behind it; once all are written as a matrix, the single cells go.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import baselines
import s3t
import verify
from s3t.contract import Progress
from s3t.engine.mode import Mode
from s3t.errors import RunError
from verify.leaks.leak import CHECKS, Leak
from verify.leaks.settings import VICTIMS, find_setting, in_mode
from verify.machine import on_threads
from verify.report import Verdict

LEVELS = ("E0", "E1a", "E1b", "E1c")
"""The levels whose checks the matrix has as columns."""

REFERENCE = Mode()
FORMAT = 1
CELLS, TABLE, PAGE = "cells", "matrix.json", "matrix.md"


@dataclass(frozen=True, order=True)
class Place:
    """Where a fault is planted: the label of a setting and the number of a victim."""

    setting: str
    victim: int


@dataclass(frozen=True)
class Cell:
    """One fault in one place, and what every check said of it."""

    leak: int
    place: Place
    verdicts: Mapping[str, Verdict]

    def missed(self, leak: Leak) -> tuple[str, ...]:
        """Return the checks that were to catch the fault, and ran, and did not."""
        due = leak.due(find_setting(self.place.setting)) if leak.number else ()
        return tuple(c for c in due if c in self.verdicts and self.verdicts[c] is not Verdict.VIOLATED)

    def alarms(self) -> tuple[str, ...]:
        """Return the checks that do not hold; none may, where no fault is planted."""
        return tuple(check for check, verdict in self.verdicts.items() if verdict is not Verdict.HOLDS)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {"leak": self.leak, **asdict(self.place), "verdicts": {c: v.value for c, v in self.verdicts.items()}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Cell:
        """Rebuild a cell from :meth:`to_json`."""
        said = {str(check): Verdict(verdict) for check, verdict in raw["verdicts"].items()}
        return cls(int(raw["leak"]), Place(str(raw["setting"]), int(raw["victim"])), said)


Work = Mapping[Place, Sequence[Leak]]
"""Which faults are to be played in which place."""


def full(
    leaks: Sequence[Leak],
    settings: Sequence[str] = (),
    victims: int = VICTIMS,
    mode: Mode = REFERENCE,
) -> dict[Place, list[Leak]]:
    """Return every fault in every place: all ``settings`` (by default all there are) x the first ``victims`` of each.

    All in one ``mode``; faults that cannot be planted in its engine are left out.
    """
    labels = [setting.label for setting in in_mode(mode, settings)]
    planted = [leak for leak in leaks if mode.name not in leak.absent]
    return {Place(label, victim): list(planted) for victim in range(victims) for label in labels}


def reduced(leaks: Sequence[Leak], settings: Sequence[str] = (), mode: Mode = REFERENCE) -> dict[Place, list[Leak]]:
    """Return every fault once: the settings take turns, each with another victim; faults without number go everywhere."""
    labels = [setting.label for setting in in_mode(mode, settings)]
    work: dict[Place, list[Leak]] = {Place(label, turn % VICTIMS): [] for turn, label in enumerate(labels)}
    places = list(work)
    for leak in (leak for leak in leaks if mode.name not in leak.absent):
        for place in [places[leak.number % len(places)]] if leak.number else places:
            work[place].append(leak)
    return work


def play(
    work: Work, out: Path, levels: Sequence[str] = LEVELS, jobs: int = 1, progress: Progress | None = None
) -> list[Cell]:
    """Play what of ``work`` is not finished in ``out`` and return all its cells, in the order of ``work``.

    ``levels``: which checks run; of cells that lack some of them, those alone. ``jobs``: processes side by side.
    """
    (out / CELLS).mkdir(parents=True, exist_ok=True)
    done = finished(out)
    groups, count = list[Group](), 0
    for place, leaks in work.items():
        missing = {leak.number: _missing(done.get((place, leak.number)), levels) for leak in leaks}
        todo = [(number, lacking) for number, lacking in missing.items() if lacking]
        count += len(leaks) - len(todo)
        groups += [(place, todo, out)] if todo else []
    total = sum(map(len, work.values()))
    for cell in _inside(groups) if jobs == 1 else _beside(groups, jobs):
        done[cell.place, cell.leak] = _merged(done.get((cell.place, cell.leak)), cell)
        count += 1
        if progress:
            progress(count, total, f"{cell.leak} in {cell.place.setting}, victim {cell.place.victim}")
    return [done[place, leak.number] for place, leaks in work.items() for leak in leaks]


Group = tuple[Place, list[tuple[int, tuple[str, ...]]], Path]
"""Faults to be played in one place, each with the levels that are missing, and where their cells are kept."""


def _missing(cell: Cell | None, levels: Sequence[str]) -> tuple[str, ...]:
    there = {check.split()[0] for check in cell.verdicts} if cell else set()
    return tuple(level for level in levels if level not in there)


def _merged(before: Cell | None, cell: Cell) -> Cell:
    said = {**(before.verdicts if before else {}), **cell.verdicts}
    return Cell(cell.leak, cell.place, {check: said[check] for check in CHECKS if check in said})


def _inside(groups: Iterable[Group]) -> Iterator[Cell]:
    for group in groups:
        yield from play_group(*group)


def _beside(groups: Sequence[Group], jobs: int) -> Iterator[Cell]:
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for future in as_completed([pool.submit(_listed, group) for group in groups]):
            yield from future.result()


def _listed(group: Group) -> list[Cell]:
    return list(play_group(*group))


def play_group(place: Place, todo: Sequence[tuple[int, tuple[str, ...]]], out: Path) -> Iterator[Cell]:
    """Play faults (number, levels) in one place on one bench, on one thread; yield each cell once it is on disk."""
    from verify.leaks import CLEAN, LEAKS
    from verify.leaks.bench import Bench, verdicts

    known, played_by = {leak.number: leak for leak in (CLEAN, *LEAKS)}, code()
    with on_threads(1), tempfile.TemporaryDirectory(prefix="s3t-leaks-") as folder:
        bench = Bench(Path(folder), find_setting(place.setting), place.victim)
        for number, levels in todo:
            cell = Cell(number, place, verdicts(bench.audit(known[number], levels)))
            with (out / CELLS / f"{place.setting}-{place.victim}.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"code": played_by, **cell.to_json()}) + "\n")
            yield cell


def finished(out: Path) -> dict[tuple[Place, int], Cell]:
    """Return the cells that this code has finished in ``out``, by place and fault. RunError for a line that is no cell."""
    found: dict[tuple[Place, int], Cell] = {}
    here = code()
    for path in sorted((out / CELLS).glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                raw = json.loads(line)
                cell, current = Cell.from_json(raw), raw["code"] == here
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"{path.name}, line {number} is no cell of a matrix ({error}); remove the file"
                ) from error
            if current:
                found[cell.place, cell.leak] = _merged(found.get((cell.place, cell.leak)), cell)
    return found


@functools.cache
def code() -> str:
    """Return the SHA-256 over the sources of system, baselines and verifier: what decides every cell."""
    digest = hashlib.sha256()
    for package in (s3t, baselines, verify):
        home = Path(str(package.__file__)).parent
        for path in sorted(home.rglob("*.py")):
            digest.update(
                f"{package.__name__}/{path.relative_to(home).as_posix()}\0".encode() + path.read_bytes() + b"\0"
            )
    return digest.hexdigest()


def write(cells: Sequence[Cell], leaks: Sequence[Leak], out: Path, *, complete: bool) -> tuple[Path, Path]:
    """Write the matrix as JSON and Markdown and return both files; ``complete``: forget the single cells."""
    from verify.leaks.tables import markdown, table

    out.mkdir(parents=True, exist_ok=True)
    files = out / TABLE, out / PAGE
    for path, content in zip(files, (table(cells, leaks), markdown(cells, leaks)), strict=True):
        part = path.with_suffix(path.suffix + ".part")
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    if complete:
        shutil.rmtree(out / CELLS, ignore_errors=True)
    return files


def faults(cells: Sequence[Cell], leaks: Sequence[Leak]) -> list[str]:
    """Return what is wrong with the matrix: due catches that were missed, and alarms on the clean system."""
    known = {leak.number: leak for leak in leaks}
    wrong = []
    for cell in cells:
        where = f"{cell.place.setting}, victim {cell.place.victim}"
        if cell.leak:
            wrong += [f"{check} missed fault {cell.leak} in {where}" for check in cell.missed(known[cell.leak])]
        else:
            wrong += [f"{check} does not hold on the clean system in {where}" for check in cell.alarms()]
    return wrong


__all__ = ["CHECKS", "LEVELS", "Cell", "Place", "faults", "finished", "full", "play", "reduced", "write"]
