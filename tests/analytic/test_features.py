"""Features of single records: what they are, that nothing else moves a bit of them, and how they become integers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from s3t.analytic.features import Reader
from s3t.analytic.head import LEVELS, AnalyticHead
from s3t.backbone import Backbone, Encoded, Family, load
from s3t.errors import DataError, LayoutError, ModelError

CPU = torch.device("cpu")
NAMES = ("tiny", "tiny-3", "tiny-mpnet", "tiny-distilbert", "tiny-deberta-v2", "tiny-gpt2", "tiny-llama", "tiny-qwen3")
IMAGES = ("tiny-vit-3", "tiny-dinov2")
EVERY = pytest.mark.parametrize("name", [*NAMES, *IMAGES])
POOLINGS = ("mean", "first", "last", "max")
ALL = AnalyticHead(poolings=POOLINGS, step=2.0**-10)


def rows(base: Backbone, count: int = 7) -> list[Encoded]:
    """Return encoded records of several lengths, or images."""
    if base.family.reads == "text":
        return base.encode([{"text": f"the {'cat ' * (i % 5)}sat on number {i}"} for i in range(count)], 32)
    files = []
    for i in range(count):
        file = io.BytesIO()
        shade = np.random.default_rng(i).integers(0, 256, (8 + 4 * (i % 3), 12, 3), dtype=np.uint8)
        Image.fromarray(shade).save(file, "PNG")
        files.append({"image": file.getvalue()})
    return base.encode(files, 32)


@EVERY
def test_a_records_features_do_not_depend_on_the_others(name: str) -> None:
    """Nor on their order, on who reads, or on what was read before."""
    base = load(name, CPU)
    mine, reader = rows(base), Reader(base, ALL, 0)
    whole = reader.read(mine)
    assert whole.dtype == np.int16 and whole.shape == (7, base.layers * 4 * base.hidden)
    assert len({row.tobytes() for row in whole}) == 7, "all records look the same"
    order = [3, 0, 6, 2, 5, 1, 4]
    assert np.array_equal(reader.read([mine[i] for i in order]), whole[order])
    again = Reader(load(name, CPU), ALL, 5)
    for i in (6, 0, 3):
        assert np.array_equal(again.read([mine[i]])[0], whole[i])
    assert reader.read([]).shape == (0, whole.shape[1])


@EVERY
def test_features_are_pooled_outputs_of_the_layers(name: str) -> None:
    """Against what the model class itself says of its hidden states; the last may be normed there, and is left out."""
    base = load(name, CPU)
    found = Reader(base, ALL, 0).read(rows(base)).reshape(7, base.layers, 4, base.hidden)
    for i, row in enumerate(rows(base)):
        with torch.no_grad():
            hidden = base.model(**base.collate([row]), output_hidden_states=True).hidden_states
        assert len(hidden) == base.layers + 1
        for layer in range(base.layers - 1):
            tokens = hidden[layer + 1][0].double().numpy()
            for k, pooled in enumerate((tokens.mean(0), tokens[0], tokens[-1], tokens.max(0))):
                assert np.abs(found[i, layer, k] * ALL.step - pooled).max() <= 0.51 * ALL.step


def test_the_last_layers_output_is_read_as_it_leaves_the_layer(tiny: Backbone) -> None:
    """In an encoder that is what the model returns."""
    found = Reader(tiny, AnalyticHead(layers=(5,)), 0).read(rows(tiny))
    for i, row in enumerate(rows(tiny)):
        with torch.no_grad():
            tokens = tiny.model(**tiny.collate([row])).last_hidden_state[0].double()
        assert np.abs(found[i] * 2.0**-8 - tokens.mean(0).numpy()).max() <= 0.51 * 2.0**-8


@EVERY
def test_layers_and_poolings_lie_in_the_order_in_which_they_are_named(name: str) -> None:
    base = load(name, CPU)
    mine = rows(base, 3)
    whole = Reader(base, ALL, 0).read(mine).reshape(3, base.layers, 4, base.hidden)
    head = AnalyticHead(layers=(2, 0), poolings=("max", "first"), step=ALL.step)
    parts = Reader(base, head, 0).read(mine).reshape(3, 2, 2, base.hidden)
    for a, layer in enumerate((2, 0)):
        for b, pooling in enumerate((3, 1)):
            assert np.array_equal(parts[:, a, b], whole[:, layer, pooling])


@EVERY
def test_reading_leaves_the_backbone_as_it_was(name: str) -> None:
    base = load(name, CPU)
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    Reader(base, ALL, 0).read(rows(base, 2))
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.model.state_dict().items())
    assert not any(module._forward_hooks for module in base.model.modules())
    assert not any(parameter.grad is not None for parameter in base.model.parameters())


def test_random_features_follow_from_the_runs_seed(tiny: Backbone) -> None:
    """relu(x R), R standard normal over the root of how many features there are; the plain ones stay as they are."""
    head, mine = AnalyticHead(layers=(1, 4), random=50, step=2.0**-10), rows(tiny)
    plain = Reader(tiny, AnalyticHead(layers=(1, 4), step=2.0**-10), 0).read(mine)
    found = Reader(tiny, head, 3).read(mine)
    assert found.shape == (7, 64 + 50) and np.array_equal(found[:, :64], plain)
    drawn = torch.randn(64, 50, generator=torch.Generator().manual_seed(3)).double() / 8
    wanted = np.maximum(plain * 2.0**-10 @ drawn.numpy(), 0)
    assert np.abs(found[:, 64:] * 2.0**-10 - wanted).max() < 0.01 and (wanted > 0.1).any()
    assert np.array_equal(Reader(tiny, head, 3).read(mine[::-1])[::-1], found)
    other = Reader(tiny, head, 4).read(mine)
    assert np.array_equal(other[:, :64], plain) and not np.array_equal(other[:, 64:], found[:, 64:])
    assert np.array_equal(Reader(tiny, head, 2**63 + 3).read(mine), found)


class Given(nn.Module):
    """A model of two layers whose outputs are its token ids by a table, and then their negatives in a tuple."""

    def __init__(self, table: Sequence[float]) -> None:
        super().__init__()
        self.table = torch.tensor(table)
        self.layers = nn.ModuleList([nn.Identity(), Negative()])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Any = self.table[input_ids][..., None]
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[0]


class Negative(nn.Module):
    """As layers of some model classes do, it returns a tuple."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return -hidden, None


def given(table: Sequence[float]) -> tuple[Backbone, list[Encoded]]:
    """Return a model of one feature and a record of one token for each value of ``table``."""
    family = Family("layers", ())
    base = Backbone("given", Given(table), family, 2, 1, "", CPU, lambda *_: [], {"input_ids": 0})
    return base, [Encoded({"input_ids": [i]}, 1) for i in range(len(table))]


def test_features_are_rounded_halves_to_even_and_cut() -> None:
    values = (0.0, 0.24, 0.25, 0.26, 0.75, 1.25, -0.25, -0.75, 16383.25, 16383.5, 16384.0, 3e38, -3e38)
    wanted = [0, 0, 0, 1, 2, 2, 0, -2, 32766, LEVELS, LEVELS, LEVELS, -LEVELS]
    base, mine = given(values)
    found = Reader(base, AnalyticHead(step=0.5), 0).read(mine)
    assert found[:, 0].tolist() == wanted
    assert found[:, 1].tolist() == [-value for value in wanted]


def test_any_step_keeps_features_within_their_bits() -> None:
    base, mine = given((1e-45, -1e-45, 3e38, 0.0))
    for step, wanted in ((5e-324, [LEVELS, -LEVELS, LEVELS, 0]), (2.0**1023, [0, 0, 0, 0])):
        assert Reader(base, AnalyticHead(layers=(0,), step=step), 0).read(mine)[:, 0].tolist() == wanted


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_feature_that_is_not_finite_is_refused(value: float) -> None:
    base, mine = given((1.0, 2.0, value))
    reader = Reader(base, AnalyticHead(), 0)
    with pytest.raises(DataError, match="record 2 has a feature that is not finite: what is wrong with its input"):
        reader.read(mine)
    assert not any(module._forward_hooks for module in base.model.modules())
    assert reader.read(mine[:2])[:, 0].tolist() == [256, 512]


def test_layers_that_are_not_there_are_refused(tiny: Backbone) -> None:
    with pytest.raises(LayoutError, match=r"the head reads layer 6, but 'tiny' has 0\.\.5"):
        Reader(tiny, AnalyticHead(layers=(0, 6, 9)), 0)


def test_a_language_model_is_refused() -> None:
    with pytest.raises(ModelError, match="'lm:tiny-llama' is loaded to predict texts; an analytic head answers with"):
        Reader(load("lm:tiny-llama", CPU), AnalyticHead(), 0)
