"""Shapes other than post-norm encoders: the lean form against transformers' own and PEFT's, one token of the last layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s3t.blocks import ChainModel, ModelState
from s3t.engine import lora
from s3t.engine.activations import activate, gather
from s3t.engine.encoder import Encoder
from s3t.engine.ensemble import FastChain, score_together
from s3t.engine.fast import encode, train_node_fast
from s3t.plan import Plan, s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Seeds, Task

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
GRADIENT = {"float32": 1e-4, "bfloat16": 0.15}
"""Largest difference to the model class over its largest value."""


@pytest.fixture
def recipe(shape: Any) -> Recipe:
    """An adapter on every linear map."""
    return Recipe(rank=2, batch_size=4, targets=shape.targets)


@pytest.fixture
def plan(recipe: Recipe) -> Plan:
    """Two stages of two layers."""
    return s3t_plan(Layout(1, 2, 1), recipe, 4)


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def state(encoder: Encoder, stages: Any, recipe: Recipe, seed: int = 3) -> ModelState:
    """Made-up tensors of the right shapes, B not zero."""
    generator, adapters = torch.Generator().manual_seed(seed), {}
    for stage in stages:
        shapes = lora.fresh(encoder, stage, recipe, 0)
        adapters[stage.adapter] = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in shapes.items()}
    head = {"weight": torch.randn(3, encoder.backbone.hidden, generator=generator) * 0.2, "bias": torch.ones(3)}
    return ModelState(adapters, head)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_features_from_every_depth(shape: Any, precision: Any) -> None:
    theirs, encoder = shape.features(shape.base.model), Encoder.of(shape.base, precision)
    for depth, piece in activate(encoder, shape.encoded, range(5)).items():
        hidden, lengths = gather([piece], [(0, i) for i in range(len(shape.rows))])
        assert lengths == [row.length for row in shape.encoded]
        with torch.no_grad():
            ours = encode(encoder, encoder.layers[depth:], depth, hidden, lengths, {})
        assert ours.dtype == torch.float32
        assert apart(ours, theirs) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_last_layer_for_one_token_is_the_whole_layers(
    shape: Any, recipe: Recipe, plan: Plan, precision: Any
) -> None:
    """With an adapter on every projection; features and the gradients of all of it."""
    encoder, stage = Encoder.of(shape.base, precision), plan.stages[0]
    piece = activate(encoder, shape.encoded, [3])[3]
    hidden, lengths = gather([piece], [(0, i) for i in range(len(shape.rows))])
    found = []
    for whole in (False, True):
        tensors = {n: t.requires_grad_() for n, t in state(encoder, [stage], recipe).adapters[stage.adapter].items()}
        deltas = lora.deltas(encoder, stage, recipe, tensors)[3]
        x = hidden.clone().requires_grad_()
        layer = encoder.layers[3]
        every = encoder.pool(layer(x, None, deltas), lengths) if whole else None
        features = encoder.finish(layer, x, None, lengths, deltas) if every is None else every
        used = [t for n, t in tensors.items() if ".3." in n]
        found.append([features, *torch.autograd.grad((features * features.detach().sin()).sum(), [x, *used])])
    assert len(found[0]) == 2 + 2 * len(shape.targets)
    for mine, other in zip(*found, strict=True):
        assert apart(mine.float(), other.float()) < GRADIENT[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_gradients_are_pefts(
    shape: Any, recipe: Recipe, plan: Plan, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first gradient of the second stage, before clipping, from the same parent, against PEFT through all layers."""
    parent = state(Encoder.of(shape.base, "float32"), plan.stages, recipe)
    model = ChainModel(shape.base, plan.stages, recipe, 3)
    model.mount(parent)
    learning = [*model.adapter_parameters("block-01"), *model.head.parameters()]
    for parameter in learning:
        parameter.requires_grad_(True)
    labels = torch.tensor([row.label for row in shape.rows])
    loss = nn.functional.cross_entropy(model.head(shape.features(model.body)), labels)
    theirs = torch.autograd.grad(loss, learning)
    seen: list[Tensor] = []
    clip = nn.utils.clip_grad_norm_

    def watched(parameters: Any, *rest: Any, **more: Any) -> Tensor:
        seen.extend(p.grad.clone() for p in parameters)
        return clip(parameters, *rest, **more)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    task = Task(plan.stages, parent, shape.rows, [list(range(len(shape.rows)))], recipe, Seeds(1, 2, 3), 3)
    train_node_fast(shape.base, task, precision=precision)
    assert len(seen) == len(theirs) == 2 * len(shape.targets) * 2 + 2
    for mine, other in zip(seen, theirs, strict=True):
        assert apart(mine, other) < GRADIENT[precision]


def test_chains_are_scored_together(shape: Any, recipe: Recipe, plan: Plan) -> None:
    encoder, chains, wanted = Encoder.of(shape.base, "float32"), {}, {}
    for shard, length in ((0, 2), (1, 1), (4, 2)):
        stages = plan.stages[:length]
        tensors = state(encoder, stages, recipe, shard)
        chains[shard] = FastChain(shape.base, stages, tensors, recipe, "float32")
        model = ChainModel(shape.base, stages, recipe, 3)
        model.mount(tensors)
        with torch.no_grad():
            wanted[shard] = model.head(shape.features(model.body))
    found = score_together(chains, shape.encoded)
    assert found.keys() == wanted.keys()
    for shard, logits in wanted.items():
        assert apart(found[shard], logits) < TOLERANCE["float32"]


def test_nothing_frozen_changes(shape: Any, recipe: Recipe, plan: Plan) -> None:
    before = {name: tensor.clone() for name, tensor in shape.base.model.state_dict().items()}
    task = Task(plan.stages[:1], None, shape.rows, [[0, 1], [2, 3, 4, 5]] * 3, recipe, Seeds(1, 2, 3), 3)
    train_node_fast(shape.base, task, precision="float32")
    assert all(torch.equal(before[name], tensor) for name, tensor in shape.base.model.state_dict().items())
