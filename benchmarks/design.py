"""S3T's choices turned one at a time: which variants there are, and the accuracy of one trained run by length of chain.

Deletions cut chains, so a run is worth what its chains of every length are: accuracy is taken when only the first k blocks
serve in every shard, k = 1 .. slices, from one run and without deleting anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.workbench import Workbench, describe
from s3t.answers import answers
from s3t.design import PAPER, Design
from s3t.records import Layout, Recipe, Record

if TYPE_CHECKING:
    from s3t.backbone import Backbone
    from s3t.facts import Facts
    from s3t.runs import Run
    from s3t.selection import Chain

DEFAULT = "default"
ENSEMBLES = {"mean of probabilities": "mean-probabilities", "majority vote": "vote"}
"""Rules that combine the shards otherwise than by the mean of logits; they train nothing of their own."""


@dataclass(frozen=True)
class Variant:
    """One change from the profile's setting: of the ``design``, or of fields of the ``recipe``."""

    name: str
    design: Design = PAPER
    recipe: Mapping[str, Any] = field(default_factory=dict)


def variants(layers: int, slices: int, recipe: Recipe) -> list[Variant]:
    """Return what is trained for a model of so many ``layers``: the default first, then one change each.

    Sizes of blocks are left out where k = layers // slices is 1. Ranks keep alpha / rank, hence the scale, as it is.
    """
    k = layers // slices
    found = [
        Variant(DEFAULT),
        Variant("last slice alone", Design(cumulative=False)),
        Variant("bottom-up", Design(bottom_up=True)),
        Variant("stacked", Design(stacked=True)),
        Variant("fresh head per stage", Design(fresh_head=True)),
    ]
    if k > 1:
        half = k // 2
        found.append(Variant(f"{half} of {k} layers per block", Design(half)))
    if k > 1 and slices > 1:
        middle = (k,) * (slices - 2)
        found.append(Variant("larger first block", Design((k + half, *middle, k - half))))
        found.append(Variant("larger last block", Design((k - half, *middle, k + half))))
    for word, rank in (("half", recipe.rank // 2), ("twice", 2 * recipe.rank), ("four times", 4 * recipe.rank)):
        if rank:
            changes = {"rank": rank, "alpha": recipe.alpha * rank / recipe.rank}
            found.append(Variant(f"{word} the rank ({rank})", recipe=changes))
    return found


@dataclass(frozen=True)
class Outcome:
    """Test accuracy (share) by length of chain, from 1 to the slices; and what training took."""

    by_length: tuple[float, ...]
    record_passes: int
    layer_passes: int

    @property
    def full(self) -> float:
        """Accuracy at full health."""
        return self.by_length[-1]

    @property
    def mean(self) -> float:
        """Mean over the lengths of chains."""
        return sum(self.by_length) / len(self.by_length)


def measure(
    bench: Workbench, folder: Path, variant: Variant, layout: Layout, data: str, seed: int
) -> dict[str, Outcome]:
    """Train a run in ``folder`` and return its outcome by name of the variant; of the default also those of ``ENSEMBLES``."""
    recipe, dataset = replace(bench.profile.recipe("s3t"), **variant.recipe), bench.dataset(data)
    how: dict[str, Any] = {"engine": bench.mode.engine, "precision": bench.mode.precision, "design": variant.design}
    system = describe(folder, "s3t", layout, recipe, bench.backbone, dataset, seed, **how)
    try:
        cost = system.fit(dataset.train)
    finally:
        system.close()
    rules = {variant.name: recipe.ensemble} | (ENSEMBLES if variant.name == DEFAULT else {})
    found = by_length(folder, bench.backbone, dataset.test, list(rules.values()))
    return {name: Outcome(tuple(found[rule]), cost.record_passes, cost.layer_passes) for name, rule in rules.items()}


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Run, Facts]]:
    """Open the run in ``folder`` with its facts as of now."""
    from s3t.facts import Facts
    from s3t.runs import open_run

    run = open_run(folder)
    try:
        facts = Facts(run.ledger, run.config.plan)
        facts.update()
        yield run, facts
    finally:
        run.close()


def cut(facts: Facts, length: int, order: int = 0) -> dict[int, Chain]:
    """Return the chain of one ``order`` (its number in the plan) of each shard that has it, cut to ``length`` blocks."""
    from s3t.selection import chain

    found = [chain(shard, order, facts.plan, facts.alive) for shard in range(facts.plan.layout.shards)]
    return {whole.shard: replace(whole, nodes=whole.nodes[:length]) for whole in found if whole}


def by_length(
    folder: Path, backbone: Backbone, test: Sequence[Record], ensembles: Sequence[str], order: int = 0
) -> dict[str, list[float]]:
    """Return per rule of combination the accuracy on ``test`` when chains are cut to 1, 2, ... blocks, in a healthy run.

    The chains are those of one ``order`` (its number in the plan), in every shard; the first one's are what serves.
    """
    from s3t.engine.numerics import Numerics
    from s3t.ensembling import combine
    from s3t.serving import Serving

    with opened(folder) as (run, facts):
        serving, numerics = Serving(run, backbone), Numerics.of(run.config.kernel)
        rows = backbone.encode([record.inputs for record in test], run.config.recipe.max_length)
        labels = [record.label for record in test]
        out: dict[str, list[float]] = {rule: [] for rule in ensembles}
        for length in range(1, run.config.plan.layout.slices + 1):
            models = {s: serving.load(facts, chain) for s, chain in cut(facts, length, order).items()}
            logits = {s: scores.numpy() for s, scores in numerics.score(models, rows).items()}
            for rule in ensembles:
                said = answers(combine(logits, dict.fromkeys(logits, 1 / len(logits)), rule), run.config.classes)
                out[rule].append(sum(int(a) == b for a, b in zip(said, labels, strict=True)) / len(labels))
        return out
