"""Systems without a model, whose outputs, noise and leaks are known exactly; and real ones on the smallest tiny model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3t.contract import Claim, Cost, Provenance, Receipt
from s3t.errors import OfflineError, RunError
from s3t.records import Inputs, Layout, Recipe, Record
from verify.case import SAME, Case, Event, Variant

CLASSES = 3
SLOT = (0, 0)


def text(record: Record) -> str:
    return str(record.inputs["text"])


@dataclass
class Pretend:
    """Logits are a bias per seed, noise per seed and text, and ``memory`` for the class of a text it was fitted on."""

    lab: Pretending
    seed: int
    learned: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    dropped: bool = False
    met: bool = False

    def fit(self, records: Sequence[Record], progress: Any = None) -> Cost:
        if self.lab.fault == "unfit":
            raise RunError("the disk is full")
        self.learned = {text(record): record.label for record in records}
        self.names = {record.id: text(record) for record in records}
        self.lab.made.append(self)
        return Cost()

    def delete(self, ids: Sequence[str]) -> Receipt:
        self.dropped = self.met = True
        if self.lab.fault != "remembers":
            for name in ids:
                self.learned.pop(self.names[name])
        return Receipt("r", tuple(ids), (), (SLOT,), (), (), Cost())

    def retire(self, slots: Sequence[tuple[int, int]]) -> Receipt:
        self.dropped = True
        return Receipt("r", (), (), tuple(slots), (), (), Cost())

    def predict(self, inputs: Sequence[Inputs]) -> Any:
        fault = self.lab.fault
        if self.dropped and (fault == "offline" or (fault == "offline if met" and self.met)):
            raise OfflineError("nothing is served")
        bias = np.random.default_rng(self.seed).normal(0, self.lab.noise, CLASSES)
        rows = []
        for words in (str(one["text"]) for one in inputs):
            code = zlib.crc32(words.encode())
            row = np.random.default_rng(code).normal(0, 0.5, CLASSES) + bias
            row = row + np.random.default_rng([self.seed, code]).normal(0, self.lab.noise, CLASSES)
            if words in self.learned:
                row[self.learned[words]] += self.lab.memory
            if fault == "shifted" and self.met:
                row[0] += self.lab.shift
            rows.append(row)
        if fault == "nan" and self.met:
            rows[0][0] = np.nan
        return np.array(rows, dtype=np.float32)

    def refresh(self, progress: Any = None) -> Cost:
        self.dropped = False
        return Cost()

    def provenance(self) -> Provenance:
        return Provenance("pretend", self.lab.claim, (), ())

    def weights(self) -> dict[str, Any]:
        return {}

    def cost(self) -> Cost:
        return Cost()


@dataclass
class Pretending:
    """A laboratory of such systems. ``made``: all that were fitted."""

    fault: str = ""
    noise: float = 0.2
    memory: float = 3.0
    shift: float = 1.0
    claim: Claim = "non-interference"
    made: list[Pretend] = field(default_factory=list)

    def make(self, folder: Path, variant: Variant = SAME) -> Pretend:
        return Pretend(self, variant.seed or 0)

    def open(self, folder: Path) -> Pretend:
        raise NotImplementedError

    def slot(self, name: str) -> tuple[int, int]:
        return (0, int(name[-1]) % 2)


def pretended(victims: int = 1, records: int = 12, probes: int = 6, **how: Any) -> Case:
    """Return a case of a pretended system that deleted its first ``victims`` records in one request each."""
    rows = tuple(Record(f"row-{i:02d}", {"text": f"sentence {i}"}, i % CLASSES) for i in range(records))
    asked = tuple(Record(f"probe-{i}", {"text": f"question {i}"}, i % CLASSES) for i in range(probes))
    lab = Pretending(**how)
    history = tuple(Event("delete", (row.id,), (SLOT,)) for row in rows[:victims])
    return Case(Pretend(lab, 0), lab, rows, history, asked)


@pytest.fixture(scope="session")
def pretend() -> Callable[..., Case]:
    """Makes cases of systems that need no model."""
    return pretended


LAYOUT = Layout(shards=1, slices=2, budget=2)
KEY = bytes(range(32))
WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty")


def _records(count: int, name: str) -> tuple[Record, ...]:
    """Labels follow no rule, so that a record can be learned by heart alone."""
    return tuple(
        Record(
            f"{name}-{i:02d}",
            {"text": f"{WORDS[i % 10]} {WORDS[(3 * i + 1) % 10]} {name}{i} mark{i}"},
            zlib.crc32(f"{name}{i}".encode()) % 2,
        )
        for i in range(count)
    )


class TinyLab:
    """Real systems, faulty as ``leak`` says, of 1 shard x 2 slices x 2 orders on 12 records, which they learn by heart."""

    def __init__(self, leak: Any) -> None:
        from s3t.backbone import load
        from s3t.plan import s3t_plan

        self.leak, self.backbone = leak, load("tiny-2")
        self.recipe = Recipe(epochs=10.0, batch_size=12, rank=2, lr=0.05, head_lr=0.05)
        self.plan = s3t_plan(LAYOUT, self.recipe, self.backbone.layers)

    def make(self, folder: Path, variant: Variant = SAME) -> Any:
        from s3t.describing import describe

        seed = variant.seed or 0
        config = describe(self.plan, self.recipe, self.backbone, {"classes": ["a", "b"]}, seed=seed)
        return self.leak.plant(folder, config, key=KEY, backbone=self.backbone, allow_empty=True)

    def open(self, folder: Path) -> Any:
        raise NotImplementedError

    def slot(self, name: str) -> tuple[int, int]:
        from verify import derive

        return derive.slot(KEY, name, LAYOUT.shards, LAYOUT.slices)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Callable[..., Case]]:
    """Makes cases of real systems on the 2-layer model."""
    from verify.leaks import CLEAN

    made: list[Any] = []

    def case(leak: Any = CLEAN) -> Case:
        lab, records = TinyLab(leak), _records(12, "row")
        system = lab.make(tmp_path / f"run-{len(made)}")
        made.append(system)
        system.fit(records)
        victim = records[0]
        system.delete([victim.id])
        return Case(
            system, lab, records, (Event("delete", (victim.id,), (lab.slot(victim.id),)),), _records(8, "probe")
        )

    yield case
    for system in made:
        system.close()
