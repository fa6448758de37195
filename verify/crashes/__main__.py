"""``python -m verify crashes``: cut works short at their writes, start again, and count what was lost or came back.

Points are taken from all works, engines and ways of being cut short alike. A point that fails is printed with the arguments
that play it again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from s3t.errors import S3TError
from verify import crash, power
from verify.crashes.bench import FLOOR, Bench, Fault, Work
from verify.crashes.builds import Extend, Refresh, RefreshDelete, Train, TrainDelete
from verify.crashes.deletions import Delete, DeleteGroup, Recover
from verify.crashes.papers import Certify, Export

How = Literal["kill", "synchronised", "part"]
"""Killed; power lost, and only what was synchronised is there; power lost, and a random part of the rest is there too."""

ENGINES = ("reference", "fast", FLOOR)
WORKS: tuple[type[Work], ...]
WORKS = (Train, TrainDelete, Delete, DeleteGroup, Recover, Refresh, RefreshDelete, Extend, Certify, Export)
PARTS = 2
"""Random disks that are tried per point."""

REDUCED = 120
"""Points of ``--reduced``."""


@dataclass(frozen=True)
class Point:
    """One injected crash: before write ``at`` (from 1; one more is after the end) of a work; ``part``: which random disk."""

    engine: str
    work: str
    how: How
    at: int
    part: int = 0


@dataclass
class Outcome:
    """What was found; ``faults``: the points at which something was not as it must be."""

    seed: int
    seconds: float = 0.0
    rows: dict[tuple[str, str, str], dict[str, int]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def add(self, point: Point, found: Sequence[tuple[str, str]]) -> str:
        """Count one point; return what to print if something is wrong."""
        empty = {"points": 0, "loss": 0, "resurrection": 0, "difference": 0, "refused": 0}
        row = self.rows.setdefault((point.engine, point.work, point.how), empty)
        row["points"] += 1
        for kind in {kind for kind, _ in found}:
            row[kind] += 1
        if not found:
            return ""
        told = [f"{kind}: {message}" for kind, message in found[:4]]
        again = f"python -m verify crashes --seed {self.seed} --at {':'.join(map(str, asdict(point).values()))!r}"
        self.faults.append({**asdict(point), "found": told, "again": again})
        return f"{told[0]}; again: {again}"

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values, with the machine it was reached on."""
        from verify.machine import describe_machine

        names = ("points", "loss", "resurrection", "difference", "refused")
        listed = [dict(zip(("engine", "work", "how"), key, strict=True)) | row for key, row in self.rows.items()]
        return {
            "schema": 1,
            "what": "works cut short at their writes: points, and at how many something was lost, came back, or else was wrong",
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "total": {name: sum(row[name] for row in self.rows.values()) for name in names},
            "rows": listed,
            "faults": self.faults,
            "machine": describe_machine(),
        }


class Stage:
    """Plays points below ``folder``. S3TError if no process can be forked here."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        if why := crash.why_not():
            raise S3TError(f"nothing can be cut short here: {why}")
        folder.mkdir(exist_ok=True)
        self._folder, self._seed = folder, seed
        self._works: dict[tuple[str, str], Work] = {}
        self._cuts: dict[tuple[str, str], list[power.Cut]] = {}
        self._benches: dict[str, Bench] = {}

    def points(self, engine: str, name: str) -> Iterator[Point]:
        """Yield every point of a work: kills at all writes, and each different disk that a loss of power may leave."""
        cuts = self.cuts(engine, name)
        yield from (Point(engine, name, "kill", at) for at in range(1, len(cuts)))
        for how, parts in (("synchronised", 1), ("part", PARTS)):
            seen = set()
            for at, cut in enumerate(cuts, start=1):
                for part in range(parts):
                    point = Point(engine, name, how, at, part)  # type: ignore[arg-type]
                    what = hash((cut.said, *sorted(self._disk(point).items())))
                    if what not in seen:
                        seen.add(what)
                        yield point

    def cuts(self, engine: str, name: str) -> list[power.Cut]:
        """Return the work's write points with the disk at each, from a child that does it once."""
        if (engine, name) not in self._cuts:
            work = self._work(engine, name)
            with self._root(work) as root:
                work.do(root, lambda: None)  # what is imported on first use is not to be imported in a child
            with self._root(work) as root:
                self._cuts[engine, name] = power.recorded(self._doing(work, root), root, self._said)
        return self._cuts[engine, name]

    def play(self, point: Point) -> list[tuple[str, str]]:
        """Cut the work short at ``point``, start again, and return what is wrong then; the kind "refused" for an S3TError."""
        work = self._work(point.engine, point.work)
        with self._root(work, laid=point.how != "kill") as root:
            if point.how == "kill":
                if not crash.killed(self._doing(work, root), point.at):
                    raise S3TError(f"{point.work!r} has fewer than {point.at} write points")
                said = len(self._said.read_bytes())
            else:
                power.lay(self._disk(point), root)
                said = self._cut(point).said
            found: list[Fault | tuple[str, str]] = []
            try:
                found += work.check(root, said)
            except S3TError as error:
                found.append(("refused", f"{type(error).__name__}: {error}"))
            return [(kind, message.replace(str(self._folder), "")) for kind, message in found]

    def _disk(self, point: Point) -> dict[str, tuple[int, bytes | None]]:
        rng = Random(f"s3t power {self._seed} {point.engine} {point.work} {point.at} {point.part}")
        return power.disk(self._cut(point), None if point.how == "synchronised" else rng)

    def _cut(self, point: Point) -> power.Cut:
        cuts = self.cuts(point.engine, point.work)
        if point.at > len(cuts):
            raise S3TError(f"{point.work!r} has fewer than {point.at} write points")
        return cuts[point.at - 1]

    @property
    def _said(self) -> Path:
        return self._folder / "said"

    def _work(self, engine: str, name: str) -> Work:
        kinds = {kind.name: kind for kind in WORKS}
        bench = self._benches.setdefault(engine, Bench(engine, self._folder / "bench"))
        return self._works.setdefault((engine, name), kinds[name](bench))

    @contextlib.contextmanager
    def _root(self, work: Work, *, laid: bool = False) -> Iterator[Path]:
        """Give a fresh root with what the work starts from, or an empty one for a disk to be ``laid`` in."""
        start = work.start()
        with tempfile.TemporaryDirectory(prefix="play-", dir=self._folder) as name:
            root = Path(name) / "root"
            if start is None or laid:
                root.mkdir()
            else:
                shutil.copytree(start, root)
            yield root

    def _doing(self, work: Work, root: Path) -> Callable[[], None]:
        self._said.write_bytes(b"")

        def doing() -> None:
            handle = os.open(self._said, os.O_WRONLY | os.O_APPEND)
            with contextlib.redirect_stdout(io.StringIO()):
                work.do(root, lambda: os.write(handle, b"\n"))

        return doing


def chosen(stage: Stage, count: int | None, seed: int, engines: Sequence[str] = ENGINES) -> list[Point]:
    """Return ``count`` points at random (all if None), as many of each work, engine and way as there are."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for engine in engines:
        for work in WORKS:
            for point in stage.points(engine, work.name):
                groups.setdefault((engine, point.work, point.how), []).append(point)
    if count is None:
        return [point for group in groups.values() for point in group]
    rng = Random(f"s3t crashes {seed}")
    drawn = [rng.sample(group, len(group)) for group in groups.values()]
    turns = [group[turn] for turn in range(max(map(len, drawn))) for group in drawn if turn < len(group)]
    return turns[:count]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m verify crashes``: 0 if nothing is wrong at any point, 1 otherwise, 2 for bad input."""
    made = argparse.ArgumentParser(prog="python -m verify crashes", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--points", type=int, metavar="N", help="play N of the points, of all works alike (default: all)")
    made.add_argument("--seed", type=int, default=0, help="draws the disks, and the points of --points")
    made.add_argument("--reduced", action="store_true", help=f"the same as --points {REDUCED}")
    made.add_argument("--out", type=Path, help="file of the outcome (JSON)")
    made.add_argument("--at", metavar="ENGINE:WORK:HOW:AT:PART", help="play this one point")
    given = made.parse_args(arguments)
    outcome, began = Outcome(given.seed), time.monotonic()
    try:
        if given.points is not None and given.points < 1:
            raise S3TError(f"--points {given.points} plays none; give at least 1")
        if given.out:
            _put(given.out, "")  # to be told now, not after all points
        from verify.machine import on_threads

        with on_threads(1), tempfile.TemporaryDirectory(prefix="s3t-crashes-") as name:
            stage = Stage(Path(name), given.seed)
            count = REDUCED if given.reduced and given.points is None else given.points
            points = [_named(given.at)] if given.at else chosen(stage, count, given.seed)
            for number, point in enumerate(points, start=1):
                if said := outcome.add(point, stage.play(point)):
                    print(said, file=sys.stderr, flush=True)
                if number % 50 == 0 or number == len(points):
                    print(f"{number}/{len(points)}: {len(outcome.faults)} faults", file=sys.stderr, flush=True)
        outcome.seconds = time.monotonic() - began
        text = json.dumps(outcome.to_json(), indent=1, ensure_ascii=False)
        if given.out:
            _put(given.out, text + "\n")
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 1 if outcome.faults else 0


def _put(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise S3TError(f"{path} cannot be written ({error}); choose another --out") from error


def _named(text: str) -> Point:
    """Return the point that a user names. S3TError if there is none such."""
    parts = text.split(":")
    try:
        engine, work, how, at, part = parts
        point = Point(engine, work, how, int(at), int(part))  # type: ignore[arg-type]
    except ValueError as error:
        raise S3TError(
            f"--at {text!r} names no point; give ENGINE:WORK:HOW:AT:PART, say reference:delete:kill:3:0"
        ) from error
    known = (engine in ENGINES, work in {kind.name for kind in WORKS}, how in get_args(How), point.at > 0)
    if not all(known):
        raise S3TError(
            f"--at {text!r} names no point; engines {ENGINES}, works {[k.name for k in WORKS]}, ways {get_args(How)}"
        )
    return point


if __name__ == "__main__":
    sys.exit(main())
