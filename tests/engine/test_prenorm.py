"""Pre-norm encoders and images: the lean ViT against transformers' own, its last layer for one token, flips by seed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from baselines.stock.images import Preprocess
from s3t.backbone import load
from s3t.blocks import ChainModel, ModelState
from s3t.engine import lora
from s3t.engine.activations import activate, gather
from s3t.engine.encoder import Encoder
from s3t.engine.ensemble import FastChain, score_together
from s3t.engine.fast import encode, train_node_fast
from s3t.engine.images import ImageBackbone, Picture, image_backbone, with_flips
from s3t.engine.layers import attention, fused_attention
from s3t.engine.prenorm import PreNormEncoder
from s3t.errors import DataError, ModelError
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Row, Seeds, Task

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
GRADIENT = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference to the model class over its largest value."""
RECIPE = Recipe(rank=2, batch_size=4, targets=("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"))
PLAN = s3t_plan(Layout(1, 2, 1), RECIPE, 4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vit() -> ImageBackbone:
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    config = ViTConfig(**size, image_size=16, patch_size=4, initializer_range=0.1, attn_implementation="eager")
    return image_backbone(ViTModel(config, add_pooling_layer=False), "tiny vit", CPU)


@pytest.fixture(scope="module")
def rows(vit: ImageBackbone) -> list[Row]:
    torch.manual_seed(1)
    images = torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8)
    return [Row(picture, i % 3, i % 2) for i, picture in enumerate(vit.resident(images))]


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
def test_the_class_token_from_every_depth(vit: ImageBackbone, rows: list[Row], precision: Any) -> None:
    encoded = [row.encoded for row in rows]
    theirs = vit.model(**vit.collate(encoded)).last_hidden_state[:, 0]
    encoder = Encoder.of(vit, precision)
    assert type(encoder) is PreNormEncoder
    for depth, piece in activate(encoder, encoded, range(5)).items():
        hidden, lengths = gather([piece], [(0, i) for i in range(len(rows))])
        assert lengths == [17] * 8
        with torch.no_grad():
            ours = encode(encoder, encoder.layers[depth:], depth, hidden, lengths, {})
        assert ours.dtype == torch.float32
        assert apart(ours, theirs) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_last_layer_for_one_token_is_the_whole_layers(vit: ImageBackbone, rows: list[Row], precision: Any) -> None:
    """With an adapter on every projection; features and the gradients of all of it."""
    encoder, stage = Encoder.of(vit, precision), PLAN.stages[0]
    hidden, lengths = gather([activate(encoder, [row.encoded for row in rows], [3])[3]], [(0, i) for i in range(8)])
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
    assert len(found[0]) == 2 + 12
    for mine, other in zip(*found, strict=True):
        assert apart(mine.float(), other.float()) < GRADIENT[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_gradients_are_pefts(
    vit: ImageBackbone, rows: list[Row], precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first gradient of the second stage, before clipping, from the same parent, against PEFT through all layers."""
    parent = state(Encoder.of(vit, "float32"), PLAN.stages)
    model = ChainModel(vit, PLAN.stages, RECIPE, 3)
    model.mount(parent)
    learning = [*model.adapter_parameters("block-01"), *model.head.parameters()]
    for parameter in learning:
        parameter.requires_grad_(True)
    features = model.body(**vit.collate([row.encoded for row in rows])).last_hidden_state[:, 0]
    labels = torch.tensor([row.label for row in rows])
    theirs = torch.autograd.grad(nn.functional.cross_entropy(model.head(features), labels), learning)
    seen: list[Tensor] = []
    clip = nn.utils.clip_grad_norm_

    def watched(parameters: Any, *rest: Any, **more: Any) -> Tensor:
        seen.extend(p.grad.clone() for p in parameters)
        return clip(parameters, *rest, **more)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    task = Task(PLAN.stages, parent, rows, [list(range(8))], RECIPE, Seeds(1, 2, 3), 3)
    train_node_fast(vit, task, precision=precision)
    assert len(seen) == len(theirs) == 2 * 6 * 2 + 2
    for mine, other in zip(seen, theirs, strict=True):
        assert apart(mine, other) < GRADIENT[precision]


def test_chains_are_scored_together(vit: ImageBackbone, rows: list[Row]) -> None:
    encoder, encoded = Encoder.of(vit, "float32"), [row.encoded for row in rows]
    chains, wanted = {}, {}
    for shard, length in ((0, 2), (1, 1), (4, 2)):
        stages, tensors = PLAN.stages[:length], state(encoder, PLAN.stages[:length], shard)
        chains[shard] = FastChain(vit, stages, tensors, RECIPE, "float32")
        model = ChainModel(vit, stages, RECIPE, 3)
        model.mount(tensors)
        with torch.no_grad():
            wanted[shard] = model.head(model.body(**vit.collate(encoded)).last_hidden_state[:, 0])
    found = score_together(chains, encoded)
    assert found.keys() == wanted.keys()
    for shard, logits in wanted.items():
        assert apart(found[shard], logits) < TOLERANCE["float32"]


def test_a_vit_without_biases_in_its_attention() -> None:
    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        qkv_bias=False,
    )  # fmt: skip
    base = image_backbone(ViTModel(config, add_pooling_layer=False), "no bias", CPU)
    encoded = base.resident(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8))
    encoder = Encoder.of(base, "float32")
    with torch.no_grad():
        ours = encode(encoder, encoder.layers, 0, encoder.embed(encoded), [5, 5], {})
    assert apart(ours, base.model(**base.collate(encoded)).last_hidden_state[:, 0]) < 1e-5


@pytest.mark.parametrize("queries", [1, 7])
def test_fused_attention_is_the_written_out_one(queries: int) -> None:
    """What a GPU computes in bfloat16, here by the CPU's kernel."""
    torch.manual_seed(0)
    q = torch.randn(2 * queries, 12, requires_grad=True)
    k, v = (torch.randn(2 * 7, 12, requires_grad=True) for _ in range(2))
    found = []
    for one in (attention(q, k, v, None, 2, 3), fused_attention(q, k, v, 2, 3)):
        found.append([one, *torch.autograd.grad(one.square().sum(), [q, k, v])])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [12, 16, 40], ids=["smaller", "same", "larger"])
def test_images_are_resized_as_pil_does(vit: ImageBackbone, size: int) -> None:
    from PIL import Image

    torch.manual_seed(3)
    raw = torch.randint(256, (3, 3, size, size), dtype=torch.uint8)
    theirs = torch.stack([Preprocess(16, flip=0.0)(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in raw])
    ours = vit.collate(vit.resident(raw))["pixel_values"]
    assert float((ours - theirs).abs().max()) <= 2.01 / 255  # PIL rounds to whole numbers, once per direction
    flipped = vit.collate([dataclasses.replace(row, flipped=True) for row in vit.resident(raw)])["pixel_values"]
    assert torch.equal(flipped, ours.flip(3))


def test_images_of_several_sizes_in_a_batch(vit: ImageBackbone) -> None:
    pictures = [vit.resident(torch.full((1, 3, n, n + 2), n, dtype=torch.uint8))[0] for n in (10, 20, 10)]
    values = vit.collate(pictures)["pixel_values"]
    assert torch.allclose(values[:, 0, 0, 0], torch.tensor([10.0, 20.0, 10.0]) / 255 * 2 - 1)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8).byte()]
)
def test_other_images_are_refused(vit: ImageBackbone, images: Tensor) -> None:
    with pytest.raises(DataError, match=r"do not fit; give uint8 of shape \(number, 3, height, width\)"):
        vit.resident(images)


def test_what_is_no_image_model_or_no_image(vit: ImageBackbone, rows: list[Row]) -> None:
    with pytest.raises(ModelError, match="a BertModel is no vision transformer"):
        image_backbone(load("tiny-2", CPU).model, "bert", CPU)
    with pytest.raises(DataError, match="this model reads images"):
        vit.encode([{"text": "a"}], 8)
    text = load("tiny-2", CPU).encode([{"text": "a"}], 8)
    with pytest.raises(DataError, match="record 'b' is no image"):
        with_flips([rows[0], Row(text[0], 0)], ["a", "b"], [[0]], 0)


def test_flips_are_functions_of_seed_visit_and_record(rows: list[Row]) -> None:
    ids, batches = [f"id {i}" for i in range(8)], [[0, 1, 2, 3], [4, 5, 6, 7]] * 40
    doubled, drawn = with_flips(rows, ids, batches, 7)
    assert [row.piece for row in doubled] == [row.piece for row in rows] * 2
    pictures = [row.encoded for row in doubled]
    assert [isinstance(p, Picture) and p.flipped for p in pictures] == [False] * 8 + [True] * 8
    assert [[i % 8 for i in batch] for batch in drawn] == batches
    flips = [i >= 8 for batch in drawn for i in batch]
    assert 0.4 < sum(flips) / len(flips) < 0.6
    assert with_flips(rows, ids, batches, 7)[1] == drawn != with_flips(rows, ids, batches, 8)[1]
    without, again = with_flips(rows[1:], ids[1:], [[i - 1 for i in batch if i] for batch in batches], 7)
    assert len(without) == 14
    kept = [[(i % 8, i >= 8) for i in batch if i % 8] for batch in drawn]
    assert [[(i % 7 + 1, i >= 7) for i in batch] for batch in again] == kept, "others' draws are their own"


def test_a_node_with_flips_is_a_function_of_itself(vit: ImageBackbone, rows: list[Row]) -> None:
    ids = [f"id {i}" for i in range(8)]

    def trained(seed: int) -> Tensor:
        doubled, batches = with_flips(rows, ids, [[0, 1, 2, 3], [4, 5, 6, 7], [1, 6]], seed)
        task = Task(PLAN.stages[:1], None, doubled, batches, RECIPE, Seeds(1, 2, 3), 3)
        return train_node_fast(vit, task, precision="bfloat16").head["weight"]

    assert torch.equal(trained(5), trained(5))
    assert not torch.equal(trained(5), trained(6))
