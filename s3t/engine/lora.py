"""LoRA in the fast engine: PEFT's tensors by PEFT's names, as deltas of lean layers or merged into their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from s3t.engine.encoder import Encoder
from s3t.engine.layers import Block
from s3t.errors import IsolationError
from s3t.records import Recipe

if TYPE_CHECKING:
    from s3t.plan import Stage


@dataclass(frozen=True)
class Place:
    """Where an adapter has a pair of tensors: a layer, one of its projections, and the two names in PEFT's files."""

    layer: int
    projection: str
    a: str
    b: str


def places(encoder: Encoder, stage: Stage, recipe: Recipe) -> list[Place]:
    """Return the places of a stage's adapter, in the order in which the model names its modules."""
    found = []
    for layer in sorted(stage.layers):
        for projection in encoder.targets(recipe.targets):
            path = f"base_model.model.{encoder.backbone.family.layers}.{layer}.{encoder.lean.path(projection)}"
            found.append(Place(layer, projection, f"{path}.lora_A.weight", f"{path}.lora_B.weight"))
    return found


def scale(recipe: Recipe) -> float:
    """Return what B A is multiplied with: alpha / rank (Hu et al. 2021), or alpha / sqrt(rank) (Kalajdzievski 2023)."""
    return recipe.alpha / (recipe.rank**0.5 if recipe.rslora else recipe.rank)


def fresh(encoder: Encoder, stage: Stage, recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """Return a new adapter by name, on the CPU: A uniform in +-1/sqrt(inputs), B zero (docs/DERIVATION.md)."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for place in places(encoder, stage, recipe):
        outputs, inputs = encoder.layers[place.layer].shape(place.projection)
        out[place.a] = (torch.rand((recipe.rank, inputs), generator=generator) * 2 - 1) * inputs**-0.5
        out[place.b] = torch.zeros(outputs, recipe.rank)
    return out


def check_fits(encoder: Encoder, stage: Stage, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Raise IsolationError unless ``tensors`` are exactly those of the stage's adapter, by name and shape."""
    expected: dict[str, tuple[int, ...]] = {}
    for place in places(encoder, stage, recipe):
        outputs, inputs = encoder.layers[place.layer].shape(place.projection)
        expected |= {place.a: (recipe.rank, inputs), place.b: (outputs, recipe.rank)}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        odd = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise IsolationError(f"adapter {stage.adapter!r} does not fit: tensor {odd!r} is missing or not expected")


@dataclass(frozen=True)
class LoraDelta:
    """x -> scale * B A dropout(x), in the precision of x. ``a`` (rank, inputs) and ``b`` (outputs, rank) are float32."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, inputs) to (rows, outputs)."""
        dropped = F.dropout(x, self.dropout) if self.dropout else x
        inner = F.linear(dropped, self.a.to(x.dtype))
        return F.linear(inner, (self.b * self.scale).to(x.dtype))


def joined(one: LoraDelta, other: LoraDelta) -> LoraDelta:
    """Return the sum of two deltas at one place as one, their ranks side by side. They have the same scale, and no dropout."""
    return LoraDelta(torch.cat([one.a, other.a]), torch.cat([one.b, other.b], dim=1), one.scale)


def widened(delta: LoraDelta, rank: int) -> LoraDelta:
    """Return the same delta with more ranks, zeros."""
    more = rank - delta.a.shape[0]
    return LoraDelta(F.pad(delta.a, (0, 0, 0, more)), F.pad(delta.b, (0, more)), delta.scale) if more else delta


ByLayer = Mapping[int, Mapping[str, "LoraDelta"]]
"""Deltas by layer and projection."""


def deltas(
    encoder: Encoder, stage: Stage, recipe: Recipe, tensors: Mapping[str, Tensor], *, dropout: float = 0.0
) -> dict[int, dict[str, LoraDelta]]:
    """Return an adapter as deltas by layer and projection; ``tensors`` are used as they are, not copied."""
    out: dict[int, dict[str, LoraDelta]] = {}
    for place in places(encoder, stage, recipe):
        delta = LoraDelta(tensors[place.a], tensors[place.b], scale(recipe), dropout)
        out.setdefault(place.layer, {})[place.projection] = delta
    return out


def merged(
    encoder: Encoder, stages: Sequence[Stage], recipe: Recipe, adapters: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Block, ...]:
    """Return the encoder's layers with ``adapters`` (by the stages' names) merged into copies of their weights."""
    added: dict[int, dict[str, Tensor]] = {}
    for stage in {stage.adapter: stage for stage in stages if stage.adapter in adapters}.values():
        for place in places(encoder, stage, recipe):
            a, b = (adapters[stage.adapter][name].to(encoder.backbone.device) for name in (place.a, place.b))
            into = added.setdefault(place.layer, {})
            into[place.projection] = into.get(place.projection, 0) + scale(recipe) * (b @ a)
    return tuple(layer.merged(added[i]) if i in added else layer for i, layer in enumerate(encoder.layers))


def named(parameters: Sequence[Tensor], where: Sequence[Place]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for parameters in the order A, B, A, B, ... of ``where``."""
    names = [name for place in where for name in (place.a, place.b)]
    yield from zip(names, parameters, strict=True)
