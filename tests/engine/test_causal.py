"""Llama-like decoders: the lean form against transformers' own, its last layer for one token, gradients as PEFT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from s3t.backbone import Backbone, Encoded, Family
from s3t.blocks import ChainModel, ModelState
from s3t.engine import lora
from s3t.engine.activations import activate, gather
from s3t.engine.causal import Decoder, DecoderLayer
from s3t.engine.encoder import Encoder
from s3t.engine.ensemble import FastChain, score_together
from s3t.engine.fast import encode, train_node_fast
from s3t.engine.layers import attention, fused_attention
from s3t.errors import ModelError, RecipeError
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Row, Seeds, Task

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
GRADIENT = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference to the model class over its largest value."""
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECIPE = Recipe(rank=2, batch_size=4, targets=ALL)
PLAN = s3t_plan(Layout(1, 2, 1), RECIPE, 4)
LENGTHS = (9, 4, 20, 1, 9, 33)
ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default", "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def llama(groups: int = 2, rope: str = "plain", **more: Any) -> Backbone:
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}
    size |= {"intermediate_size": 48, "num_key_value_heads": groups, "max_position_embeddings": 64}
    config = LlamaConfig(
        **size, initializer_range=0.1, rope_parameters=ROPES[rope], attn_implementation="eager", **more
    )
    model = LlamaModel(config).requires_grad_(False).eval()
    family = Family("layers", ("q_proj", "v_proj"))
    return Backbone("tiny llama", model, family, 4, 32, "", torch.device("cpu"), lambda *_: [], {"input_ids": 0})


@pytest.fixture(scope="module")
def base() -> Backbone:
    return llama()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    texts = [[1 + (7 * i + 3 * t) % 60 for t in range(n)] for i, n in enumerate(LENGTHS)]
    return [Row(Encoded({"input_ids": ids}, len(ids)), i % 3, i % 2) for i, ids in enumerate(texts)]


def last(model: Any, base: Backbone, rows: list[Row]) -> Tensor:
    """Return the last real token's state as the model class computes it."""
    hidden = model(**base.collate([row.encoded for row in rows])).last_hidden_state
    out: Tensor = hidden[torch.arange(len(rows)), torch.tensor([row.encoded.length - 1 for row in rows])]
    return out


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def state(encoder: Encoder, stages: Any, seed: int = 3) -> ModelState:
    """Made-up tensors of the right shapes, B not zero."""
    generator, adapters = torch.Generator().manual_seed(seed), {}
    for stage in stages:
        shapes = lora.fresh(encoder, stage, RECIPE, 0)
        adapters[stage.adapter] = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in shapes.items()}
    head = {"weight": torch.randn(3, encoder.backbone.hidden, generator=generator) * 0.2, "bias": torch.ones(3)}
    return ModelState(adapters, head)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(("groups", "rope"), [(4, "plain"), (2, "plain"), (1, "llama3")])
def test_the_last_token_from_every_depth(rows: list[Row], groups: int, rope: str, precision: Any) -> None:
    base = llama(groups, rope)
    theirs = last(base.model, base, rows)
    encoder = Encoder.of(base, precision)
    assert type(encoder) is Decoder
    for depth, piece in activate(encoder, [row.encoded for row in rows], range(5)).items():
        hidden, lengths = gather([piece], [(0, i) for i in range(len(rows))])
        with torch.no_grad():
            ours = encode(encoder, encoder.layers[depth:], depth, hidden, lengths, {})
        assert ours.dtype == torch.float32
        assert apart(ours, theirs) < TOLERANCE[precision]


def test_biases_in_the_attention(rows: list[Row]) -> None:
    base = llama(attention_bias=True)
    with torch.no_grad():
        for name, tensor in base.model.named_parameters():
            if name.endswith("proj.bias"):
                tensor.normal_()
    encoder, encoded = Encoder.of(base, "float32"), [row.encoded for row in rows]
    with torch.no_grad():
        ours = encode(encoder, encoder.layers, 0, encoder.embed(encoded), LENGTHS, {})
    assert apart(ours, last(base.model, base, rows)) < TOLERANCE["float32"]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_last_layer_for_one_token_is_the_whole_layers(base: Backbone, rows: list[Row], precision: Any) -> None:
    """With an adapter on every projection; features and the gradients of all of it."""
    encoder, stage = Encoder.of(base, precision), PLAN.stages[0]
    piece = activate(encoder, [row.encoded for row in rows], [3])[3]
    hidden, lengths = gather([piece], [(0, i) for i in range(len(rows))])
    found = []
    for whole in (False, True):
        tensors = {n: t.requires_grad_() for n, t in state(encoder, [stage]).adapters[stage.adapter].items()}
        deltas = lora.deltas(encoder, stage, RECIPE, tensors)[3]
        x = hidden.clone().requires_grad_()
        layer = encoder.layers[3]
        every = encoder.pool(layer(x, None, deltas), lengths) if whole else None
        features = encoder.finish(layer, x, None, lengths, deltas) if every is None else every
        used = [t for n, t in tensors.items() if ".layers.3." in n]
        found.append([features, *torch.autograd.grad((features * features.detach().sin()).sum(), [x, *used])])
    assert len(found[0]) == 2 + 14
    for mine, other in zip(*found, strict=True):
        assert apart(mine.float(), other.float()) < GRADIENT[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_gradients_are_pefts(base: Backbone, rows: list[Row], precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first gradient of the second stage, before clipping, from the same parent, against PEFT through all layers."""
    parent = state(Encoder.of(base, "float32"), PLAN.stages)
    model = ChainModel(base, PLAN.stages, RECIPE, 3)
    model.mount(parent)
    learning = [*model.adapter_parameters("block-01"), *model.head.parameters()]
    for parameter in learning:
        parameter.requires_grad_(True)
    logits = model.head(last(model.body, base, rows))
    labels = torch.tensor([row.label for row in rows])
    theirs = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), learning)
    seen: list[Tensor] = []
    clip = nn.utils.clip_grad_norm_

    def watched(parameters: Any, *rest: Any, **more: Any) -> Tensor:
        seen.extend(p.grad.clone() for p in parameters)
        return clip(parameters, *rest, **more)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    batches = [list(range(len(rows)))]
    train_node_fast(base, Task(PLAN.stages, parent, rows, batches, RECIPE, Seeds(1, 2, 3), 3), precision=precision)
    assert len(seen) == len(theirs) == 2 * 7 * 2 + 2
    for mine, other in zip(seen, theirs, strict=True):
        assert apart(mine, other) < GRADIENT[precision]


def test_chains_are_scored_together(base: Backbone, rows: list[Row]) -> None:
    encoder, encoded = Encoder.of(base, "float32"), [row.encoded for row in rows]
    chains, wanted = {}, {}
    for shard, length in ((0, 2), (1, 1), (4, 2)):
        stages, tensors = PLAN.stages[:length], state(encoder, PLAN.stages[:length], shard)
        chains[shard] = FastChain(base, stages, tensors, RECIPE, "float32")
        model = ChainModel(base, stages, RECIPE, 3)
        model.mount(tensors)
        with torch.no_grad():
            wanted[shard] = model.head(last(model.body, base, rows))
    found = score_together(chains, encoded)
    assert found.keys() == wanted.keys()
    for shard, logits in wanted.items():
        assert apart(found[shard], logits) < TOLERANCE["float32"]


def test_padding_moves_no_feature(base: Backbone, rows: list[Row]) -> None:
    encoder = Encoder.of(base, "float32")

    def features(some: list[Row]) -> Tensor:
        encoded = [row.encoded for row in some]
        with torch.no_grad():
            return encode(encoder, encoder.layers, 0, encoder.embed(encoded), [row.length for row in encoded], {})

    together = features(rows)
    for i, row in enumerate(rows):
        torch.testing.assert_close(features([row]), together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_fused_causal_attention_is_the_written_out_one() -> None:
    """What a GPU computes in bfloat16, here by the CPU's kernel."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2 * 7, 12, requires_grad=True) for _ in range(3))
    bias = torch.full((7, 7), float("-inf")).triu_(1)[None, None]
    found = []
    for one in (attention(q, k, v, bias, 2, 3), fused_attention(q, k, v, 2, 3, causal=True)):
        found.append([one, *torch.autograd.grad(one.square().sum(), [q, k, v])])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_merging_adds_to_copies(base: Backbone) -> None:
    """The weights are the model's own where precisions agree, so merging must leave them alone."""
    encoder = Encoder.of(base, "float32")
    layer = encoder.layers[1]
    assert isinstance(layer, DecoderLayer)
    theirs = {t.data_ptr() for t in base.model.state_dict().values()}
    assert {layer.q.weight.data_ptr(), layer.down.weight.data_ptr()} <= theirs
    before = [t.clone() for t in layer.tensors()]
    torch.manual_seed(1)
    added = {name: torch.randn(layer.shape(name)) * 0.1 for name in encoder.projections}
    merged = layer.merged(added)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.tensors(), strict=True))
    x = torch.randn(2, 4, 32)
    deltas: Any = {name: (lambda rows, w=w: rows @ w.t()) for name, w in added.items()}
    assert apart(merged(x, None), layer(x, None, deltas)) < 1e-5
    assert not torch.equal(merged(x, None), layer(x, None))


def test_nothing_frozen_changes(base: Backbone, rows: list[Row]) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    task = Task(PLAN.stages[:1], None, rows, [[0, 1], [2, 3, 4, 5]] * 3, RECIPE, Seeds(1, 2, 3), 3)
    train_node_fast(base, task, precision="float32")
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())


def test_targets_and_shapes(base: Backbone) -> None:
    encoder = Encoder.of(base, "float32")
    assert encoder.targets(()) == ["q", "v"]
    assert encoder.targets(ALL) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert [encoder.layers[0].shape(p) for p in ("q", "k", "gate", "down")] == [(32, 32), (16, 32), (48, 32), (32, 48)]
    with pytest.raises(RecipeError, match="target 'query' names no linear map"):
        encoder.targets(("query",))


def test_models_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = llama()
    monkeypatch.setattr(base.model.config, "hidden_act", "gelu")
    with pytest.raises(ModelError, match="knows the activation silu, not 'gelu'"):
        Encoder.of(base, "float32")
    monkeypatch.setattr(base.model.rotary_emb, "rope_type", "dynamic")
    with pytest.raises(ModelError, match="'dynamic' depend on a row's batch mates"):
        Encoder.of(base, "float32")
