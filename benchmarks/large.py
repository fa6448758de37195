"""Models of a size that asks for a GPU, random weights: one chain of S3T's plan by the fast engine and the stock pipeline.

What a run includes on either side: moving the records to the device, all nodes of one order of one shard, adapters written.
Both sides share one model; which weights it has is of no matter to what training costs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from baselines.stock.images import Images, Preprocess, image_base
from baselines.stock.model import Base
from baselines.stock.options import Options
from baselines.stock.training import Examples, fit
from benchmarks.metering import Meter, Usage
from s3t.backbone import Backbone, Encoded, Family
from s3t.blocks import ModelState
from s3t.engine.activations import Activations
from s3t.engine.fast import prefix_depth, train_node_fast
from s3t.engine.flips import with_flips
from s3t.graph import Node, batches, seed
from s3t.images import image_backbone
from s3t.plan import Plan, s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Keep, Row, Seeds, Task

CACHE = 64 * 10**9
"""Bytes of activations that ours may keep on the device."""


@dataclass(frozen=True)
class Work:
    """A chain to be trained on ``slices`` of positions. ``resident`` moves the records to the device as ours reads them."""

    name: str
    backbone: Backbone
    base: Base
    plan: Plan
    recipe: Recipe
    resident: Callable[[], list[Encoded]]
    examples: Examples
    labels: Sequence[int]
    slices: Sequence[Sequence[int]]
    classes: int
    flips: bool
    widths: tuple[int, int, int]
    """Tokens of a batch, hidden features, features inside the feed-forward: for the measured peak."""


@dataclass(frozen=True)
class Done:
    """What a chain used and trained; ``nodes``: seconds of each."""

    usage: Usage
    record_passes: int
    layer_passes: int
    steps: int
    nodes: tuple[float, ...]


@dataclass(frozen=True)
class Lean:
    """The fast engine in bfloat16; with ``graphs`` its steps are replayed."""

    graphs: bool = False
    method: str = "s3t"

    @property
    def mode(self) -> str:
        """What tells it from others of the same method."""
        return "graphs, bfloat16" if self.graphs else "fast, bfloat16"

    def run(self, work: Work, folder: Path, number: int) -> Done:
        """Train the chain with seeds of ``number``; nothing is left on the disk."""
        folder.mkdir(parents=True)
        cache = Activations(CACHE)
        try:
            with Meter() as meter:
                encoded, stages = work.resident(), work.plan.stages
                state, parts = None, []
                for depth in range(1, len(stages) + 1):
                    began = perf_counter()
                    task, keep = node_task(work, encoded, depth, state, cache, number)
                    how: Any = {"precision": "bfloat16", "keep": keep, "graphs": self.graphs}
                    trained = train_node_fast(work.backbone, task, **how)
                    state = ModelState(
                        {**(state.adapters if state else {}), stages[depth - 1].adapter: trained.adapter}, trained.head
                    )
                    save_file({**trained.adapter, **trained.head}, folder / f"{depth:02d}.safetensors")
                    parts.append((trained, perf_counter() - began))
        finally:
            cache.close()
            shutil.rmtree(folder)
        done = [trained for trained, _ in parts]
        passes, layers, steps = (
            sum(getattr(trained, name) for trained in done)
            for name in ("record_passes", "layer_passes", "optimizer_steps")
        )
        return Done(meter.usage, passes, layers, steps, tuple(seconds for _, seconds in parts))


def node_task(
    work: Work,
    encoded: Sequence[Encoded],
    depth: int,
    parent: ModelState | None,
    cache: Activations,
    number: int,
) -> tuple[Task, Keep]:
    """Return node ``depth`` of the first order, on ``depth`` slices, with seeds of ``number``; and its activations' place."""
    node, stage = Node(0, work.plan.orders[0][:depth]), work.plan.stages[depth - 1]
    chosen = [(i, piece) for piece in sorted(node.prefix) for i in work.slices[piece]]
    rows = [Row(encoded[i], work.labels[i], piece) for i, piece in chosen]
    ids = [str(i) for i, _ in chosen]
    lengths = [row.encoded.length for row in rows]
    drawn = batches(ids, lengths, stage.epochs, work.recipe, seed(number, node, "batches"))
    if work.flips:
        rows, drawn = with_flips(rows, ids, drawn, seed(number, node, "flips"))
    order, stages = work.plan.orders[0], work.plan.stages

    def keep(piece: int, at: int, make: Callable[[Sequence[int]], dict[int, Any]]) -> Any:
        first = order.index(piece) + 1
        depths = sorted({prefix_depth(stages[:i]) for i in range(first, len(stages) + 1)})
        return cache.get(str(piece), at, lambda: make(depths))

    seeds = Seeds(*(seed(number, node, purpose) for purpose in ("adapter", "head", "dropout")))
    return Task(stages[:depth], parent, rows, drawn, work.recipe, seeds, work.classes), keep


@dataclass(frozen=True)
class Usual:
    """The stock pipeline with the Trainer's ``options``."""

    mode: str
    options: Options
    method: str = field(default="stock")

    def run(self, work: Work, folder: Path, number: int) -> Done:
        """Train the chain; nothing is left on the disk."""
        slots = {(0, piece): list(chosen) for piece, chosen in enumerate(work.slices)}
        given: Any = (work.base, work.plan, work.recipe, work.examples, slots, work.classes, folder)
        try:
            with Meter(children=self.options.workers > 0) as meter:
                fitted = fit(*given, options=self.options, seed=number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        nodes = tuple(stage.seconds for stage in fitted.chains[0].stages)
        return Done(meter.usage, fitted.records, fitted.layer_passes, fitted.steps, nodes)


def vision(device: torch.device, recipe: Recipe, *, per_slice: int, slices: int, **size: Any) -> Work:
    """Return a ViT of ``size`` (transformers' ViTConfig; nothing: ViT-base at 224 pixels) on random images of 32 pixels."""
    from transformers import ViTConfig, ViTModel

    config: Any = ViTConfig(**size)
    with device:
        model = ViTModel(config, add_pooling_layer=False)
    generator, number = torch.Generator().manual_seed(0), per_slice * slices
    images = torch.randint(256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (number,), generator=generator).tolist()
    backbone = image_backbone(model, "vit, random weights", device, digest="random")
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    return Work(
        name="random images, 32 pixels",
        backbone=backbone,
        base=image_base(model, device),
        plan=s3t_plan(Layout(1, slices, 1), recipe, backbone.layers),
        recipe=recipe,
        resident=lambda: backbone.resident(images),
        examples=Images(arrays, labels, Preprocess(int(config.image_size))),
        labels=labels,
        slices=[range(per_slice * i, per_slice * (i + 1)) for i in range(slices)],
        classes=10,
        flips=True,
        widths=(recipe.batch_size * backbone.tokens, backbone.hidden, int(config.intermediate_size)),
    )


def language(
    device: torch.device, recipe: Recipe, *, per_slice: int, slices: int, tokens: tuple[int, int], **size: Any
) -> Work:
    """Return a Llama of ``size`` (transformers' LlamaConfig; nothing: 7B) in bfloat16, made on the device.

    Records are random words, from ``tokens[0]`` to ``tokens[1]`` each.
    """
    from transformers import LlamaConfig, LlamaModel

    config: Any = LlamaConfig(**size, use_cache=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model: nn.Module = LlamaModel(config).requires_grad_(False)
        model.eval()
    finally:
        torch.set_default_dtype(before)
    generator, number = torch.Generator().manual_seed(0), per_slice * slices
    lengths = torch.randint(tokens[0], tokens[1] + 1, (number,), generator=generator).tolist()
    words = [torch.randint(1, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    labels = torch.randint(2, (number,), generator=generator).tolist()
    targets, depth, hidden = ("q_proj", "v_proj"), int(config.num_hidden_layers), int(config.hidden_size)
    backbone = Backbone(
        "llama, random weights",
        model,
        Family("layers", targets),
        depth,
        hidden,
        "random",
        device,
        _none,
        {"input_ids": 0},
    )
    return Work(
        name=f"random words, {tokens[0]} to {tokens[1]} tokens",
        backbone=backbone,
        base=Base(model, "layers", depth, hidden, targets, device, last_token, pad, by_length=True),
        plan=s3t_plan(Layout(1, slices, 1), recipe, depth),
        recipe=recipe,
        resident=lambda: [Encoded({"input_ids": ids}, len(ids)) for ids in words],
        examples=[{"input_ids": ids, "labels": label} for ids, label in zip(words, labels, strict=True)],
        labels=labels,
        slices=[range(per_slice * i, per_slice * (i + 1)) for i in range(slices)],
        classes=2,
        flips=False,
        widths=(recipe.batch_size * tokens[1], hidden, int(config.intermediate_size)),
    )


def last_token(model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
    """Return each row's last real state, shape (batch, hidden): what classification heads of decoders read."""
    hidden: Tensor = model(**batch).last_hidden_state
    ends = batch["attention_mask"].sum(1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), ends].float()


def pad(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate examples, padded on the right to their own longest."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


def smaller(work: Work, per_slice: int) -> Work:
    """Return ``work`` on the first ``per_slice`` records of each slice."""
    return replace(work, slices=[list(chosen)[:per_slice] for chosen in work.slices])


def _none(*_: Any) -> list[Encoded]:
    return []
