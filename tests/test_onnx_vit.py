"""The vision transformer out of an ONNX file: what is not it is refused, and the real one runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from s3t.backbone import load
from s3t.errors import ModelError
from s3t.images import ImageBackbone
from s3t.onnx_vit import CLASS_PLACE, PATCH_PLACES, read_vit


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write an ONNX file with one product, whose weight has no name of its own."""
    held = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    node = helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"], name="/backbone/encoder/layer.0/mlp/fc1/MatMul")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], held)), str(path))
    return path


def test_another_file_is_refused(tmp_path: Path) -> None:
    weight = {"onnx::MatMul_1": np.zeros((384, 1536), np.float32)}
    with pytest.raises(ModelError, match=f"it has no constant '{CLASS_PLACE}'"):
        read_vit(write(tmp_path / "a.onnx", weight))
    places = {CLASS_PLACE: np.zeros((1, 1, 384), np.float32), PATCH_PLACES: np.zeros((1, 1369, 384), np.float32)}
    with pytest.raises(ModelError, match=r"is not the model that is expected: tensor '.+' is missing or too many"):
        read_vit(write(tmp_path / "b.onnx", weight | places))


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"a.onnx is an ONNX file; pip install 's3t\[vision\]' to read it"):
        read_vit(tmp_path / "a.onnx")


@pytest.mark.packs
def test_the_real_model_reads_six_by_six_patches() -> None:
    base = load("vit-s", torch.device("cpu"))
    assert isinstance(base, ImageBackbone)
    assert (base.kind, base.layers, base.hidden, base.size, base.tokens) == ("dinov2", 12, 384, 84, 37)
    assert base.digest == load("vit-s", torch.device("cpu")).digest
    images = torch.randint(256, (2, 3, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = base.model(**base.collate(base.resident(images))).last_hidden_state
    assert hidden.shape == (2, 37, 384) and bool(hidden.isfinite().all())
