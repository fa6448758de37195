"""Kernel fast-2: one node from its parent, its rows, its batches, its recipe and its seeds, faster than the reference.

What differs from kernel 2 (docs/DERIVATION.md, "Numeric kernel") is stated in docs/ENGINE.md, rule by rule: activations of the
layers below every adapter come from :mod:`s3t.engine.activations`, adapters of earlier stages are merged into the frozen
weights, activations and frozen weights are in the mode's precision; what is trained, the head, the loss and the optimizer stay
in float32. Stages that train every tensor (kind full) are the reference kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from s3t.backbone import Backbone
from s3t.engine import lora
from s3t.engine.activations import Piece, activate, gather
from s3t.engine.encoder import Encoder
from s3t.engine.layers import Block, Deltas
from s3t.engine.mode import Precision
from s3t.engine.steps import Replayed, Steps, repeated
from s3t.errors import DivergedError, IsolationError
from s3t.losses import mean_loss
from s3t.records import Recipe
from s3t.training import Keep, Row, Task, Trained, reproducible, schedule, train_node

if TYPE_CHECKING:
    from s3t.plan import Stage


def train_node_fast(
    backbone: Backbone, task: Task, *, precision: Precision, keep: Keep | None = None, graphs: bool = False
) -> Trained:
    """Train the adapter of the task's last stage and the head, as :func:`s3t.training.train_node` does.

    The task's rows say of which slice they are, in order of id within it. ``keep``: where activations of slices are kept, by
    slice; they are computed here if None. ``graphs``: replay steps (:mod:`s3t.engine.steps`). Raises ModelError if the base
    model has no lean form, RecipeError for a LoRA target that it does not have and for graphs of a model whose records
    differ in length, IsolationError if a frozen tensor changed, DivergedError if a gradient was not finite.
    """
    if any(s.kind == "full" for s in task.stages):
        return train_node(backbone, task)
    encoder = Encoder.of(backbone, precision)
    encoder.check_form("graphs" if graphs else "plain")
    with reproducible(task.seeds.dropout, backbone.device):
        node = Mounted(encoder, task, keep)
        torch.manual_seed(task.seeds.dropout)
        with unchanged(node.fixed(), task.stage):
            norms = _run(node, graphs)
    return node.trained(norms)


def prefix_depth(stages: Sequence[Stage]) -> int:
    """Return how many layers lie below every adapter of ``stages``."""
    return min(layer for stage in stages for layer in stage.layers)


def frozen(
    encoder: Encoder, stages: Sequence[Stage], recipe: Recipe, adapters: Mapping[str, Mapping[str, Tensor]]
) -> tuple[tuple[Block, ...], lora.ByLayer]:
    """Return the layers with the earlier stages' adapters, and what is to be added beside them: nothing, all is merged."""
    return lora.merged(encoder, stages, recipe, adapters), {}


class _Learned:
    """What a stage trains: the adapter's pairs A, B in order, then the head's weight and bias; float32, on the device.

    ``deltas``: its adapter and those ``beside`` it, by layer.
    """

    def __init__(
        self,
        encoder: Encoder,
        stage: Stage,
        recipe: Recipe,
        adapter: dict[str, Tensor],
        head: dict[str, Tensor],
        beside: lora.ByLayer,
    ) -> None:
        device = encoder.backbone.device
        self.places = lora.places(encoder, stage, recipe)
        names = [name for place in self.places for name in (place.a, place.b)]
        self.body = [nn.Parameter(adapter[name].to(device, copy=True)) for name in names]
        self.head = [nn.Parameter(head[name].to(device, copy=True)) for name in ("weight", "bias")]
        tensors = dict(zip(names, self.body, strict=True))
        self.deltas: lora.ByLayer = {**beside, **lora.deltas(encoder, stage, recipe, tensors, dropout=recipe.dropout)}


class Mounted:
    """A node about to be trained: ``layers`` above the frozen prefix of ``depth`` layers, what is ``learned``, and its rows."""

    def __init__(self, encoder: Encoder, task: Task, keep: Keep | None) -> None:
        stage, stages, recipe = task.stage, task.stages, task.recipe
        self.encoder, self.task = encoder, task
        adapter, head = _initial(encoder, task)
        given = {} if task.parent is None else {n: t for n, t in task.parent.adapters.items() if n != stage.adapter}
        layers, beside = frozen(encoder, stages[:-1], recipe, given)
        self.depth = prefix_depth(stages)
        self.layers = layers[self.depth :]
        self._pieces, self._where, self._computed = _inputs(encoder, task.rows, self.depth, keep)
        self.learned = _Learned(encoder, stage, recipe, adapter, head, beside)
        labels = torch.tensor([row.label for row in task.rows], device=encoder.backbone.device)
        order, sizes = [i for batch in task.batches for i in batch], [len(batch) for batch in task.batches]
        self._answers = torch.split(labels[order], sizes)

    def fixed(self) -> list[Tensor]:
        """Return what must not change."""
        return [t for layer in self.layers for t in layer.tensors()]

    def share(self, step: int) -> float:
        """Return the share of the peak learning rates at ``step``."""
        return schedule(step, len(self.task.batches), self.task.recipe.warmup)

    def batch(self, step: int) -> tuple[Tensor, list[int], Tensor]:
        """Return a batch's hidden states (rows, tokens, hidden) at ``depth``, its rows' lengths, and their answers."""
        where = [self._where[i] for i in self.task.batches[step]]
        return *gather(self._pieces, where, self.encoder.backbone.device), self._answers[step]

    def trained(self, norms: Sequence[Tensor]) -> Trained:
        """Return the outcome. DivergedError if one of the gradients' ``norms``, by step, is not finite and the task minds."""
        task, learned, layers = self.task, self.learned, self.encoder.backbone.layers
        if task.finite and norms and not bool(torch.isfinite(torch.stack([*norms])).all()):
            step = next(i for i, norm in enumerate(norms) if not bool(torch.isfinite(norm)))
            raise DivergedError(
                f"training diverged at step {step} (gradient norm {float(norms[step])}); lower lr={task.recipe.lr}"
            )
        passes = task.record_passes
        return Trained(
            adapter={name: _kept(t) for name, t in lora.named(learned.body, learned.places)},
            head={"weight": _kept(learned.head[0]), "bias": _kept(learned.head[1])},
            optimizer_steps=len(task.batches),
            record_passes=passes,
            layer_passes=passes * (layers - self.depth + layers - min(task.stage.layers)) + self._computed,
        )


@contextmanager
def unchanged(fixed: Sequence[Tensor], stage: Stage) -> Iterator[None]:
    """Raise IsolationError if the body wrote to one of the ``fixed`` tensors, or let it learn."""
    versions = [t._version for t in fixed]
    yield
    if versions != [t._version for t in fixed] or any(t.requires_grad for t in fixed):
        raise IsolationError(f"training adapter {stage.adapter!r} changed a frozen tensor; nothing was stored")


def _initial(encoder: Encoder, task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the adapter and the head as the stage finds them (docs/DERIVATION.md, "Numeric kernel")."""
    stage, parent, recipe, seeds = task.stage, task.parent, task.recipe, task.seeds
    if parent is None:
        return lora.fresh(encoder, stage, recipe, seeds.adapter), _fresh_head(encoder, task)
    by_name = {s.adapter: s for s in task.stages}
    for name, tensors in parent.adapters.items():
        lora.check_fits(encoder, by_name[name], recipe, tensors)
    inherited = parent.adapters.get(stage.adapter)
    adapter = lora.fresh(encoder, stage, recipe, seeds.adapter) if inherited is None else dict(inherited)
    return adapter, _fresh_head(encoder, task) if stage.fresh_head else dict(parent.head)


def _fresh_head(encoder: Encoder, task: Task) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(task.seeds.head)
    weight = torch.randn((task.classes, encoder.backbone.hidden), generator=generator) * 0.02
    return {"weight": weight, "bias": torch.zeros(task.classes)}


def _inputs(
    encoder: Encoder, rows: Sequence[Row], depth: int, keep: Keep | None
) -> tuple[list[Piece], list[tuple[int, int]], int]:
    """Return the slices' activations, where each row lies in them, and how many row-layers were computed for that."""
    by_slice: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_slice.setdefault(row.piece, []).append(i)
    pieces, where, computed = [], [(0, 0)] * len(rows), 0
    for number, piece in enumerate(sorted(by_slice)):
        mine = by_slice[piece]
        for at, i in enumerate(mine):
            where[i] = (number, at)

        def make(depths: Sequence[int], mine: Sequence[int] = mine) -> dict[int, Piece]:
            nonlocal computed
            computed += len(mine) * max(depths)
            return activate(encoder, [rows[i].encoded for i in mine], depths)

        pieces.append(make([depth])[depth] if keep is None else keep(piece, depth, make))
    return pieces, where, computed


def _run(node: Mounted, graphs: bool) -> list[Tensor]:
    """Take a node's steps; return the norms of their gradients."""
    task, learned = node.task, node.learned

    def loss(hidden: Tensor, lengths: Sequence[int], answers: Tensor) -> Tensor:
        features = encode(node.encoder, node.layers, node.depth, hidden, lengths, learned.deltas)
        return mean_loss(nn.functional.linear(features, *learned.head), answers)

    given = task.recipe, learned.body, learned.head, loss
    take = Replayed(*given, repeated(task.batches)) if graphs else Steps(*given)
    norms = []
    for step in range(len(task.batches)):
        take.rates(node.share(step))
        norms.append(take(*node.batch(step)))
    return norms


def encode(
    encoder: Encoder,
    layers: Sequence[Block],
    depth: int,
    hidden: Tensor,
    lengths: Sequence[int],
    deltas: Mapping[int, Deltas],
) -> Tensor:
    """Put ``hidden``, the input of layer ``depth``, through ``layers``, which end with the last, and return the features.

    hidden: (rows, tokens, hidden); result: (rows, hidden), float32.
    """
    if not layers:
        return encoder.pool(hidden, lengths)
    bias = encoder.bias(lengths)
    for i, layer in enumerate(layers[:-1], start=depth):
        hidden = layer(hidden, bias, deltas.get(i))
    return encoder.finish(layers[-1], hidden, bias, lengths, deltas.get(depth + len(layers) - 1))


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
