"""The numeric kernel: one node from its parent, its rows, its batches, its recipe and its seeds; and nothing else.

Planner and clean room share this module and nothing above it. It holds no state between calls: model, optimizer and
generators are made afresh, and exactly the intended tensors may change, which is checked from the optimizer before the
first step and by digest of all other tensors after the last (arXiv 2406.16257, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils import deterministic as _deterministic

from s3t.backbone import Backbone, Encoded
from s3t.blocks import ChainModel, ModelState
from s3t.digests import tensors_digest
from s3t.engine.mode import REFERENCE
from s3t.errors import DivergedError, IsolationError
from s3t.language import LanguageBackbone
from s3t.records import Recipe

if TYPE_CHECKING:
    from s3t.plan import Stage

KERNEL = REFERENCE
"""Version of the numerics here, part of every node's key."""
memory: Any = _deterministic
"""PyTorch's switch for filling new memory."""


@dataclass(frozen=True)
class Seeds:
    """Seeds of one node, each derived from its identity (docs/DERIVATION.md, "Seeds")."""

    adapter: int
    head: int
    dropout: int


@dataclass(frozen=True)
class Row:
    """One training row as the kernel sees it; ``piece`` is the slice of its shard that it lies in.

    ``label``: an index below the task's classes, or a number (float, :func:`s3t.records.target`).
    """

    encoded: Encoded
    label: int | float
    piece: int = 0


@dataclass(frozen=True)
class Trained:
    """The outcome of a stage: its adapter's tensors, the head after the stage (both on the CPU), and counts of work."""

    adapter: dict[str, Tensor]
    head: dict[str, Tensor]
    optimizer_steps: int
    record_passes: int
    layer_passes: int


@dataclass(frozen=True)
class Task:
    """All that one node's tensors are a function of, besides the base model and the numerics.

    The adapter of ``stages[-1]`` and the head are trained on ``batches`` of indices into ``rows``, in the given order, all
    epochs in one list. ``parent``: the state after the stages before (None for the first); its other adapters stay active and
    frozen, the head continues unless the stage has a fresh one,
    and an adapter of the same name continues. ``classes``: outputs of the head, 1 for a task whose
    answers are numbers. ``finite``: whether a gradient that is not finite
    is an error; an audit poisons records on purpose and asks what else becomes NaN.
    """

    stages: Sequence[Stage]
    parent: ModelState | None
    rows: Sequence[Row]
    batches: Sequence[Sequence[int]]
    recipe: Recipe
    seeds: Seeds
    classes: int
    finite: bool = True

    @property
    def stage(self) -> Stage:
        """What the node trains: the last of its stages."""
        return self.stages[-1]

    @property
    def record_passes(self) -> int:
        """How many times a row is trained on, over all batches."""
        return sum(len(batch) for batch in self.batches)


Keep = Callable[[int, int, Callable[[Sequence[int]], dict[int, Any]]], Any]
"""Where the fast engine's activations are kept: called with a slice, a depth, and what makes some depths of that slice."""


def train_node(backbone: Backbone, task: Task) -> Trained:
    """Train one node: its adapter, of shapes as PEFT has them, and the head (classes, hidden).

    Raises IsolationError if any other tensor would change or has changed, DivergedError if a gradient is not finite and the
    task forbids that, RecipeError if the recipe asks for packing and the model cannot be trained so.
    """
    stage, parent, seeds = task.stage, task.parent, task.seeds
    if task.recipe.packing:
        backbone.check_packing(task.recipe.max_length)
    with reproducible(seeds.dropout, backbone.device):
        model = ChainModel(backbone, task.stages, task.recipe, task.classes)
        if parent is None:
            model.initialise_head(seeds.head)
        else:
            model.mount(parent)
            if stage.fresh_head:
                model.initialise_head(seeds.head)
        if parent is None or stage.adapter not in parent.adapters:
            model.initialise(stage.adapter, seeds.adapter)
        trained = [*model.adapter_parameters(stage.adapter), *model.head.parameters()]
        before = _digest_of_others(model, trained)
        torch.manual_seed(seeds.dropout)  # making the model has drawn from the generator
        _run(model, task)
        if _digest_of_others(model, trained) != before:
            raise IsolationError(f"training adapter {stage.adapter!r} changed a tensor outside it; nothing was stored")
    lowest = 0 if stage.kind == "full" else min(stage.layers)
    passes = task.record_passes
    return Trained(
        adapter={name: _kept(tensor) for name, tensor in model.adapter_tensors(stage.adapter).items()},
        head={name: _kept(tensor) for name, tensor in model.head_tensors().items()},
        optimizer_steps=len(task.batches),
        record_passes=passes,
        layer_passes=passes * (backbone.layers + backbone.layers - lowest),
    )


def _run(model: ChainModel, task: Task) -> None:
    stage, rows, recipe = task.stage, task.rows, task.recipe
    body, head = model.adapter_parameters(stage.adapter), list(model.head.parameters())
    for parameter in (*body, *head):
        parameter.requires_grad_(True)
    for dropout in model.dropouts(stage.adapter) if stage.kind == "lora" else []:
        dropout.train()
    optimizer = torch.optim.AdamW(
        [{"params": body, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}],
        weight_decay=recipe.weight_decay,
        fused=False,
    )
    _check_optimizer(model, optimizer, [*body, *head])
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    for step, batch in enumerate(task.batches):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, len(task.batches), recipe.warmup)
        logits = model(_batch(model.backbone, [rows[i] for i in batch], recipe))
        labels = torch.tensor([rows[i].label for i in batch], device=logits.device)
        loss = model.backbone.loss(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_([*body, *head], recipe.clip)
        if task.finite and not torch.isfinite(norm):
            raise DivergedError(f"training diverged at step {step} (gradient norm {float(norm)}); lower lr={recipe.lr}")
        optimizer.step()
        optimizer.zero_grad()
    for parameter in (*body, *head):
        parameter.requires_grad_(False)


def _batch(backbone: Backbone, rows: Sequence[Row], recipe: Recipe) -> dict[str, Tensor]:
    encoded = [row.encoded for row in rows]
    if not recipe.packing:
        return backbone.collate(encoded)
    return cast(LanguageBackbone, backbone).pack(encoded, [row.piece for row in rows], recipe.max_length)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate: linear warm-up over the first steps, then linear to zero."""
    rising = math.ceil(warmup * steps)
    return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)


def _check_optimizer(model: ChainModel, optimizer: torch.optim.Optimizer, intended: Sequence[nn.Parameter]) -> None:
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = {id(p) for p in intended}
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    if len(held) != len(set(held)) or set(held) != wanted or learning != wanted:
        raise IsolationError(
            f"the optimizer holds {len(held)} tensors and {len(learning)} require gradients; the stage owns {len(wanted)}"
        )


def _digest_of_others(model: ChainModel, trained: Sequence[nn.Parameter]) -> str:
    own = {parameter.data_ptr() for parameter in trained}
    return tensors_digest({k: v for k, v in model.state_dict().items() if v.data_ptr() not in own})


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Run the body with deterministic algorithms and its own generator state; both are restored afterwards.

    New memory is not filled before it is written, which PyTorch would do then: it costs a tenth of the time, and nothing here
    reads what it did not write (a test holds the bits to be the same).
    """
    deterministic, filled = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            memory.fill_uninitialized_memory = filled
