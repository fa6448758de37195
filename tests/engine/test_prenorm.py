"""Images on pre-norm encoders: resizing as PIL does it, flips by seed, what is refused. The rest: test_shapes.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from baselines.stock.images import Preprocess
from s3t.backbone import load
from s3t.engine.attention import attention, fused_attention
from s3t.engine.encoder import Encoder
from s3t.engine.fast import encode, train_node_fast
from s3t.engine.flips import with_flips
from s3t.engine.prenorm import PreNormEncoder
from s3t.errors import DataError, ModelError
from s3t.images import EncodedImage, ImageBackbone, image_backbone
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Row, Seeds, Task

RECIPE = Recipe(rank=2, batch_size=4, targets=("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"))
PLAN = s3t_plan(Layout(1, 2, 1), RECIPE, 4)
CPU = torch.device("cpu")


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
    theirs = base.model(**base.collate(encoded)).last_hidden_state[:, 0]
    assert type(encoder) is PreNormEncoder
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_swiglu_feed_forward_is_left_to_the_reference() -> None:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, use_swiglu_ffn=True
    )
    base = image_backbone(Dinov2Model(config), "giant", CPU)
    with pytest.raises(ModelError, match="with GELU, not SwiGLU; use engine=reference"):
        Encoder.of(base, "float32")


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
    given = [vit.resident(torch.full((1, 3, n, n + 2), n, dtype=torch.uint8))[0] for n in (10, 20, 10)]
    values = vit.collate(given)["pixel_values"]
    assert torch.allclose(values[:, 0, 0, 0], torch.tensor([10.0, 20.0, 10.0]) / 255 * 2 - 1)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8).byte()]
)
def test_other_images_are_refused(vit: ImageBackbone, images: Tensor) -> None:
    with pytest.raises(DataError, match=r"do not fit; give uint8 of shape \(number, 3, height, width\)"):
        vit.resident(images)


def test_what_is_no_image_model_or_no_image(vit: ImageBackbone, images: list[Row]) -> None:
    with pytest.raises(ModelError, match="a BertModel is no vision transformer"):
        image_backbone(load("tiny-2", CPU).model, "bert", CPU)
    with pytest.raises(DataError, match="this model reads a field 'image'"):
        vit.encode([{"text": "a"}], 8)
    text = load("tiny-2", CPU).encode([{"text": "a"}], 8)
    with pytest.raises(DataError, match="record 'b' is no image"):
        with_flips([images[0], Row(text[0], 0)], ["a", "b"], [[0]], 0)


def test_flips_are_functions_of_seed_visit_and_record(images: list[Row]) -> None:
    ids, batches = [f"id {i}" for i in range(8)], [[0, 1, 2, 3], [4, 5, 6, 7]] * 40
    doubled, drawn = with_flips(images, ids, batches, 7)
    assert [row.piece for row in doubled] == [row.piece for row in images] * 2
    encoded = [row.encoded for row in doubled]
    assert [isinstance(p, EncodedImage) and p.flipped for p in encoded] == [False] * 8 + [True] * 8
    assert [[i % 8 for i in batch] for batch in drawn] == batches
    flips = [i >= 8 for batch in drawn for i in batch]
    assert 0.4 < sum(flips) / len(flips) < 0.6
    assert with_flips(images, ids, batches, 7)[1] == drawn != with_flips(images, ids, batches, 8)[1]
    without, again = with_flips(images[1:], ids[1:], [[i - 1 for i in batch if i] for batch in batches], 7)
    assert len(without) == 14
    kept = [[(i % 8, i >= 8) for i in batch if i % 8] for batch in drawn]
    assert [[(i % 7 + 1, i >= 7) for i in batch] for batch in again] == kept, "others' draws are their own"


def test_a_node_with_flips_is_a_function_of_itself(vit: ImageBackbone, images: list[Row]) -> None:
    ids = [f"id {i}" for i in range(8)]

    def trained(seed: int) -> Tensor:
        doubled, batches = with_flips(images, ids, [[0, 1, 2, 3], [4, 5, 6, 7], [1, 6]], seed)
        task = Task(PLAN.stages[:1], None, doubled, batches, RECIPE, Seeds(1, 2, 3), 3)
        return train_node_fast(vit, task, precision="bfloat16").head["weight"]

    assert torch.equal(trained(5), trained(5))
    assert not torch.equal(trained(5), trained(6))
