"""Nouns as frozen records, checked when made. No torch here.

Words are those of the paper (arXiv 2406.16257, sections 3 and 4): a *record* has a stable id, a *layout* says how
records are split into shards and slices and how many orders a shard trains, a *recipe* holds the hyper-parameters.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from s3t.answers import CANDIDATE, check_label
from s3t.errors import DataError, LayoutError, RecipeError, did_you_mean
from s3t.unique import check_unique

Inputs = Mapping[str, str | bytes]
"""What a model sees of a record, by field name: ``{"text": ...}`` for text; other modalities add other fields."""

Order = tuple[int, ...]
"""A permutation of the slices 0..L-1 of a shard (the paper says "sequence")."""

SEPARATOR = "\x1f"
"""Between the group and the rest of a grouped record's id: the unit separator of ASCII."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """Return the one JSON encoding (UTF-8, sorted keys, no spaces) that digests are taken of."""
    return _CANONICAL.encode(value).encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in lower-case hex (64 characters)."""
    return hashlib.sha256(data).hexdigest()


def grouped(group: str, name: str) -> str:
    """Return the id of a record that belongs to ``group``, a person say: all of its records lie in one slot.

    DataError for a group that is empty or has the control character U+001F, which stands between the two parts.
    """
    if not group or SEPARATOR in group:
        raise DataError(f"group {group!r} is not usable: give a non-empty string without the character U+001F")
    return f"{group}{SEPARATOR}{name}"


def owner(record_id: str) -> str:
    """Return the group of a grouped record's id; any other record is its own."""
    return record_id.partition(SEPARATOR)[0] or record_id


def candidate(question: str, name: str) -> str:
    """Return the id of the record that is candidate answer ``name`` of ``question``, the id of a question, grouped or not.

    All of a question's candidates lie in one slot, that of the question's own group if it has one. DataError for an empty
    question, or a name that is empty or has the control character U+001F.
    """
    if not question or not name or SEPARATOR in name:
        raise DataError(
            f"candidate {name!r} of question {question!r} is not usable: give non-empty strings, the candidate's without the "
            "character U+001F"
        )
    return f"{question}{SEPARATOR}{name}"


def question_of(record_id: str) -> tuple[str, str]:
    """Return question and name of a candidate's id; another id without U+001F is a question of one nameless candidate."""
    question, _, name = record_id.rpartition(SEPARATOR)
    return (question, name) if question else (record_id, "")


@dataclass(frozen=True, slots=True)
class Record:
    """One training example with an id that never changes and is never reused.

    ``label`` is an index into the task's classes, or a number where the task is to predict one (a float then). Raises
    DataError for an empty id, NUL in the id, a negative index, or a number that is not finite.
    """

    id: str
    inputs: Inputs
    label: int | float

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or "\x00" in self.id:
            raise DataError(f"record id {self.id!r} is not usable: give a non-empty string without NUL")
        if not self.id.isascii() and self.id.encode(errors="replace").decode() != self.id:
            raise DataError(f"record id {self.id!r} is not usable: it has no UTF-8 form")
        if isinstance(self.label, float):
            if not math.isfinite(self.label):
                raise DataError(f"record {self.id!r} has the number {self.label} as its label; give a finite one")
        elif self.label < 0:
            raise DataError(f"record {self.id!r} has label {self.label}; labels are indices from 0")

    def content(self) -> bytes:
        """Return the canonical bytes of id, inputs and label: what commitments are taken of."""
        inputs = {
            name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
            for name, value in self.inputs.items()
        }
        return canonical_json({"id": self.id, "inputs": inputs, "label": self.label})

    @classmethod
    def from_content(cls, content: bytes) -> Record:
        """Rebuild a record from :meth:`content`."""
        raw = json.loads(content)
        inputs = {
            name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
            for name, value in raw["inputs"].items()
        }
        return cls(raw["id"], inputs, raw["label"])


@dataclass(frozen=True)
class Dataset:
    """A task with its three splits. Only ``train`` is deletable; ``validation`` tunes, ``test`` reports.

    ``classes`` are declared, never collected from deletable rows; a single one names the :class:`s3t.answers.Range` of the
    numbers that a regression asks for. ``digest`` identifies content and splits.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    test: tuple[Record, ...]
    source: str = ""
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if not self.classes:
            raise DataError(f"data {self.name!r} has no classes; at least 2 are needed, or a range of numbers")
        everything = (*self.train, *self.validation, *self.test)
        check_unique(everything)
        for record in everything:
            check_label(record.id, record.label, self.classes)
        summary = hashlib.sha256(canonical_json(["s3t data v1", list(self.classes)]))
        for split in (self.train, self.validation, self.test):
            summary.update(canonical_json(sorted(sha256(record.content()) for record in split)))
        object.__setattr__(self, "digest", summary.hexdigest())

    def subset(self, train: int, validation: int, test: int) -> Dataset:
        """Return a fixed subset: the records whose ids hash lowest, so that growing it only adds records.

        Candidates of a question stay together: the questions whose ids hash lowest are taken, as many of them as have no more
        than so many records. DataError where not even the first has room.
        """
        whole = self.classes == CANDIDATE

        def lowest(records: tuple[Record, ...], count: int) -> tuple[Record, ...]:
            units: dict[str, list[str]] = {}
            for record in records:
                units.setdefault(question_of(record.id)[0] if whole else record.id, []).append(record.id)
            chosen: set[str] = set()
            for name in sorted(units, key=lambda name: sha256(b"s3t subset v1\x00" + name.encode())):
                if len(chosen) + len(units[name]) > count:
                    if count and not chosen:
                        raise DataError(
                            f"{count} records of {self.name!r} are less than a question of {len(units[name])} candidates; "
                            "take more"
                        )
                    break
                chosen.update(units[name])
            return tuple(record for record in records if record.id in chosen)

        return Dataset(
            f"{self.name}[{train}]",
            self.classes,
            lowest(self.train, train),
            lowest(self.validation, validation),
            lowest(self.test, test),
            self.source,
        )


class Checked:
    """Mixin for frozen dataclasses that are stored whole with a result and read back strictly."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        raw: dict[str, Any] = json.loads(canonical_json(dataclasses.asdict(self)))  # type: ignore[call-overload]
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Build from JSON values. Raises RecipeError for an unknown key, with the closest known one, and for no object."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if not isinstance(raw, Mapping):
            raise RecipeError(f"{raw!r} is no {cls.__name__}: give an object of its keys and their values")
        for key in raw:
            if key not in known:
                raise RecipeError(f"unknown {cls.__name__} key {key!r}{did_you_mean(key, known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})


@dataclass(frozen=True)
class Layout(Checked):
    """How the data is split: ``shards`` (m), ``slices`` per shard (L), ``budget`` orders per shard (B).

    Raises LayoutError unless shards >= 1, slices >= 1 and 1 <= budget <= slices! (arXiv 2406.16257, section 3.2).
    """

    shards: int = 5
    slices: int = 4
    budget: int = 1

    def __post_init__(self) -> None:
        for name in ("shards", "slices", "budget"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LayoutError(f"{name}={value!r} is not possible: give an integer of at least 1")
        if self.slices <= 20 and self.budget > math.factorial(self.slices):
            raise LayoutError(
                f"budget={self.budget} exceeds the {math.factorial(self.slices)} orders that {self.slices} slices have; "
                f"give 1..{math.factorial(self.slices)}"
            )

    def slots(self) -> list[tuple[int, int]]:
        """Return every (shard, slice), in order."""
        return [(shard, piece) for shard in range(self.shards) for piece in range(self.slices)]


@dataclass(frozen=True)
class Recipe(Checked):
    """Hyper-parameters of training. Stored whole with every run and part of every node's key.

    ``adapter``: ``lora`` (Hu et al. 2021), or ``ia3``, which scales activations (Liu et al. 2022; reference engine only; rank
    and alpha mean nothing to it). ``rslora``: rank-stabilised LoRA (Kalajdzievski 2023); ``dora``: weight-decomposed LoRA (Liu
    et al. 2024), reference engine only. ``lr`` drives the backbone's trained tensors, ``head_lr`` the head; both warm up over
    the share ``warmup`` of a stage's steps and fall to 0, linearly. ``epochs`` are per stage. ``window`` batches at a time
    are formed from rows of similar length, inside the node. ``packing``: a batch's records lie end to end in rows of at most
    ``max_length`` tokens, each of one slice, and none sees another (models that predict text). No ``targets``: the family's.
    """

    adapter: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] = ()
    epochs: float = 4.0
    batch_size: int = 32
    lr: float = 4e-3
    head_lr: float = 1e-2
    weight_decay: float = 0.01
    warmup: float = 0.06
    clip: float = 1.0
    max_length: int = 128
    window: int = 16
    packing: bool = False
    ensemble: str = "mean-logits"

    def __post_init__(self) -> None:
        for name, low, high in _RECIPE_BOUNDS:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and low <= value <= high):
                raise RecipeError(f"{name}={value!r} is out of range: give {low} to {high}")
            if isinstance(getattr(Recipe, name), float):
                object.__setattr__(self, name, float(value))  # 2 and 2.0 epochs are one recipe and have one digest
            elif type(value) is not int:
                raise RecipeError(f"{name}={value!r} is not a whole number; give {low} to {high}")
        for name in ("rslora", "dora", "packing"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(f"{name}={getattr(self, name)!r} is neither true nor false; give one of them")
        if not (isinstance(self.targets, tuple) and all(isinstance(name, str) and name for name in self.targets)):
            raise RecipeError(f"targets={self.targets!r} are no names of modules; give a list of them, or none")
        for name, known in (("adapter", ADAPTERS), ("ensemble", ENSEMBLES)):
            value = getattr(self, name)
            if value not in known:
                raise RecipeError(f"{name}={value!r} is unknown{did_you_mean(value, known)}; choose from {known}")
        if self.adapter == "ia3" and (self.rslora or self.dora or self.dropout):
            raise RecipeError("adapter='ia3' has no rslora, dora or dropout; leave them out")


ADAPTERS = ("lora", "ia3")
ENSEMBLES = ("mean-logits", "mean-probabilities", "vote")
_RECIPE_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("rank", 1, 1024),
    ("alpha", 1e-6, 1e6),
    ("dropout", 0.0, 0.95),
    ("epochs", 0.01, 10_000),
    ("batch_size", 1, 1_000_000),
    ("lr", 0.0, 10.0),
    ("head_lr", 0.0, 10.0),
    ("weight_decay", 0.0, 1.0),
    ("warmup", 0.0, 1.0),
    ("clip", 1e-6, 1e6),
    ("max_length", 1, 1_000_000),
    ("window", 1, 1_000_000),
)
