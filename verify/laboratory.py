"""The laboratory of a run folder: further systems of its configuration, and the case that its evidence makes.

This is, beside the command line, the place of the verifier that opens the suite's own system, and only as the system
under audit or as a reference that goes through the same contract.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.contract import UnlearningSystem
from s3t.records import Record
from verify import derive
from verify.case import SAME, Case, Lab, Variant
from verify.evidence import Evidence, read_evidence
from verify.state import Node, State, derive_state, history

if TYPE_CHECKING:
    from s3t.backbone import Backbone
    from s3t.building import Builder
    from s3t.system import System

QUIET = ("zxqj", "qwzk", "vvkq", "xjjw", *(chr(code) for code in range(0x0B85, 0x0BB9)), *map(str, range(7001, 8000)))
"""Words to try for one whose tokens no honest record has."""


class RunLab:
    """Makes systems with the configuration, slot key and evaluation records of a run."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._loaded: Backbone | None = None

    def make(self, folder: Path, variant: Variant = SAME) -> UnlearningSystem:
        """Describe a system in ``folder``; nothing is trained."""
        from s3t.runs import RunConfig

        path = self._evidence.folder / "run.json"
        config = RunConfig.from_bytes(path.read_bytes(), str(path))
        if variant.seed is not None:
            config = dataclasses.replace(config, seed=variant.seed)
        kept = (self._evidence.split("validation"), self._evidence.split("test"))
        kind, backbone = _kinds(variant.tolerant), self.backbone
        if variant.poisoned:
            backbone = poison(backbone, variant.poisoned)
        return kind(folder, config, key=self._evidence.key, evaluation=kept, backbone=backbone, allow_empty=True)

    def open(self, folder: Path) -> UnlearningSystem:
        """Open a run of this configuration, as after a restart."""
        from s3t.system import System

        return System.open(folder, self.backbone)

    @property
    def backbone(self) -> Backbone:
        """The base model, loaded once."""
        if self._loaded is None:
            from s3t.backbone import load

            self._loaded = load(str(self._evidence.run["model"]["name"]))
        return self._loaded

    def slot(self, name: str) -> tuple[int, int]:
        """Return the slot of an id."""
        layout = self._evidence.run["plan"]["layout"]
        return derive.slot(self._evidence.key, name, int(layout["shards"]), int(layout["slices"]))

    def survivors(self, folder: Path) -> frozenset[Node]:
        """Return the nodes that survive in the run in ``folder``; none if its evidence is damaged."""
        evidence = read_evidence(folder)
        return frozenset() if evidence.problems else frozenset(derive_state(evidence).survivors)

    def quiet_word(self, avoid: Sequence[Record]) -> str | None:
        """Return a word none of whose tokens occurs in the records ``avoid``, or None if none is found.

        None too with an analytic head: no system takes features that are not finite, so NaN cannot be put into a record.
        """
        if "head" in self._evidence.run["plan"]:
            return None
        return quiet_word(self.backbone, avoid, int(self._evidence.run["recipe"]["max_length"]))


def _kinds(tolerant: bool) -> type[System]:
    from s3t.system import System

    class Tolerant(System):
        """A system that goes on training where the loss is NaN."""

        def _builder(self, run: Any, facts: Any) -> Builder:
            builder = super()._builder(run, facts)
            builder.finite = False
            return builder

    return Tolerant if tolerant else System


def poison(backbone: Backbone, words: Sequence[str]) -> Backbone:
    """Return ``backbone`` with NaN as the input embedding of every token that only ``words`` have.

    It keeps its digest: for whatever does not read these tokens it is the same model.
    """
    model = copy.deepcopy(backbone.model)
    tokens = set().union(*(_tokens(backbone, word) for word in words)) - _tokens(backbone, "the")
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    for token in tokens:
        embedding.weight.data[token] = float("nan")
    return dataclasses.replace(backbone, model=model)


def quiet_word(backbone: Backbone, avoid: Sequence[Record], max_length: int) -> str | None:
    """Return a word with a token of its own, none of whose own tokens occurs in ``avoid``; None if none is found.

    None too for a model that reads images: no image is the only one with some value.
    """
    if backbone.family.reads == "image":
        return None
    plain = _tokens(backbone, "the")
    encoded = backbone.encode([record.inputs for record in avoid], max_length)
    used = {token for row in encoded for token in row.fields["input_ids"]}
    for word in QUIET:
        own = _tokens(backbone, word) - plain
        if own and not own & used:
            return word
    return None


def _tokens(backbone: Backbone, word: str) -> set[int]:
    return set(backbone.encode([{"text": word}], 16)[0].fields["input_ids"])


def run_case(
    system: UnlearningSystem,
    evidence: Evidence,
    state: State,
    lab: Lab,
    records: Sequence[Record] | None,
    probes: Sequence[Record],
) -> Case | str:
    """Return the case of a run, or why there is none: its deleted records are not all known."""
    if records is None:
        return "the deleted records are not known (give the source records)"
    names = {derive.tag(evidence.key, record.id): record.id for record in records}
    past = history(evidence.entries, names)
    if any(name == "" for event in past for name in event.ids):
        return "a deleted record is not among the source records"
    ordered = tuple(sorted(records, key=lambda record: record.id))
    return Case(system, lab, ordered, past, tuple(probes), dropped_slots(state), frozenset(state.survivors))


def dropped_slots(state: State) -> frozenset[tuple[int, int]]:
    """Return the hit slots without any surviving node: what they held reaches nothing that is served.

    None where there is an analytic head: it is solved from all retained records, those of dropped slots as well.
    """
    if state.plan.head is not None:
        return frozenset()
    alive = {(shard, s) for shard, prefix in state.survivors for s in prefix}
    return frozenset(slot for slot in state.hits if slot not in alive)
