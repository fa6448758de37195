"""Base models from folders: nothing in them is random, and what is missing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from s3t.backbone import load
from s3t.errors import ModelError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-deit"])
def test_a_pooler_that_a_checkpoint_lacks_is_left_out_instead_of_drawn(name: str, tmp_path: Path) -> None:
    """Found with a first vision run: each loading drew another pooler, and a run took its own base model for another."""
    model: Any = load(name, CPU).model
    model.save_pretrained(tmp_path)
    first, second = load(str(tmp_path), CPU), load(str(tmp_path), CPU)
    assert first.digest == second.digest
    assert not any(key.startswith("pooler.") for key in first.model.state_dict())


def test_other_missing_weights_are_an_error(tmp_path: Path) -> None:
    model: Any = load("tiny-vit", CPU).model
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = [name for name in tensors if name.endswith("intermediate.dense.weight")]
    save_file(
        {name: t for name, t in tensors.items() if name not in gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        ModelError, match=r"lacks the weights of 'layers.0.mlp.fc1.weight' and 3 more, which would be random"
    ):
        load(str(tmp_path), CPU)


def test_tiny_models_read_both_texts() -> None:
    one, pair, swapped = (
        load("tiny", CPU).encode([inputs], 8)[0]
        for inputs in (
            {"text": "a b c d"},
            {"text": "a b", "text_pair": "c d"},
            {"text": "a b", "text_pair": "d c"},
        )
    )
    assert one.fields == pair.fields != swapped.fields and pair.length == swapped.length == 4
