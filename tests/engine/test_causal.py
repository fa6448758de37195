"""Llama-like decoders alone: biases, padding, fused attention, merging, what is refused. The rest: test_shapes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from s3t.engine.attention import attention, fused_attention
from s3t.engine.causal import Decoder, DecoderLayer
from s3t.engine.encoder import Encoder
from s3t.engine.fast import encode
from s3t.errors import ModelError, RecipeError

Make = Callable[..., Any]


@pytest.fixture
def one(llama: Make) -> Any:
    """A decoder whose heads share key-value heads by two."""
    return llama()


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def test_biases_in_the_attention(llama: Make) -> None:
    one = llama(attention_bias=True)
    with torch.no_grad():
        for name, tensor in one.base.model.named_parameters():
            if name.endswith("proj.bias"):
                tensor.normal_()
    encoder, lengths = Encoder.of(one.base, "float32"), [row.length for row in one.encoded]
    assert type(encoder) is Decoder
    with torch.no_grad():
        ours = encode(encoder, encoder.layers, 0, encoder.embed(one.encoded), lengths, {})
    assert apart(ours, one.features(one.base.model)) < 1e-5


def test_padding_moves_no_feature(one: Any) -> None:
    encoder = Encoder.of(one.base, "float32")

    def features(encoded: list[Any]) -> Tensor:
        with torch.no_grad():
            return encode(encoder, encoder.layers, 0, encoder.embed(encoded), [row.length for row in encoded], {})

    together = features(one.encoded)
    for i, row in enumerate(one.encoded):
        torch.testing.assert_close(features([row]), together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_fused_causal_attention_is_the_written_out_one() -> None:
    """What a GPU computes in bfloat16, here by the CPU's kernel."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2 * 7, 12, requires_grad=True) for _ in range(3))
    bias = torch.full((7, 7), float("-inf")).triu_(1)[None, None]
    found = []
    for attended in (attention(q, k, v, bias, 2, 3), fused_attention(q, k, v, 2, 3, causal=True)):
        found.append([attended, *torch.autograd.grad(attended.square().sum(), [q, k, v])])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_merging_adds_to_copies(one: Any) -> None:
    """The weights are the model's own where precisions agree, so merging must leave them alone."""
    encoder = Encoder.of(one.base, "float32")
    layer = encoder.layers[1]
    assert isinstance(layer, DecoderLayer)
    theirs = {t.data_ptr() for t in one.base.model.state_dict().values()}
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


def test_targets_and_shapes(one: Any) -> None:
    encoder = Encoder.of(one.base, "float32")
    assert encoder.targets(()) == ["q", "v"]
    assert encoder.targets(one.targets) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert [encoder.layers[0].shape(p) for p in ("q", "k", "gate", "down")] == [(32, 32), (16, 32), (48, 32), (32, 48)]
    with pytest.raises(RecipeError, match="target 'query' names no linear map"):
        encoder.targets(("query",))


def test_models_that_are_refused(llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    base = llama().base
    monkeypatch.setattr(base.model.config, "hidden_act", "gelu")
    with pytest.raises(ModelError, match="knows the activation silu, not 'gelu'"):
        Encoder.of(base, "float32")
    monkeypatch.setattr(base.model.rotary_emb, "rope_type", "dynamic")
    with pytest.raises(ModelError, match="'dynamic' depend on a row's batch mates"):
        Encoder.of(base, "float32")
