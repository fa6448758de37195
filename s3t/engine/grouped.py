"""Several nodes trained in the same steps, as grouped adapters, and none of them depends on its company.

Small nodes leave a GPU idle. Here up to ``GROUP`` nodes of one stage take their steps together: every product is a batched one
over the group, with a node's own weights (its earlier blocks are merged into them), adapter, head and rows in each place. What
else a library's choice could depend on is fixed: a group has always ``GROUP`` places, empty ones filled with zeros, and a
node's batch has always the recipe's size, filled with rows that weigh nothing. Clipping, AdamW and dropout are a node's own.
So records must all be of one length, and the numerics are a kernel of their own name (docs/ENGINE.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from s3t.backbone import Backbone
from s3t.engine.encoder import Encoder
from s3t.engine.fast import Mounted, encode, unchanged
from s3t.engine.layers import PROJECTIONS, Block, Delta, Layer, Linear
from s3t.engine.mode import GROUP, Precision
from s3t.engine.steps import Updates
from s3t.errors import DivergedError
from s3t.losses import losses
from s3t.training import Keep, Task, Trained, reproducible, train_node


def train_group(
    backbone: Backbone, tasks: Sequence[Task], *, precision: Precision, keeps: Sequence[Keep | None]
) -> list[Trained | DivergedError]:
    """Train up to ``GROUP`` nodes of one stage, each as if it were alone; return their outcomes in order.

    A node whose gradients were not finite has its DivergedError as outcome; the others are as good as ever. Raises ValueError
    if the tasks differ in stages, recipe or classes, or are too many, RecipeError if the model's records differ in length, and
    ModelError, RecipeError and IsolationError as :func:`s3t.engine.fast.train_node_fast` does.
    """
    first = tasks[0]
    if len(tasks) > GROUP:
        raise ValueError(f"{len(tasks)} nodes in a group of {GROUP}")
    if any((t.stages, t.recipe, t.classes) != (first.stages, first.recipe, first.classes) for t in tasks):
        raise ValueError("nodes of a group share their stages, recipe and classes")
    if any(stage.kind == "full" for stage in first.stages):
        return [train_node(backbone, task) for task in tasks]
    encoder = Encoder.of(backbone, precision)
    encoder.check_form("grouped")
    with reproducible(first.seeds.dropout, backbone.device):
        nodes = [Mounted(encoder, task, keep) for task, keep in zip(tasks, keeps, strict=True)]
        layers = _stacked_layers(nodes)
        with unchanged([t for layer in layers for t in layer.tensors()], first.stage):
            norms = _run(nodes, layers)
    return [_outcome(node, mine) for node, mine in zip(nodes, norms, strict=True)]


def _outcome(node: Mounted, norms: Sequence[Tensor]) -> Trained | DivergedError:
    try:
        return node.trained(norms)
    except DivergedError as error:
        return error


def _run(nodes: Sequence[Mounted], layers: Sequence[Block]) -> list[list[Tensor]]:
    """Take all steps of all nodes; return the norms of each one's gradients."""
    encoder, depth, recipe = nodes[0].encoder, nodes[0].depth, nodes[0].task.recipe
    deltas, heads = _stacked_deltas(nodes), list(zip(*(node.learned.head for node in nodes), strict=True))
    updates = [Updates(recipe, node.learned.body, node.learned.head) for node in nodes]
    norms: list[list[Tensor]] = [[] for _ in nodes]
    for step in range(max(len(node.task.batches) for node in nodes)):
        live = [at for at, node in enumerate(nodes) if step < len(node.task.batches)]
        hidden, lengths, answers, weights = _batch({at: nodes[at].batch(step) for at in live}, recipe.batch_size)
        features = encode(encoder, layers, depth, hidden, lengths, deltas)
        weight, bias = map(_filled, heads)
        logits = torch.baddbmm(bias[:, None], features.view(GROUP, -1, features.shape[1]), weight.transpose(1, 2))
        (losses(logits.flatten(0, 1), answers) * weights).sum().backward()  # type: ignore[no-untyped-call]
        for at in live:
            updates[at].rates(nodes[at].share(step))
            norms[at].append(updates[at].update())
    return norms


def _batch(given: dict[int, tuple[Tensor, list[int], Tensor]], size: int) -> tuple[Tensor, list[int], Tensor, Tensor]:
    """Return the batches of a group, by place, as one: rows (places x size, tokens, hidden), lengths, answers, weights.

    A row's weight is its share of its node's mean. Rows that a batch lacks, and places without one, are zeros of no weight.
    """
    some, _, answer = next(iter(given.values()))
    hidden = some.new_zeros(GROUP, size, *some.shape[1:])
    answers = answer.new_zeros(GROUP, size)
    weights = torch.zeros(GROUP, size, device=some.device)
    for at, (rows, _, wanted) in given.items():
        hidden[at, : len(rows)], answers[at, : len(rows)], weights[at, : len(rows)] = rows, wanted, 1 / len(rows)
    return hidden.flatten(0, 1), [some.shape[1]] * (GROUP * size), answers.flatten(), weights.flatten()


def _filled(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors, one per node, as one with a place for each of a group, empty ones zero."""
    return torch.stack([*parts, *[torch.zeros_like(parts[0], requires_grad=False)] * (GROUP - len(parts))])


class GroupedLinear(Linear):
    """Frozen linear maps, one per place: ``weight`` (GROUP, outputs, inputs), a ``bias`` (outputs,) that all share."""

    @staticmethod
    def over(maps: Sequence[Linear]) -> GroupedLinear:
        """Return the maps of a group's nodes as one."""
        weight = _filled([linear.weight for linear in maps])
        return GroupedLinear(weight, weight.transpose(1, 2), maps[0].bias)

    def part(self, start: int, stop: int) -> GroupedLinear:
        """Return the maps to outputs ``start`` up to ``stop`` alone; they share the tensors."""
        bias = None if self.bias is None else self.bias[start:stop]
        return GroupedLinear(self.weight[:, start:stop], self.transposed[:, :, start:stop], bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map rows (GROUP x rows, inputs) to (GROUP x rows, outputs), each by its place's weight."""
        y = x.view(GROUP, -1, x.shape[1])
        out = y @ self.transposed if self.bias is None else torch.baddbmm(self.bias, y, self.transposed)
        return out.flatten(0, 1)


@dataclass(frozen=True)
class GroupedDelta:
    """What the adapters of a group add, each to the rows of its place (:class:`s3t.engine.lora.LoraDelta`).

    ``a``, ``b``: one per node, and they learn. ``draws``: the nodes' own generators, for dropout.
    """

    a: Sequence[Tensor]
    b: Sequence[Tensor]
    scale: float
    dropout: float
    draws: Sequence[torch.Generator]

    def __call__(self, x: Tensor) -> Tensor:
        """Map (GROUP x rows, inputs) to (GROUP x rows, outputs)."""
        y = x.view(GROUP, -1, x.shape[1])
        if self.dropout:
            y = y * self._mask(y)
        inner = torch.bmm(y, _filled(self.a).to(x.dtype).transpose(1, 2))
        return torch.bmm(inner, (_filled(self.b) * self.scale).to(x.dtype).transpose(1, 2)).flatten(0, 1)

    def _mask(self, y: Tensor) -> Tensor:
        """Return what ``y`` is multiplied with: each node's from its own generator, as many numbers whatever its rows."""
        kept = [torch.empty_like(y[0]).bernoulli_(1 - self.dropout, generator=draw) for draw in self.draws]
        return _filled(kept) / (1 - self.dropout)


def _stacked_layers(nodes: Sequence[Mounted]) -> list[Block]:
    """Return the nodes' layers as those of a group; what is not a linear map is the same in all of them."""
    stacked: list[Block] = []
    for same in zip(*(node.layers for node in nodes), strict=True):
        first = cast(Layer, same[0])
        names = [name for name in ("qkv", *PROJECTIONS) if hasattr(first, name)]
        maps: dict[str, Any] = {name: GroupedLinear.over([getattr(layer, name) for layer in same]) for name in names}
        stacked.append(replace(first, **maps))
    return stacked


def _stacked_deltas(nodes: Sequence[Mounted]) -> dict[int, dict[str, Delta]]:
    """Return the nodes' adapters as those of a group, by layer and projection."""
    device = nodes[0].encoder.backbone.device
    draws = [torch.Generator(device).manual_seed(node.task.seeds.dropout) for node in nodes]
    out: dict[int, dict[str, Delta]] = {}
    for layer, by_projection in nodes[0].learned.deltas.items():
        for name, one in by_projection.items():
            every = [node.learned.deltas[layer][name] for node in nodes]
            a, b = [delta.a for delta in every], [delta.b for delta in every]
            out.setdefault(layer, {})[name] = GroupedDelta(a, b, one.scale, one.dropout, draws)
    return out
