"""Small models of the shapes that are not post-norm encoders, each with rows and with what its model class computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, ViTConfig, ViTModel

from s3t.backbone import Backbone, Encoded, Family, load
from s3t.images import ImageBackbone, image_backbone
from s3t.training import Row

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


@dataclass(frozen=True)
class Shape:
    """A model with rows; ``features``: what a body, which may carry adapters, computes of them; ``targets``: all maps."""

    base: Backbone
    rows: Sequence[Row]
    features: Callable[[Any], Tensor]
    targets: tuple[str, ...]

    @property
    def encoded(self) -> list[Encoded]:
        """The rows' inputs."""
        return [row.encoded for row in self.rows]


@pytest.fixture(scope="session")
def llama() -> Callable[..., Shape]:
    """Makes a decoder of 4 layers and 4 heads in ``groups`` key-value heads, with the features at the last real token."""

    def make(groups: int = 2, rope: str = "plain", **more: Any) -> Shape:
        torch.manual_seed(0)
        size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}
        size |= {"intermediate_size": 48, "num_key_value_heads": groups, "max_position_embeddings": 64}
        size |= {"initializer_range": 0.1, "rope_parameters": ROPES[rope], "attn_implementation": "eager"}
        model = LlamaModel(LlamaConfig(**size, **more)).requires_grad_(False).eval()
        family, pad = Family("layers", ("q_proj", "v_proj")), {"input_ids": 0}
        base = Backbone("tiny llama", model, family, 4, 32, "", torch.device("cpu"), lambda *_: [], pad)
        texts = [[1 + (7 * i + 3 * t) % 60 for t in range(n)] for i, n in enumerate(LENGTHS)]
        rows = [Row(Encoded({"input_ids": ids}, len(ids)), i % 3, i % 2) for i, ids in enumerate(texts)]
        at = torch.arange(len(rows)), torch.tensor(LENGTHS) - 1

        def features(body: Any) -> Tensor:
            return body(**base.collate([row.encoded for row in rows])).last_hidden_state[at]  # type: ignore[no-any-return]

        targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        return Shape(base, rows, features, targets)

    return make


@pytest.fixture(scope="session")
def vit() -> ImageBackbone:
    """A vision transformer of 4 layers for images of 16 pixels, 17 tokens each."""
    torch.manual_seed(0)
    size = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
    size |= {"image_size": 16, "patch_size": 4}
    config = ViTConfig(**size, initializer_range=0.1, attn_implementation="eager")
    return image_backbone(ViTModel(config, add_pooling_layer=False), "tiny vit", torch.device("cpu"))


@pytest.fixture(scope="session")
def deit() -> ImageBackbone:
    """A tiny DeiT, which has a token more."""
    base = load("tiny-deit", torch.device("cpu"))
    assert isinstance(base, ImageBackbone)
    return base


@pytest.fixture(scope="session")
def dinov2() -> ImageBackbone:
    """A tiny DINOv2 whose layers weigh what they add, each half and feature otherwise."""
    base = load("tiny-dinov2", torch.device("cpu"))
    assert isinstance(base, ImageBackbone)
    draw = torch.Generator().manual_seed(3)
    for name, tensor in base.model.named_parameters():
        if "layer_scale" in name:
            tensor.data = torch.rand(tensor.shape, generator=draw) + 0.5
    return base


@pytest.fixture(scope="session")
def images(vit: ImageBackbone) -> list[Row]:
    """Eight images of three classes and two slices."""
    torch.manual_seed(1)
    images = torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8)
    return [Row(image, i % 3, i % 2) for i, image in enumerate(vit.resident(images))]


@pytest.fixture(
    scope="session", params=["vit", "deit", "dinov2", "llama", "llama, every head its own", "llama3, one group"]
)
def shape(
    request: pytest.FixtureRequest,
    llama: Callable[..., Shape],
    vit: ImageBackbone,
    deit: ImageBackbone,
    dinov2: ImageBackbone,
    images: list[Row],
) -> Shape:
    """Each shape in turn."""
    if request.param in ("vit", "deit", "dinov2"):
        vit = {"vit": vit, "deit": deit, "dinov2": dinov2}[request.param]
        images = [replace(row, encoded=replace(row.encoded, length=vit.tokens)) for row in images]
        encoded = [row.encoded for row in images]

        def features(body: Any) -> Tensor:
            return body(**vit.collate(encoded)).last_hidden_state[:, 0]  # type: ignore[no-any-return]

        return Shape(vit, images, features, ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"))
    how = {"llama": (2, "plain"), "llama, every head its own": (4, "plain"), "llama3, one group": (1, "llama3")}
    return llama(*how[request.param])
