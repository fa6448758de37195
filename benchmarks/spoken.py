"""What every chain that a trained run may come to serve says of the test records: one run, from which no record is deleted.

Deletions only switch blocks off, so a run serves, whatever is asked for, one of the chains it has now, cut. What these say is
taken once; then the accuracy after any stream of deletions is a matter of combining, and thousands of streams cost little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.design import cut, opened
from s3t.backbone import Backbone
from s3t.contract import Slot
from s3t.engine.numerics import Numerics
from s3t.ensembling import among, combine
from s3t.partition import slot
from s3t.plan import Plan
from s3t.records import Record
from s3t.serving import Serving

Place = tuple[int, int]
"""The order and the length of the chain that a shard serves."""


@dataclass(frozen=True)
class Spoken:
    """``logits``: (tests, classes) by shard, order and length, of chains that have read a record; ``labels`` (tests,);
    ``plan``; ``ensemble``: the rule by which shards are combined; ``slots``: of every training record, by id."""

    logits: Mapping[tuple[int, int, int], NDArray[np.float32]]
    labels: NDArray[np.int64]
    plan: Plan
    ensemble: str
    slots: Mapping[str, Slot]
    _known: dict[tuple[tuple[int, Place], ...], float] = field(default_factory=dict)

    def serves(self, hit: Iterable[Slot]) -> dict[int, Place]:
        """Return what each live shard serves once these slots were hit: its longest chain, of equals the first order's."""
        gone, best = set(hit), dict[int, Place]()
        for shard in range(self.plan.layout.shards):
            for order, pieces in enumerate(self.plan.orders):
                length = next((at for at, piece in enumerate(pieces) if (shard, piece) in gone), len(pieces))
                if (shard, order, length) in self.logits and length > best.get(shard, (0, 0))[1]:
                    best[shard] = (order, length)
        return best

    def accuracy(self, serving: Mapping[int, Place]) -> float:
        """Return the share of test records that these chains answer rightly together; none where there is no chain."""
        state = tuple(sorted(serving.items()))
        if state not in self._known:
            lengths = {shard: length for shard, (_, length) in serving.items()}
            said = {shard: self.logits[(shard, *place)] for shard, place in serving.items()}
            right = 0.0
            if said:
                answers = combine(said, among(self.plan, lengths), self.ensemble).argmax(axis=1)
                right = float((answers == self.labels).mean())
            self._known[state] = right
        return self._known[state]

    def curve(self, requests: Sequence[str]) -> tuple[list[float], int]:
        """Return the accuracy after 0, 1, 2, ... of these deletions, and the number of them after which nothing serves
        (one more than there are, if something serves to the end)."""
        hit, values, dead = set[Slot](), list[float](), len(requests) + 1
        serving = self.serves(hit)
        values.append(self.accuracy(serving))
        for done, name in enumerate(requests, start=1):
            if (where := self.slots[name]) not in hit:
                hit.add(where)
                serving = self.serves(hit)
                dead = dead if serving else min(dead, done)
            values.append(self.accuracy(serving))
        return values, dead


def speak(folder: Path, backbone: Backbone, train: Sequence[Record], test: Sequence[Record]) -> Spoken:
    """Ask every chain of the run in ``folder``, at every length, about ``test``; nothing may have been deleted from it."""
    with opened(folder) as (run, facts):
        config, plan = run.config, facts.plan  # the facts' plan has the orders that were added later
        serving, numerics = Serving(run, backbone), Numerics.of(config.kernel)
        rows = backbone.encode([record.inputs for record in test], config.recipe.max_length)
        found: dict[tuple[int, int, int], NDArray[np.float32]] = {}
        for order in range(len(plan.orders)):
            for length in range(1, plan.layout.slices + 1):
                chains = {s: c for s, c in cut(facts, length, order).items() if any(fact.rows for fact in c.nodes)}
                models = {shard: serving.load(facts, chain) for shard, chain in chains.items()}
                for shard, scores in (numerics.score(models, rows) if models else {}).items():
                    found[shard, order, length] = scores.numpy()
        slots = {record.id: slot(run.key, record.id, plan.layout) for record in train}
        labels = np.array([record.label for record in test], dtype=np.int64)
        return Spoken(found, labels, plan, config.recipe.ensemble, slots)
