"""The numeric kernel a second time: slow and obvious, in plain PyTorch and PEFT, from docs/DERIVATION.md ("Numeric kernel").

What :mod:`s3t.training` does with shared tensors and checks, this does with a deep copy of the base model and nothing else.
Neither that module nor :mod:`s3t.blocks` is used, so that an error there cannot repeat itself here; only the loading of base
models and the encoding of inputs (:mod:`s3t.backbone`) are shared. Results agree bit for bit on the same machine.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from s3t.errors import DivergedError
from s3t.records import Recipe
from verify.adapters import adapter_config
from verify.plans import Stage
from verify.texts import likelihoods, packed_batch

if TYPE_CHECKING:
    from s3t.backbone import Backbone, Encoded

KERNEL = "2"
"""Version of the rules in docs/DERIVATION.md that are followed here."""


@dataclass(frozen=True)
class Row:
    """One training row: the encoded input, the index of its class, and its slice."""

    encoded: Encoded
    label: int | float
    piece: int = 0


@dataclass(frozen=True)
class Seeds:
    """seed("adapter"), seed("head") and seed("dropout") of a node."""

    adapter: int
    head: int
    dropout: int


@dataclass(frozen=True)
class State:
    """What the stages so far add to the base model: tensors by adapter, and the head's ``weight`` and ``bias``."""

    adapters: Mapping[str, Mapping[str, Tensor]]
    head: Mapping[str, Tensor]


@dataclass(frozen=True)
class Task:
    """All that a node's tensors follow from, besides the base model; fields as in s3t.training.Task."""

    stages: Sequence[Stage]
    parent: State | None
    rows: Sequence[Row]
    batches: Sequence[Sequence[int]]
    recipe: Recipe
    seeds: Seeds
    classes: int
    finite: bool = True


@dataclass(frozen=True)
class Trained:
    """What a stage gives: its adapter and the head, on the CPU, and the counts of work done."""

    adapter: dict[str, Tensor]
    head: dict[str, Tensor]
    optimizer_steps: int
    record_passes: int
    layer_passes: int


def train_node_slowly(backbone: Backbone, task: Task) -> Trained:
    """Train the adapter of the last stage and the head on the task's batches, on top of its parent.

    Arguments and result are those of s3t.training.train_node. DivergedError if a gradient is not finite (with ``finite``).
    """
    stages, parent, recipe, seeds = task.stages, task.parent, task.recipe, task.seeds
    stage = stages[-1]
    with _deterministic(backbone.device):
        model = _model(backbone, stages, recipe)
        head = nn.Linear(backbone.hidden, task.classes, device=backbone.device)
        body = _trained_tensors(model, stage)
        if parent is None:
            _fresh_head(head, seeds.head)
        else:
            _load(model, head, stages, parent)
        if parent is not None and stage.fresh_head:
            _fresh_head(head, seeds.head)
        if (
            stage.kind == "lora"
            and recipe.adapter == "lora"
            and (parent is None or stage.adapter not in parent.adapters)
        ):
            _fresh_adapter(body, seeds.adapter)
        torch.manual_seed(seeds.dropout)
        _train(backbone, model, head, body, task)
        adapter = model.state_dict() if stage.kind == "full" else get_peft_model_state_dict(model, None, stage.adapter)
    visits = sum(len(batch) for batch in task.batches)
    backward = backbone.layers if stage.kind == "full" else backbone.layers - min(stage.layers)
    return Trained(
        {name: tensor.detach().clone().cpu() for name, tensor in adapter.items()},
        {name: tensor.detach().clone().cpu() for name, tensor in head.state_dict().items()},
        len(task.batches),
        visits,
        visits * (backbone.layers + backward),
    )


def score_slowly(
    backbone: Backbone, stages: Sequence[Stage], state: State, rows: Sequence[Encoded], recipe: Recipe, classes: int
) -> Tensor:
    """Return the logits of ``rows``, shape (rows, classes), of the base model with ``state``: 64 at a time by length."""
    model = _model(backbone, stages, recipe)
    head = nn.Linear(backbone.hidden, classes, device=backbone.device)
    _load(model, head, stages, state)
    logits = torch.zeros(len(rows), classes)
    by_length = sorted(range(len(rows)), key=lambda i: rows[i].length)
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = by_length[start : start + 64]
            answers = _logits(backbone, model, head, [rows[i] for i in batch])
            if backbone.predicts_text:
                answers = answers[:, :1] / answers[:, 1:]
            for i, answer in zip(batch, answers, strict=True):
                logits[i] = answer.cpu()
    return logits


def _model(backbone: Backbone, stages: Sequence[Stage], recipe: Recipe) -> Any:
    """Return a copy of the base model with one adapter per name in ``stages``: all active, all frozen, no dropout."""
    model: Any = copy.deepcopy(backbone.model)
    names = list(dict.fromkeys(stage.adapter for stage in stages if stage.kind == "lora"))
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property by its old name
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        for name in names:
            stage = next(stage for stage in stages if stage.adapter == name)
            config = adapter_config(backbone, stage, recipe)
            if name == names[0]:
                model = get_peft_model(model, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
    if names:
        model.base_model.set_adapter(names)
    model.to(backbone.device)
    model.eval()
    model.requires_grad_(False)
    return model


def _load(model: Any, head: nn.Linear, stages: Sequence[Stage], state: State) -> None:
    kinds = {stage.adapter: stage.kind for stage in stages}
    for name, tensors in state.adapters.items():
        if kinds[name] == "full":
            model.load_state_dict(dict(tensors))
        else:
            set_peft_model_state_dict(model, dict(tensors), adapter_name=name)
    head.load_state_dict(dict(state.head))


def _lora_modules(model: Any, name: str) -> list[Any]:
    """Return the modules that carry adapter ``name``, in the order in which the model names its modules."""
    return [m for _, m in model.named_modules() if name in getattr(m, "lora_A", getattr(m, "ia3_l", {}))]


def _trained_tensors(model: Any, stage: Stage) -> list[Tensor]:
    """Return what the stage trains besides the head: A, B, A, B, ... or every tensor of the base model."""
    if stage.kind == "full":
        return list(model.parameters())
    sides = ("lora_A", "lora_B", "lora_magnitude_vector", "ia3_l")
    held = (getattr(module, side, {}) for module in _lora_modules(model, stage.adapter) for side in sides)
    parts = [found[stage.adapter] for found in held if stage.adapter in found]
    return [part if isinstance(part, Tensor) else part.weight for part in parts]


def _fresh_adapter(body: Sequence[Tensor], seed: int) -> None:
    """Draw A and zero B of each pair; a magnitude, the only kind of one dimension, is right as PEFT makes it."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [tensor for tensor in body if tensor.dim() == 2]
    for a, b in zip(matrices[0::2], matrices[1::2], strict=True):
        inputs = a.shape[1]
        a.data = ((torch.rand(a.shape, generator=generator) * 2 - 1) * inputs**-0.5).to(a.device)
        b.data = torch.zeros_like(b)


def _fresh_head(head: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head.weight.data = (torch.randn(head.weight.shape, generator=generator) * 0.02).to(head.weight.device)
    head.bias.data = torch.zeros_like(head.bias)


def _train(backbone: Backbone, model: Any, head: nn.Linear, body: Sequence[Tensor], task: Task) -> None:
    stage, rows, batches, recipe = task.stages[-1], task.rows, task.batches, task.recipe
    learning = [*body, head.weight, head.bias]
    for tensor in learning:
        tensor.requires_grad_(True)
    for module in _lora_modules(model, stage.adapter):
        if recipe.adapter == "lora":
            module.lora_dropout[stage.adapter].train()
    optimizer = torch.optim.AdamW(
        [{"params": list(body)}, {"params": [head.weight, head.bias]}],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=recipe.weight_decay,
    )
    steps = len(batches)
    warmup = math.ceil(recipe.warmup * steps)
    for step, batch in enumerate(batches):
        share = (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)
        optimizer.param_groups[0]["lr"] = recipe.lr * share
        optimizer.param_groups[1]["lr"] = recipe.head_lr * share
        optimizer.zero_grad()
        given = [rows[i].encoded for i in batch]
        if recipe.packing:
            pieces = [rows[i].piece for i in batch]
            logits = likelihoods(backbone, model, packed_batch(given, pieces, recipe.max_length, backbone.pad))
        else:
            logits = _logits(backbone, model, head, given)
        labels = torch.tensor([rows[i].label for i in batch]).to(backbone.device)
        if backbone.predicts_text:
            loss = -(logits[:, 0].sum() / logits[:, 1].sum())
        elif task.classes == 1:
            loss = nn.MSELoss()(logits[:, 0], labels)
        else:
            loss = nn.CrossEntropyLoss()(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(learning, recipe.clip, norm_type=2.0)
        if task.finite and not math.isfinite(float(norm)):
            raise DivergedError(f"training diverged at step {step} (gradient norm {float(norm)}); lower lr={recipe.lr}")
        optimizer.step()


def _logits(backbone: Backbone, model: Any, head: nn.Linear, rows: Sequence[Encoded]) -> Tensor:
    """Return logits of shape (rows, classes): features of the last hidden states, as the family has them, through the head.

    Of a language model: the sum of each row's log-likelihoods, and their number, (rows, 2).
    """
    if backbone.family.reads == "image":
        return head(model(pixel_values=_pixels(backbone, rows)).last_hidden_state[:, 0])  # type: ignore[no-any-return]
    longest = max(row.length for row in rows)
    batch: dict[str, Tensor] = {}
    for name, pad in backbone.pad.items():
        padded = torch.full((len(rows), longest), pad)
        for i, row in enumerate(rows):
            for position, value in enumerate(row.fields[name]):
                padded[i, position] = value
        batch[name] = padded.to(backbone.device)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        mask[i, : row.length] = 1
    mask = mask.to(backbone.device)
    if backbone.predicts_text:
        return likelihoods(backbone, model, {**batch, "attention_mask": mask})
    hidden = model(**batch, attention_mask=mask).last_hidden_state
    if backbone.family.pooling == "last":
        return head(hidden[torch.arange(len(rows)), [row.length - 1 for row in rows]])  # type: ignore[no-any-return]
    real = mask[:, :, None].float()
    return head((hidden * real).sum(dim=1) / real.sum(dim=1))  # type: ignore[no-any-return]


def _pixels(backbone: Any, rows: Sequence[Any]) -> Tensor:
    """Return images, made one by one: resized by a triangle filter, normalised; (rows, 3, size, size)."""
    out = []
    for row in rows:
        raw = row.pixels.to(backbone.device, torch.float32)[None]
        square = nn.functional.interpolate(raw, size=[backbone.size] * 2, mode="bilinear", antialias=True)[0]
        square = square.flip(-1) if row.flipped else square
        planes = zip(square, backbone.mean, backbone.deviation, strict=True)
        out.append(torch.stack([(plane / 255.0 - mean) / deviation for plane, mean, deviation in planes]))
    return torch.stack(out)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Run the body with deterministic algorithms; they and the random generators are as before afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
