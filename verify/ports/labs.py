"""The two ports as third-party systems (:class:`verify.adapter.Adapter`), on the tiny model with 12 layers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch

from s3t.backbone import Backbone
from s3t.backbone import load as load_backbone
from s3t.contract import Slot
from s3t.records import Record
from verify.case import SAME, Variant
from verify.laboratory import poison, quiet_word
from verify.ports.engine import Setting
from verify.ports.mistakes import S3TMistakes, SISAMistakes
from verify.ports.s3t_reference import S3TReference
from verify.ports.sisa_reference import SISAReference

SETTING = Setting()
WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty", "kelp", "larch")


def make_records(setting: Setting) -> tuple[Record, ...]:
    """Return 30 short records of two classes; the one that :func:`victim_of` S3T names is long."""
    rng = Random("ports v1")
    rows = []
    for i in range(30):
        label = i % 2
        words = [rng.choice(WORDS[6 * label :][:8]) for _ in range(rng.randint(4, 8))]
        rows.append(Record(f"person-{i:02d}", {"text": " ".join(words)}, label))
    long = next(row for row in rows if setting.slot(row.id) == (0, setting.slices - 1))
    text = " ".join(rng.choice(WORDS) for _ in range(40))
    return tuple(Record(row.id, {"text": text}, row.label) if row is long else row for row in rows)


class Lab(Protocol):
    """What the audits need of the laboratories below."""

    records: Sequence[Record]
    probes: Sequence[Record]
    classes: int

    def make(self, folder: Path, variant: Variant = SAME) -> Any: ...

    def open(self, folder: Path) -> Any: ...

    def victim(self) -> str: ...


@dataclass(frozen=True)
class _Ports:
    """What both laboratories share. ``setting`` is the same for all mistakes."""

    setting: Setting = SETTING

    @property
    def records(self) -> tuple[Record, ...]:
        """The records handed in for training."""
        return make_records(self.setting)

    @property
    def probes(self) -> tuple[Record, ...]:
        """Records that are never trained on; the S3T reference's test split."""
        return tuple(Record(f"test-{i}", {"text": " ".join(WORDS[3 * i :][:5])}, int(i > 1)) for i in range(4))

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.setting.classes

    def slot(self, name: str) -> Slot:
        """Return the slot of an id."""
        return self.setting.slot(name)

    def quiet_word(self, avoid: Sequence[Record]) -> str | None:
        """Return a word none of whose tokens occurs in ``avoid``."""
        return quiet_word(_backbone(), avoid, self.setting.recipe.max_length)

    def _varied(self, variant: Variant) -> tuple[Setting, Backbone]:
        seed = self.setting.seed if variant.seed is None else variant.seed
        backbone = poison(_backbone(), variant.poisoned) if variant.poisoned else _backbone()
        return dataclasses.replace(self.setting, seed=seed), backbone


@dataclass(frozen=True)
class S3TLab(_Ports):
    """Makes S3T references with ``mistakes``.

    What :func:`os.listdir` returns first is left open by the system. A new system lists by name; one that is opened again
    lists the other way round, as it may on another file system.
    """

    mistakes: S3TMistakes = dataclasses.field(default_factory=S3TMistakes)

    def make(self, folder: Path, variant: Variant = SAME) -> S3TReference:
        """Describe a system."""
        setting, backbone = self._varied(variant)
        return S3TReference(folder, setting, self.mistakes, backbone, self.probes, _by_name)

    def open(self, folder: Path) -> S3TReference:
        """Open a system that lists its folders the other way round."""
        setting, backbone = self._varied(SAME)
        return S3TReference.open(folder, setting, self.mistakes, backbone, self.probes, _by_name_reversed)

    def victim(self) -> str:
        """Return the long record, which lies in the last slice of the first order of shard 0."""
        return max(self.records, key=lambda record: len(str(record.inputs["text"]))).id


@dataclass(frozen=True)
class SISALab(_Ports):
    """Makes SISA references with ``mistakes``."""

    mistakes: SISAMistakes = dataclasses.field(default_factory=SISAMistakes)

    def make(self, folder: Path, variant: Variant = SAME) -> SISAReference:
        """Describe a system."""
        setting, backbone = self._varied(variant)
        return SISAReference(folder, setting, self.mistakes, backbone)

    def open(self, folder: Path) -> SISAReference:
        """Open a system."""
        setting, backbone = self._varied(SAME)
        return SISAReference.open(folder, setting, self.mistakes, backbone)

    def victim(self) -> str:
        """Return the last record of the last slice of the first shard whose rows do not fill whole batches."""
        size = self.setting.recipe.batch_size
        for shard in range(self.setting.shards):
            rows = [record.id for record in self.records if self.slot(record.id)[0] == shard]
            last = [name for name in rows if self.slot(name) == (shard, self.setting.slices - 1)]
            if len(rows) % size and last:
                return max(last)
        raise AssertionError("every shard fills whole batches: choose other records")


def _by_name(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _by_name_reversed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder), reverse=True)


@cache
def _backbone() -> Backbone:
    return load_backbone("tiny-12", torch.device("cpu"))
