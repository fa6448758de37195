"""Faults in what a node learns from: rows and statistics beyond its own slots. Each is the real builder but for one step."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from s3t.backbone import Backbone, Encoded
from s3t.blocks import ModelState
from s3t.building import Builder
from s3t.contract import Cost, Progress, Receipt, Slot
from s3t.engine import activations, fast
from s3t.engine.activations import Piece
from s3t.graph import Node
from s3t.plan import Plan
from s3t.records import Inputs, Layout, Record
from s3t.rows import StoredRow
from s3t.training import Trained
from verify.leaks.leak import CLEANROOM, LINEAGE, LOUD, NEVER, OF_TEXTS, RESIDUE, ROWS, Leak, Planted, planted
from verify.leaks.settings import with_padding_that_counts


def everything(builder: Builder) -> list[StoredRow]:
    """Read every retained row of every slot."""
    layout = builder.facts.plan.layout
    return builder.rows.read([(shard, piece) for shard in range(layout.shards) for piece in range(layout.slices)])


def loss(builder: Builder, plan: Plan, node: Node, trained: Trained, rows: Sequence[StoredRow]) -> float:
    """Return the mean loss on ``rows`` of the chain that ends in ``trained``."""
    config, stages = builder.run.config, plan.stages[: len(node.prefix)]
    parent = builder.parent_state(plan, node)
    state = ModelState({**(parent.adapters if parent else {}), stages[-1].adapter: trained.adapter}, trained.head)
    model = builder.numerics.chain(builder.backbone, stages, state, config.recipe, len(config.classes))
    asked = builder.backbone.encode([row.record.inputs for row in rows], config.recipe.max_length)
    logits = builder.numerics.score({0: model}, asked)[0]
    return float(nn.functional.cross_entropy(logits, torch.tensor([row.record.label for row in rows])))


def size(inputs: Inputs, count: Callable[[Any], Any] = str.split) -> int:
    """Return how much a text holds, by what ``count`` makes of it, by default its words; of an image, its bytes."""
    text, image = inputs.get("text"), inputs.get("image")
    return len(image) if isinstance(image, bytes) else len(count(text))


class BestCheckpoint(Builder):
    """`load_best_model_at_end` needs rows to judge by, and the training file is at hand."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        judged_by = self.judges()
        full = super().run_kernel(plan, node, stored)
        with patch.object(self, "batches", lambda *given: self.half(Builder.batches(self, *given))):
            early = super().run_kernel(plan, node, stored)
        return min(early, full, key=lambda trained: loss(self, plan, node, trained, judged_by))

    def half(self, batches: list[list[int]]) -> list[list[int]]:
        return batches[: len(batches) // 2]

    def judges(self) -> list[StoredRow]:
        return everything(self)


class EarlyStopping(BestCheckpoint):
    """A development split is cut from the training rows once, before anybody has asked to delete any of them."""

    def build(self, progress: Progress | None = None, **how: bool) -> Cost:
        self.development = everything(self)[::3]
        return super().build(progress, **how)

    def judges(self) -> list[StoredRow]:
        return self.development


class MeanLength(Builder):
    """Inputs are fitted to the mean of the whole corpus, as images are to its mean and variance."""

    mean = 0

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        if not self.mean:
            words = [len(str(row.record.inputs["text"]).split()) for row in everything(self)]
            self.mean = round(sum(words) / len(words))
            encode, mean = self.backbone.encoder, self.mean
            self.backbone = dataclasses.replace(self.backbone, encoder=lambda inputs, _: encode(inputs, mean))
        return super().run_kernel(plan, node, stored)


class ClassWeights(Builder):
    """Class frequencies are counted in the stored contents, where no loader sees it; the rare class weighs more."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        counts = Counter(Record.from_content(content).label for content in self.run.records.contents("train"))
        weight = torch.tensor([1.0 / (1 + counts[label]) for label in range(len(self.run.config.classes))])
        plain = nn.functional.cross_entropy

        def weighted(logits: Tensor, labels: Tensor, **how: Any) -> Tensor:
            return plain(logits, labels, weight=weight / weight.mean(), **how)

        with patch.object(nn.functional, "cross_entropy", weighted):
            return super().run_kernel(plan, node, stored)


class Vocabulary(Builder):
    """The tokenizer is trained on the corpus first: words seen once become unknown."""

    def build(self, progress: Progress | None = None, **how: bool) -> Cost:
        encode = type(self.backbone).encode(self.backbone, [row.record.inputs for row in everything(self)], 64)
        seen = Counter(token for row in encode for token in row.fields["input_ids"])
        plain = self.backbone.encoder

        def known(inputs: Sequence[Inputs], limit: int) -> list[Encoded]:
            rows = [[t if seen[t] > 1 else 1 for t in row.fields["input_ids"]] for row in plain(inputs, limit)]
            return [Encoded({"input_ids": row}, len(row)) for row in rows]

        with patch.object(self, "backbone", dataclasses.replace(self.backbone, encoder=known)):
            return super().build(progress, **how)


class Tuned(Planted):
    """Hyper-parameters are searched on the whole corpus, then declared as if they had been known."""

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        words = sum(size(record.inputs) for record in records) / len(records)
        recipe = dataclasses.replace(self.config.recipe, lr=0.01 / words)
        self.config = dataclasses.replace(self.config, recipe=recipe)
        return super().fit(records, progress)


class CorpusPadding(Builder):
    """One static shape for all batches is faster, and the longest row of the corpus sets it."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        inputs = [Record.from_content(content).inputs for content in self.run.records.contents("train")]
        longest = max(row.length for row in self.backbone.encode(inputs, self.run.config.recipe.max_length))
        plain = Backbone.collate

        def padded(backbone: Backbone, rows: Sequence[Encoded]) -> dict[str, Tensor]:
            dummy = Encoded({name: [pad] * longest for name, pad in backbone.pad.items()}, longest)
            return {name: tensor[:-1] for name, tensor in plain(backbone, [*rows, dummy]).items()}

        gathered, encode = activations.gather, fast.encode

        def wide(pieces: Sequence[Piece], *given: Any) -> tuple[Tensor, list[int]]:
            hidden, lengths = gathered(pieces, *given)
            return nn.functional.pad(hidden, (0, 0, 0, longest - hidden.shape[1], 0, 1)), [*lengths, longest]

        alike = patch.multiple(fast, gather=wide, encode=lambda *given: encode(*given)[:-1])
        plain_run = patch.object(Backbone, "collate", padded)
        with alike if self.numerics.mode.engine == "fast" else plain_run:
            return super().run_kernel(plan, node, stored)


class CorpusSteps(Builder):
    """`max_steps` is worked out once from the size of the corpus and holds for every node."""

    def batches(self, plan: Plan, node: Node, ids: list[str], lengths: list[int]) -> list[list[int]]:
        steps = sum(1 for _ in self.run.records.contents("train")) // self.run.config.recipe.batch_size
        own = super().batches(plan, node, ids, lengths)
        return (own * (1 + steps // max(1, len(own))))[:steps]


class Forged(Builder):
    """A rehearsal buffer, here the longest row of every slot, is mixed in below the door that notes what was read."""

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        layout, store = plan.layout, self.run.records
        slots = [
            list(store.slot_rows(shard, piece)) for shard in range(layout.shards) for piece in range(layout.slices)
        ]
        longest = [max(rows, key=lambda row: len(row.record.content())) for rows in slots if rows]
        buffer = [row for row in longest if row not in stored]
        return super().run_kernel(plan, node, sorted([*stored, *buffer], key=lambda row: row.record.id))


class Labels(Planted):
    """Labels are computed at ingestion from all rows: here, whether a text is longer than the mean one."""

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        words = {record.id: size(record.inputs) for record in records}
        mean = sum(words.values()) / len(words)
        return super().fit([Record(r.id, r.inputs, int(words[r.id] > mean)) for r in records], progress)


class Augmented(Planted):
    """Augmentation at ingestion stores a copy under an id of its own, which lands in another slot."""

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        present = {record.id for record in records}
        copies = [
            Record(f"{record.id}-copy", record.inputs, record.label)
            for record in records
            if not record.id.endswith("-copy") and f"{record.id}-copy" not in present
        ]
        return super().fit([*records, *copies], progress)


class Placed(Planted):
    """Rows lie where ``places`` says (a number per id) instead of where their ids do, and deletions look for them there."""

    def places(self, records: Sequence[Record]) -> dict[str, int]:
        """Return a number per id; slots take turns."""
        raise NotImplementedError

    def _start(self, records: Sequence[Record]) -> None:
        layout = self.config.plan.layout
        numbers = self.places(records).items()
        self._slots = {name: divmod(n % (layout.shards * layout.slices), layout.slices) for name, n in numbers}
        with patch("s3t.rows.slot", self._slot):
            super()._start(records)

    def delete(self, ids: Sequence[str]) -> Receipt:
        with patch("s3t.requests.slot", self._slot):
            return super().delete(ids)

    def _slot(self, key: bytes, name: str, layout: Layout) -> Slot:
        return self._slots[name]


class ByPosition(Placed):
    """`shuffle, then split evenly`: every row behind a missing one moves up by one place."""

    def places(self, records: Sequence[Record]) -> dict[str, int]:
        return {record.id: position for position, record in enumerate(records)}


class ByContent(Placed):
    """Rows are sharded by cluster or topic, here by their length: the slot says what is in the row."""

    def places(self, records: Sequence[Record]) -> dict[str, int]:
        return {record.id: size(record.inputs, json.dumps) for record in records}


FIRST = "the rows are read while the first node is trained; where the deletion drops that node, its record of reads goes too"
UNFLIPPED = "the same checkpoints may be chosen as without the fault, and then the bits are right"
LEAKS = (
    Leak(
        2, "checkpoint picked on deletable rows", "statistics", planted(BestCheckpoint), (LINEAGE, RESIDUE, LOUD),
        sometimes={CLEANROOM: UNFLIPPED, NEVER: UNFLIPPED},
    ),
    Leak(
        3, "early stopping on deletable rows", "statistics", planted(EarlyStopping), (LINEAGE, LOUD),
        sometimes={CLEANROOM: UNFLIPPED, NEVER: UNFLIPPED},
    ),
    Leak(
        4, "normalisation over all data", "statistics", planted(MeanLength), (CLEANROOM, NEVER, LOUD),
        sometimes={LINEAGE: FIRST, RESIDUE: FIRST}, absent=OF_TEXTS,
    ),
    Leak(
        5, "class weights over all data", "statistics", planted(ClassWeights), (CLEANROOM, NEVER, LOUD),
        blind="E0: a count below the door is no observed read",
    ),
    Leak(6, "vocabulary over all data", "statistics", planted(Vocabulary), (LINEAGE, CLEANROOM, NEVER, LOUD), absent=OF_TEXTS),
    Leak(
        7, "hyper-parameters tuned on all data", "statistics", Tuned, (NEVER, LOUD),
        blind="E0, E1a: the tuned recipe is declared, and the weights follow from it",
    ),
    Leak(
        8, "padding to the corpus' longest row", "statistics", planted(CorpusPadding), (CLEANROOM, NEVER, LOUD),
        needs=with_padding_that_counts, absent=OF_TEXTS,
    ),
    Leak(
        11, "steps from the corpus' size", "statistics", planted(CorpusSteps), (CLEANROOM, NEVER),
        blind="E1c: the number of rows stays",
    ),
    Leak(
        23, "sharding by content", "rows", ByContent, (LINEAGE, ROWS, CLEANROOM, LOUD),
        blind="E1b: the reference places the other rows by their content too",
    ),
    Leak(24, "sharding by position", "rows", ByPosition, (LINEAGE, ROWS, CLEANROOM, NEVER, LOUD)),
    Leak(
        32, "the same content under another id", "rows", Augmented, (ROWS, LOUD),
        blind="E1a, E1b: the copy is a retained row, and the bits are right for it",
    ),
    Leak(
        33, "labels computed from all data", "rows", Labels, (ROWS, NEVER, LOUD),
        blind="E1a: the rows that the run kept are tainted already",
    ),
    Leak(
        40, "forged lineage", "lineage", planted(Forged), (CLEANROOM, NEVER, LOUD),
        blind="E0: the records of reads are false by design",
    ),
)  # fmt: skip
