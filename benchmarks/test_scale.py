"""Runs of up to 10^7 records (profile full): what they take on disk, in memory and in seconds; docs/SCALE.md reads the rows.

Every step is timed in a process of its own, on a run whose files the operating system may still have in memory.
"""

from __future__ import annotations

import random
import shutil
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import aged
from benchmarks.apart import Step, apart
from benchmarks.timings import bounds, exponent
from benchmarks.workbench import Workbench
from s3t import runs
from s3t.facts import Facts
from s3t.records import Layout

LAYOUT = Layout(4, 3, 3)
MANY = 1000
"""Ids of the larger request."""
MANY_DELETED = f"deletion of {MANY}"


@dataclass(frozen=True)
class Sizes:
    """Numbers of records; how often short steps are timed, and how often long ones."""

    records: tuple[int, ...]
    times: int
    many: int


_QUICK = Sizes((10**4, 10**5), 6, 2)
SIZES = {
    "smoke": Sizes((3 * 10**3, 10**4), 2, 1),
    "quick": _QUICK,
    "health": _QUICK,
    "full": Sizes((10**5, 10**6, 10**7), 12, 6),
}


def test_scale(benchmark: Any, bench: Workbench, tmp_path: Path) -> None:
    """The same steps at every size; nodes are lent anew before each deletion, so all chains serve."""
    benchmark.group = "scale: by records"
    sizes = SIZES[bench.profile.name]
    about = {"question": "scale", "method": "s3t", "budget": LAYOUT.budget, "shards": LAYOUT.shards}
    about |= {"slices": LAYOUT.slices, "model": "tiny", "data": "made", "kind": "measured"}
    donor = aged.make_donor(tmp_path / "donor", LAYOUT, bench.tiny)
    found: dict[str, list[tuple[int, list[Step]]]] = {}

    def measure() -> None:
        for records in sizes.records:
            for step, taken in _case(bench, donor, tmp_path, records, sizes, about).items():
                found.setdefault(step, []).append((records, taken))

    with bench.answering(metric="open", **about):
        benchmark.pedantic(measure, rounds=1, iterations=1)
    for step, series in found.items():
        for what, unit, of in (("seconds", "s", _seconds), ("peak memory", "bytes", _peaks)):
            points = [(records, of(taken)) for records, taken in series]
            value, low, high = exponent(points)
            bench.add(
                metric=f"growth of {step}, {what}", unit="exponent", value=value, low=low, high=high, confidence=0.95,
                n=sum(len(values) for _, values in points),
                extra={"unit": unit, "from": points[0][0], "to": points[-1][0], "p50": _medians(points)},
                **{**about, "kind": "derived"},
            )  # fmt: skip


def _seconds(taken: Sequence[Step]) -> list[float]:
    return [seconds for step in taken for seconds in step.seconds]


def _peaks(taken: Sequence[Step]) -> list[float]:
    return [float(step.peak) for step in taken]


def _medians(points: Sequence[tuple[int, list[float]]]) -> list[float]:
    return [statistics.median(values) for _, values in points]


def _case(
    bench: Workbench, donor: aged.Donor, folder: Path, records: int, sizes: Sizes, about: dict[str, Any]
) -> dict[str, list[Step]]:
    path, kept = folder / f"run-{records}", folder / f"reads-{records}"
    found = {"ingestion": [apart("ingest", path, {"like": str(folder / "donor"), "records": records})]}
    reads = aged.Reads(kept, records, LAYOUT)
    _lend(donor, path, reads)
    disk = {name: _bytes(path / name) for name in (*_FILES, runs.NODES)}
    extra = {"records": records, "fabricated": "records, nodes", "disk": disk}
    for name, step, said, times in (
        ("open", "open", None, sizes.times),
        ("status", "status", False, sizes.times),
        ("status that reads all files", "status", True, sizes.many),
        ("first prediction", "predict", str(folder / "donor"), sizes.many),
        ("choosing 3 of all ids", "choose", 3, 1),
    ):
        found[name] = [apart(step, path, said, times)]
    victims = random.Random(f"s3t scale {records}").sample(range(records), sizes.times + MANY * sizes.many)
    found["deletion"], found[MANY_DELETED] = [], []
    for name, count, times in (("deletion", 1, sizes.times), (MANY_DELETED, MANY, sizes.many)):
        for _ in range(times):
            wanted, victims = victims[:count], victims[count:]
            _lend(donor, path, reads)
            found[name].append(apart("delete", path, [aged.name(index) for index in wanted]))
    shutil.rmtree(path)
    shutil.rmtree(kept)
    for name, taken in found.items():
        _add(bench, name, taken, extra, about)
    bench.add(
        metric="bytes on disk per record, nodes left out", unit="bytes", n=1, extra=extra, **about,
        value=sum(disk[name] for name in _FILES) / records,
    )  # fmt: skip
    return found


_FILES = ("records.bin", "records.sqlite", runs.COMMITMENTS, runs.LEDGER)


def _lend(donor: aged.Donor, path: Path, reads: aged.Reads) -> None:
    """Have every node there, in another process than those that are measured."""
    with closing(runs.open_run(path)) as run:
        donor.lend(run, Facts(run.ledger, run.config.plan), reads)


def _bytes(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _add(bench: Workbench, name: str, taken: list[Step], extra: dict[str, Any], about: dict[str, Any]) -> None:
    seconds = _seconds(taken)
    low, high = bounds(seconds)
    spread = {"fastest": min(seconds), "slowest": max(seconds)}
    bench.add(
        metric=name, unit="s", value=statistics.median(seconds), low=low, high=high, n=len(seconds), extra=extra | spread,
        confidence=None if low is None else 0.95, **about,
    )  # fmt: skip
    before = {"before": statistics.median(step.before for step in taken)}
    bench.add(
        metric=f"{name}, peak memory", unit="bytes", value=max(_peaks(taken)), n=len(taken), extra=extra | before, **about
    )  # fmt: skip
