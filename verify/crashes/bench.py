"""What is cut short by :mod:`verify.crashes`, and what must hold after the next start. This module makes systems to audit.

Every work starts from a folder that is as it was before, says what it has acknowledged, and is checked from the run folder with
the verifier's own readers (evidence, state, scan, rows) and by what the system then serves. A fault is a pair: what kind, and
what was found.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from s3t.records import Layout, Recipe, Record, grouped
from s3t.resources import Resources
from verify import derive
from verify.evidence import read_evidence
from verify.report import Verdict
from verify.rows import check_rows
from verify.scan import check_scan
from verify.small import backbone
from verify.state import derive_state

if TYPE_CHECKING:
    from s3t.system import System

Kind = Literal["loss", "resurrection", "difference"]
"""Acknowledged and gone, or half there; deleted and still, or again, there; not what an uninterrupted run ends in."""

Fault = tuple[Kind, str]
Say = Callable[[], object]
KEY, MODEL, RUN = bytes(range(32)), "tiny", "new/run"
GROUP = "secretgroup"
RECORDS = [
    *(Record(f"row-{i:02d}", {"text": f"secret{i:02d} cat {i % 3}"}, i % 2) for i in range(10)),
    *(Record(grouped(GROUP, f"row-{i:02d}"), {"text": f"secret{i:02d} cat {i % 3}"}, i % 2) for i in range(10, 12)),
]
RECIPE = Recipe(rank=1, epochs=1.0, batch_size=8, dropout=0.1)
PROBES = [{"text": "the cat"}, {"text": "number 7"}]
FIRST, SECOND = "row-03", "row-08"
FLOOR = "floor"
SPILLING = Resources(cache_gb=0.0)
"""The fast engine keeps no activations in memory, so that it writes them to the disk."""


@dataclass
class Bench:
    """Systems of one engine, below ``folder``; what works start from and end in is made once.

    Engine ``floor`` is the reference with an analytic head beside the chains.
    """

    engine: str
    folder: Path
    _made: dict[Any, Path] = field(default_factory=dict)
    _ends: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def system(self, root: Path, budget: int = 2) -> System:
        """Describe the system below ``root``."""
        from s3t.analytic.head import AnalyticHead
        from s3t.plan import s3t_plan
        from s3t.system import System

        base = backbone(MODEL)
        plan, floor = s3t_plan(Layout(1, 2, budget), RECIPE, base.layers), self.engine == FLOOR
        plan = plan.with_head(AnalyticHead(), 0.5) if floor else plan
        how: dict[str, Any] = {"engine": "reference" if floor else self.engine, "precision": "float32"}
        how |= {"model": base, "classes": ("a", "b"), "key": KEY, "resources": SPILLING}
        return System.create(root / RUN, plan, RECIPE, **how)

    def open(self, root: Path) -> System:
        """Open the run below ``root``, as after a restart."""
        from s3t.system import System

        return System.open(root / RUN, backbone(MODEL), SPILLING)

    def start(self, *steps: Any, budget: int = 2, without: Sequence[str] = ()) -> Path:
        """Return a root with a run that was fitted, and has then seen ``steps``, each a call on the system; never write to it.

        ``without``: records that it has never met.
        """
        name = (*(step.__name__ for step in steps), budget, *without)
        if name not in self._made:
            root = self.folder / f"start-{self.engine}-{len(self._made)}"
            root.mkdir(parents=True)
            with contextlib.closing(self.system(root, budget)) as system:
                system.fit([record for record in RECORDS if record.id not in without])
                for step in steps:
                    step(system)
            self._made[name] = root
        return self._made[name]

    def end(self, *steps: Any, budget: int = 2, without: Sequence[str] = ()) -> dict[str, Any]:
        """Return the state (:func:`state`) of such a run."""
        root = self.start(*steps, budget=budget, without=without)
        if root not in self._ends:
            with contextlib.closing(self.open(root)) as system:
                self._ends[root] = state(system)
        return self._ends[root]


def state(system: System) -> dict[str, Any]:
    """Return all that must be the same bits: files of nodes, ids, what serves, scores."""
    evidence = read_evidence(system.path)
    nodes = derive_state(evidence).survivors
    live = bool(system.weights())
    return {
        "nodes": {node: (fact.tensors, fact.head, fact.reads, dict(fact.files)) for node, fact in nodes.items()},
        "ids": system.ids(),
        "served": {name: derive.tensors_digest(held) for name, held in system.weights().items()} if live else {},
        "scores": system.predict(PROBES).tobytes() if live else b"",
    }


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield in what two states differ."""
    for name, value in wanted.items():
        if found[name] != value:
            yield "difference", f"{name} are not those of an uninterrupted run"


def trained(root: Path) -> list[str]:
    """Return the keys of all nodes that the ledger says were trained; none where there is no run."""
    path = root / RUN / "ledger.sqlite"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [key for (key,) in db.execute("SELECT json_extract(body, '$.key') FROM entries WHERE kind = 'train'")]


def traces(root: Path, gone: Sequence[str]) -> Iterator[Fault]:
    """Yield which of the deleted records ``gone`` are in any byte of any file below ``root``."""
    everything = b"\n".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())
    for record in RECORDS:
        if record.id in gone:
            words = record.id.partition("\x1f")[2] or record.id, str(record.inputs["text"]).split()[0]
            if any(word.encode() in everything for word in words):
                yield "resurrection", f"deleted record {record.id!r} is in a file"


def folder(root: Path) -> Iterator[Fault]:
    """Yield what of the run is damaged, lost, or should not be there: every file is accounted for, or it is a fault."""
    evidence = read_evidence(root / RUN)
    yield from (("loss", problem) for problem in evidence.problems)
    if not evidence.problems:
        derived = derive_state(evidence)
        for finding in [*check_scan(evidence, derived), *check_rows(evidence, derived)]:
            if finding.verdict is not Verdict.HOLDS:
                kind: Kind = "resurrection" if "dropped or unknown" in finding.message else "loss"
                yield kind, finding.message


def delete_first(system: System) -> None:
    """Delete the first record."""
    system.delete([FIRST])


def delete_second(system: System) -> None:
    """Delete the second record."""
    system.delete([SECOND])


def delete_group(system: System) -> None:
    """Delete all records of the group."""
    system.delete(system.members(GROUP))


def refresh(system: System) -> None:
    """Train what is missing."""
    system.refresh()


class Work:
    """One work: from a copy of :meth:`start`, :meth:`do` in a child that is cut short, then :meth:`check` after that."""

    name: ClassVar[str]

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def start(self) -> Path | None:
        """Return the root to copy, None for an empty one."""
        raise NotImplementedError

    def do(self, root: Path, say: Say) -> None:
        """Do the work below ``root``; ``say`` is called after each thing acknowledged."""
        raise NotImplementedError

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Start again below ``root``, finish the work, and yield every fault; ``said``: how often it had called ``say``."""
        raise NotImplementedError
