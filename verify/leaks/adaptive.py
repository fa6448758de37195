"""Fault 37, which is the requester's and not the system's: deletions chosen after seeing what is served.

A requester who sees the outputs of the single shards can tell, better than by chance, in which shard a record lies, and may
delete what one shard holds. Every bit of the system is still right for that list of requests; but the list depends on the
slot key, and so the retained records are no longer spread as a fresh key would spread them (Gupta et al. 2021, "Adaptive
machine unlearning", section 3). No check of one run can see this, whatever it retrains; a test over many keys does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3t.backbone import load
from s3t.describing import describe
from s3t.partition import slot
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.system import System
from verify.leaks.settings import CLASSES, text

LAYOUT = Layout(shards=2, slices=1, budget=1)
RECIPE = Recipe(epochs=12.0, batch_size=5, rank=4, lr=2e-2, head_lr=5e-2)
ROWS = 40

Requester = Callable[[System, Sequence[Record], int], list[str]]
"""Chooses which records to have deleted: (the system as served, its records, how many) -> ids."""


@dataclass(frozen=True)
class Outcome:
    """Over ``keys`` fresh slot keys, ``deleted`` records were deleted in all, ``hits`` of them from shard 0.

    ``p_value``: of at least as many hits if each deleted record lay in either shard with probability 1/2, as it does for
    requests that do not depend on the key (exact binomial test, one-sided).
    """

    keys: int
    deleted: int
    hits: int
    p_value: float


def by_outputs(system: System, records: Sequence[Record], count: int) -> list[str]:
    """Return the ids of the records whose labels shard 0's outputs fit best, compared with shard 1's."""
    import torch

    from s3t.engine.numerics import Numerics

    models = {shard: model for shard, (_, model) in system.served().models.items()}
    rows = system._loaded().encode([record.inputs for record in records], RECIPE.max_length)
    labels = torch.tensor([record.label for record in records])
    outputs = Numerics.of(system.config.kernel).score(models, rows)
    loss = {
        shard: torch.nn.functional.cross_entropy(logits, labels, reduction="none") for shard, logits in outputs.items()
    }
    fits = (loss[1] - loss[0]).tolist()
    ranked = sorted(range(len(records)), key=lambda i: fits[i], reverse=True)
    return [records[i].id for i in ranked[:count]]


def by_name(system: System, records: Sequence[Record], count: int) -> list[str]:
    """Return the first ids: a choice made before anything was served."""
    return sorted(record.id for record in records)[:count]


def corpus() -> list[Record]:
    """Return records with labels that only memory can tell."""
    drawn = [hashlib.sha256(f"label {number}".encode()).digest()[0] for number in range(ROWS)]
    return [Record(f"row-{n:04d}", {"text": text(n)}, byte % len(CLASSES)) for n, byte in enumerate(drawn)]


def over_keys(requester: Requester, folder: Path, keys: int, count: int = ROWS // 4) -> Outcome:
    """Train a system per slot key in ``folder``, let ``requester`` choose ``count`` records, delete them, and count.

    Keys differ in nothing but their bytes; model, recipe, records and seed are the same.
    """
    from scipy.stats import binomtest

    records, backbone = corpus(), load("tiny-2")
    config = describe(s3t_plan(LAYOUT, RECIPE, backbone.layers), RECIPE, backbone, {"classes": list(CLASSES)}, seed=7)
    hits = 0
    for number in range(keys):
        key = hashlib.sha256(f"adaptive {number}".encode()).digest()
        system = System(folder / f"run-{number:03d}", config, key=key, backbone=backbone)
        system.fit(records)
        chosen = requester(system, records, count)
        system.delete(chosen)
        system.close()
        hits += sum(slot(key, name, LAYOUT)[0] == 0 for name in chosen)
    p_value = binomtest(hits, keys * count, 0.5, alternative="greater").pvalue
    return Outcome(keys, keys * count, hits, float(p_value))
