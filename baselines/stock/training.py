"""Training by the Trainer: a stage, a chain, all chains of a plan; and the ensemble of what was saved.

Each order of each shard is a chain of its own, as it is usually written: a prefix that two orders share is trained twice.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Subset
from transformers import PrinterCallback, Trainer, TrainingArguments

from baselines.stock.model import Base, Classifier, load_chain
from baselines.stock.options import Options
from s3t.errors import LayoutError, RecipeError
from s3t.plan import Plan
from s3t.records import Order, Recipe, canonical_json

Slot = tuple[int, int]
Examples = Sequence[Mapping[str, Any]]
"""What a model reads, one mapping per record, with ``labels``; anything with a length and positions."""


@dataclass(frozen=True)
class StageRun:
    """One trained stage: where adapter and head were saved, and what it took. ``records``: rows passed, counted."""

    folder: Path
    records: int
    steps: int
    layer_passes: int
    seconds: float


@dataclass(frozen=True)
class ChainRun:
    """The trained stages of one order of one shard. ``index``: which order it is."""

    shard: int
    index: int
    order: Order
    stages: tuple[StageRun, ...]

    def surviving(self, hit: set[Slot]) -> int:
        """Return how many stages never read a slot of ``hit``."""
        lost = (i for i, piece in enumerate(self.order) if (self.shard, piece) in hit)
        return next(lost, len(self.order))


@dataclass(frozen=True)
class Fitted:
    """All chains of a plan, on disk, and what they cost together."""

    base: Base
    plan: Plan
    recipe: Recipe
    classes: int
    chains: tuple[ChainRun, ...]
    seconds: float

    @property
    def records(self) -> int:
        """Rows passed through training, over all epochs and stages."""
        return sum(stage.records for chain in self.chains for stage in chain.stages)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(stage.steps for chain in self.chains for stage in chain.stages)

    @property
    def layer_passes(self) -> int:
        """Rows times layers, forward through all and backward to the lowest trained one."""
        return sum(stage.layer_passes for chain in self.chains for stage in chain.stages)

    def serving(self, hit: set[Slot] | None = None) -> dict[int, tuple[ChainRun, int]]:
        """Return per shard its longest chain, of equal ones the lowest order, and how many of its stages serve."""
        best: dict[int, tuple[ChainRun, int]] = {}
        for chain in sorted(self.chains, key=lambda chain: (chain.shard, chain.index)):
            length = chain.surviving(hit or set())
            if length > best.get(chain.shard, (chain, 0))[1]:
                best[chain.shard] = (chain, length)
        return best

    def model(self, chain: ChainRun, length: int) -> Classifier:
        """Return the first ``length`` stages of ``chain``, loaded from what was saved."""
        folders = [stage.folder for stage in chain.stages[:length]]
        with own_randomness(0):  # making a model draws from the generator
            return load_chain(self.base, self.recipe, self.classes, self.plan.stages[:length], folders)

    def predict(self, examples: Examples, hit: set[Slot] | None = None) -> NDArray[np.float64]:
        """Return the mean logits of the live shards, shape (len(examples), classes). LayoutError if none is live."""
        serving = self.serving(hit)
        if not serving:
            raise LayoutError("every shard is dead: all of their first slices were hit; train again")
        logits = [scores(self.model(*chain), examples) for chain in serving.values()]
        mean: NDArray[np.float64] = np.stack(logits).mean(axis=0, dtype=np.float64)
        return mean


def fit(
    base: Base,
    plan: Plan,
    recipe: Recipe,
    examples: Examples,
    slots: Mapping[Slot, Sequence[int]],
    classes: int,
    folder: Path,
    *,
    options: Options | None = None,
    seed: int = 0,
) -> Fitted:
    """Train every order of every shard and save each stage below ``folder``.

    ``slots``: positions in ``examples`` of each (shard, slice). Raises LayoutError if the plan does not fit the model or a
    slot is not in the layout, RecipeError for options that do not fit the examples.
    """
    options, layout = options or Options(), plan.layout
    base.check(plan)
    strange = [slot for slot in slots if not (0 <= slot[0] < layout.shards and 0 <= slot[1] < layout.slices)]
    if strange:
        raise LayoutError(f"slot {strange[0]} is not in a layout of {layout.shards} shards of {layout.slices} slices")
    if options.group_by_length and not base.by_length:
        raise RecipeError("group_by_length=True asks for examples with token ids; leave it out for images")
    began = time.perf_counter()
    base = base.prepared(options)

    def chain(shard: int, index: int) -> ChainRun:
        model = functools.partial(Classifier, base, recipe, classes)
        return _chain(model, plan, examples, slots, (shard, index), folder, options, seed)

    chains = tuple(chain(shard, index) for shard in range(layout.shards) for index in range(len(plan.orders)))
    return Fitted(base, plan, recipe, classes, chains, time.perf_counter() - began)


def _chain(
    make: Callable[[], Classifier],
    plan: Plan,
    examples: Examples,
    slots: Mapping[Slot, Sequence[int]],
    which: tuple[int, int],
    folder: Path,
    options: Options,
    seed: int,
) -> ChainRun:
    (shard, index), runs = which, []
    order = plan.orders[index]
    with own_randomness(_seed(seed, shard, index, "weights")):
        model = make()
        for number, stage in enumerate(plan.stages):
            began = time.perf_counter()
            model.grow(stage)
            if stage.fresh_head:
                model.fresh_head()
            pieces = plan.pieces(order[: number + 1])
            chosen = [position for piece in pieces for position in slots.get((shard, piece), ())]
            place = folder / f"shard-{shard:02d}" / f"order-{index:02d}" / f"stage-{number:02d}"
            own = dataclasses.replace(model.recipe, epochs=stage.epochs)
            before = model.records
            steps = train_stage(model, examples, chosen, own, place, options, _seed(seed, shard, index, number))
            model.save(place)
            records = model.records - before
            passes = records * (2 * model.base.depth - min(stage.layers))
            runs.append(StageRun(place, records, steps, passes, time.perf_counter() - began))
    return ChainRun(shard, index, order, tuple(runs))


def train_stage(
    model: Classifier,
    examples: Examples,
    chosen: Sequence[int],
    recipe: Recipe,
    folder: Path,
    options: Options,
    seed: int,
) -> int:
    """Train the model's newest adapter and its head on the ``chosen`` examples; return the optimizer steps.

    ``folder`` is the Trainer's output folder; nothing is logged, evaluated or saved while it runs. Without examples nothing
    happens.
    """
    if not chosen:
        return 0
    size = options.batch_size or recipe.batch_size
    steps = math.ceil(recipe.epochs * math.ceil(len(chosen) / size))
    groups = [
        {"params": model.adapter(), "lr": recipe.lr},
        {"params": list(model.head.parameters()), "lr": recipe.head_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
    scheduler = LambdaLR(optimizer, lambda step: _share(step, steps, math.ceil(recipe.warmup * steps)))
    on_cpu = model.base.device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        num_train_epochs=recipe.epochs,
        max_grad_norm=recipe.clip,
        bf16=options.precision == "bfloat16",
        use_cpu=on_cpu,
        seed=seed,
        dataloader_num_workers=options.workers,
        dataloader_persistent_workers=options.workers > 0,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        **(_grouping() if options.group_by_length else {}),
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=model.base.collate,
        train_dataset=_subset(examples, chosen),
        optimizers=(optimizer, scheduler),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return int(trainer.state.global_step)


def scores(model: Classifier, examples: Examples, batch_size: int = 64) -> NDArray[np.float32]:
    """Return logits of shape (len(examples), classes) in float32; rows of similar length share a batch."""
    out = np.zeros((len(examples), model.head.out_features), dtype=np.float32)
    places = list(range(len(examples)))
    if model.base.by_length:
        places.sort(key=lambda i: len(examples[i]["input_ids"]))
    model.eval()
    with torch.no_grad():
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            batch = model.base.collate([dict(examples[i]) for i in chosen])
            inputs = {name: tensor.to(model.base.device) for name, tensor in batch.items() if name != "labels"}
            out[chosen] = model(**inputs)["logits"].float().cpu().numpy()
    return out


def _share(step: int, steps: int, rising: int) -> float:
    """Linear warm-up over the first ``rising`` steps, then linear to zero, as share of the peak learning rate."""
    return (step + 1) / rising if step < rising else max(0, steps - step) / max(1, steps - rising)


def _subset(examples: Examples, chosen: Sequence[int]) -> Dataset[Any]:
    return Subset(examples, list(chosen))  # type: ignore[arg-type]


def _grouping() -> dict[str, Any]:
    """Return the argument that groups by length; versions of transformers name it differently."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    new = "train_sampling_strategy" in known
    return {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}


def _seed(*identity: Any) -> int:
    return int.from_bytes(hashlib.sha256(canonical_json(["s3t stock seed v1", *identity])).digest()[:4], "big")


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Give the body fresh generators, for the Trainer seeds those of the whole process; they are restored afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
