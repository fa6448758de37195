"""Runs with many records and many requests behind them, made quickly, to time deletions and starts on.

What is fabricated: the records' texts; the requests, entered in one transaction with the digests and indexes that one
request after the other would give; and the nodes, which are those of a small run, trained for real on a few records and
entered as if they had been trained here, with the list of the records that such a node would have read (:class:`Reads`) where
that is asked for. Files, formats and code paths are those of every other run.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from s3t import requests, runs
from s3t.facts import Facts
from s3t.graph import Node
from s3t.partition import slot, tag
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record, sha256
from s3t.runs import Run, RunConfig
from s3t.store import READS
from s3t.system import System

if TYPE_CHECKING:
    from s3t.backbone import Backbone

KEY = bytes(range(32))
CLASSES = ("no", "yes")
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""What the operating system counts peak memory in, in bytes."""


class Made(Sequence[Record]):
    """``count`` records, each made when it is asked for; none is kept."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        text = f"sentence number {index} asks how many of the {index % 97} rivers reach the sea in year {index % 1999}"
        return Record(name(index), {"text": text}, index % 2)


def name(index: int) -> str:
    """Return the id of the record at ``index``."""
    return f"record-{index:07d}"


@dataclass(frozen=True)
class Donor:
    """A small run's configuration and its trained nodes: the ledger's body and the files of each."""

    config: RunConfig
    nodes: dict[Node, tuple[dict[str, Any], dict[str, bytes]]]

    def lend(self, run: Run, facts: Facts, reads: Callable[[Node], bytes] | None = None) -> None:
        """Enter every node that ``run`` misses, files and fact, parents first; ``reads``: what its list of ids is to be."""
        facts.update()
        for node in facts.missing():
            body, files = self.nodes[node]
            if reads is not None:
                files = files | {READS: reads(node)}
                digests = {name: sha256(content) for name, content in files.items()}
                body = body | {"files": digests, "reads": digests[READS], "rows": files[READS].count(b",") + 1}
            run.nodes.write(body["key"], files, partial(_enter, run, body))
        facts.update()


def _enter(run: Run, body: dict[str, Any]) -> None:
    run.ledger.append("train", body)


def make_donor(folder: Path, layout: Layout, backbone: Backbone) -> Donor:
    """Train a small run on 20 records per slice, really, and return its nodes."""
    recipe = Recipe(rank=2, epochs=1, batch_size=16)
    plan = s3t_plan(layout, recipe, backbone.layers)
    system = System.create(
        folder, plan, recipe, model=backbone, classes=CLASSES, key=KEY, engine="fast", precision="float32"
    )
    system.fit(Made(20 * layout.shards * layout.slices))
    system.close()
    run = runs.open_run(folder)
    nodes = {}
    for entry in run.ledger.entries("train"):
        home = run.nodes.root / entry.body["key"]
        files = {path.name: path.read_bytes() for path in home.iterdir()}
        nodes[Node(entry.body["shard"], tuple(entry.body["prefix"]))] = (entry.body, files)
    run.close()
    return Donor(run.config, nodes)


class Reads:
    """The lists of ids that nodes would have read, had they been trained on ``count`` made records; kept in ``folder``."""

    def __init__(self, folder: Path, count: int, layout: Layout) -> None:
        self._folder = folder
        folder.mkdir()
        places = (slot(KEY, name(index), layout) for index in range(count))
        self._slots = np.fromiter((shard * layout.slices + piece for shard, piece in places), np.int32, count)
        self._slices = layout.slices

    def __call__(self, node: Node) -> bytes:
        """Return the content of the node's file of reads."""
        path = self._folder / f"{node.shard}-{'-'.join(map(str, sorted(node.prefix)))}"
        if not path.exists():
            found = np.flatnonzero(np.isin(self._slots, [node.shard * self._slices + piece for piece in node.prefix]))
            path.write_text('["' + '","'.join(map(name, found.tolist())) + '"]')
        return path.read_bytes()


@dataclass(frozen=True)
class Taken:
    """What a step in a process of its own took: seconds, and bytes by which its peak memory grew."""

    seconds: float
    grown: int


def ingest(path: Path, config: RunConfig, records: int) -> Taken:
    """Make a run with ``records`` records; for a process of its own."""
    before, started = peak(), time.perf_counter()
    runs.create(path, config, KEY, Made(records), ((), ()))
    return Taken(time.perf_counter() - started, peak() - before)


def age(path: Path, count: int) -> int:
    """Enter ``count`` requests: each deletes one record until half are gone, the rest retire slots; return how many went."""
    run = runs.open_run(path)
    layout = run.config.plan.layout
    gone = min(count, requests.created_rows(run) // 2)
    with run.ledger._writing():
        for number in range(count):
            if number < gone:
                tags, place = [tag(KEY, name(number))], slot(KEY, name(number), layout)
            else:
                tags, place = [], (number % layout.shards, number // layout.shards % layout.slices)
            body = {"request": f"r{number + 1:06d}", "tags": tags, "slots": [list(place)]}
            run.ledger._append("request", body, tags, [place])
    requests.erase(run, set())
    run.close()
    return gone


def start(path: Path) -> tuple[Taken, float]:
    """Open a run and ask how it stands; for a process of its own. Return what opening took, and seconds of the status."""
    before, started = peak(), time.perf_counter()
    system = System.open(path)
    opened = Taken(time.perf_counter() - started, peak() - before)
    started = time.perf_counter()
    system.status()
    seconds = time.perf_counter() - started
    system.close()
    return opened, seconds


def disk(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each of ``count`` synchronisations of a file of 4 KiB, and of removals of such a file."""
    synced, removed = [], []
    for number in range(count):
        with (folder / f"probe-{number}").open("wb") as file:
            file.write(bytes(4096))
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            synced.append(time.perf_counter() - started)
    for number in range(count):
        started = time.perf_counter()
        (folder / f"probe-{number}").unlink()
        removed.append(time.perf_counter() - started)
    return synced, removed


def peak() -> int:
    """Return this process's peak of resident memory in bytes; the system's own count, where there is no other, may begin
    with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
