"""Lean layers against the model classes they stand for: the same numbers, and gradients to what learns alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from s3t.backbone import Backbone, load, pooled
from s3t.engine.activations import Activations, activate, gather
from s3t.engine.encoder import LEAN, Encoder
from s3t.engine.fast import encode
from s3t.errors import ModelError, RecipeError

TEXTS = [{"text": text} for text in ("what is it ?", "who was the first man on the moon in 1969 ?", "no", "a b c")]
LONG = [{"text": "word " * n + "end"} for n in (19, 3, 30)]
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-2}
"""Largest difference to the model class over its largest value."""


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("family", sorted(LEAN))
@pytest.mark.parametrize("texts", [TEXTS, LONG], ids=["short", "long"])
def test_each_family_from_every_depth(family: str, precision: Any, texts: list[dict[str, str]]) -> None:
    base = load(f"tiny-{family}", torch.device("cpu"))
    rows = base.encode(texts, 64)
    theirs = pooled(base.model, base.collate(rows))
    encoder = Encoder.of(base, precision)
    pieces = activate(encoder, rows, range(5))
    for depth, piece in pieces.items():
        hidden, lengths = gather([piece], [(0, i) for i in range(len(rows))])
        with torch.no_grad():
            ours = encode(encoder, encoder.layers[depth:], depth, hidden, lengths, {})
        assert ours.dtype == torch.float32
        assert _apart(ours, theirs) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_merging_adds_to_a_copy(tiny: Backbone, precision: Any) -> None:
    """Found while this was written: in float32 the sum had been taken in the frozen weights themselves."""
    encoder = Encoder.of(tiny, precision)
    layer = encoder.layers[1]
    before = [t.clone() for t in layer.tensors()]
    torch.manual_seed(1)
    shapes = {"q": (32, 32), "v": (32, 32), "o": (32, 32), "up": (64, 32), "down": (32, 64)}
    added = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    merged = layer.merged(added)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.tensors(), strict=True))
    x = torch.randn(2, 4, 32).to(encoder.dtype)
    deltas: Any = {name: (lambda rows, w=w: rows @ w.t().to(rows.dtype)) for name, w in added.items()}
    assert _apart(merged(x, None).float(), layer(x, None, deltas).float()) < TOLERANCE[precision]
    assert merged.qkv.weight.dtype == encoder.dtype
    for linear in (merged.qkv, merged.o, merged.up, merged.down):
        assert torch.equal(linear.weight.t(), linear.transposed)


def test_nothing_of_the_base_model_is_shared(tiny: Backbone) -> None:
    theirs = {t.data_ptr() for t in tiny.model.state_dict().values()}
    assert not theirs & {t.data_ptr() for layer in Encoder.of(tiny, "float32").layers for t in layer.tensors()}


def test_a_replaced_model_has_a_lean_form_of_its_own(tiny: Backbone) -> None:
    other = dataclasses.replace(tiny, model=load("tiny-2", torch.device("cpu")).model)
    Encoder.of(tiny, "float32")
    assert len(Encoder.of(other, "float32").layers) == 2


def test_targets_are_matched_as_peft_does(tiny: Backbone) -> None:
    encoder = Encoder.of(tiny, "float32")
    assert encoder.targets(()) == ["q", "v"]
    assert encoder.targets(("dense",)) == ["o", "up", "down"]
    assert encoder.targets(("attention.output.dense", "key")) == ["k", "o"]
    with pytest.raises(RecipeError, match="target 'quer' names no linear map"):
        encoder.targets(("quer",))


def test_a_model_without_a_lean_form(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = dataclasses.replace(tiny)
    monkeypatch.delitem(LEAN, "bert")
    with pytest.raises(ModelError, match=r"no lean form of model type 'bert'.*use engine=reference"):
        Encoder.of(fresh, "float32")


def test_another_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    base = load("tiny-2", torch.device("cpu"))
    monkeypatch.setattr(base.model.config, "hidden_act", "relu")
    with pytest.raises(ModelError, match="knows the activation gelu, not 'relu'"):
        Encoder.of(base, "float32")


def test_slices_go_in_batches_of_their_own(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, rows: seen.append(len(rows)) or real(self, rows))
    rows = tiny.encode([{"text": f"row {i} " * (1 + i % 3)} for i in range(70)], 32)
    activate(Encoder.of(tiny, "float32"), rows, [2])
    assert seen == [64, 6]


def test_activations_are_kept_within_the_budget_and_beyond_it_in_files(tiny: Backbone, tmp_path: Any) -> None:
    encoder = Encoder.of(tiny, "bfloat16")
    pieces = {key: tiny.encode([{"text": f"{key} {i}"} for i in range(9)], 32) for key in "abc"}
    size = 9 * 2 * 32 * 2  # rows, tokens, features, bytes
    kept = Activations(size, tmp_path / "activations")
    made: list[str] = []

    def get(key: str) -> Tensor:
        return kept.get(key, 1, lambda: made.append(key) or activate(encoder, pieces[key], [1])).flat

    first = {key: get(key).clone() for key in pieces}
    again = {key: get(key) for key in pieces}
    assert made == ["a", "b", "c"]
    assert all(torch.equal(first[key], again[key]) for key in pieces)
    folders = sorted((tmp_path / "activations").iterdir())
    assert [path.name for path in folders] == ["b", "c"]
    assert [list(path.iterdir()) for path in folders] == [[], []]  # the files have no name any more
    assert kept.spilled == 2 * size
    kept.close()
    assert not (tmp_path / "activations").exists()
    get("a")
    assert made == ["a", "b", "c", "a"]
    homeless = Activations(0)
    assert [homeless.get("a", 1, lambda: activate(encoder, pieces["a"], [1])).flat.shape for _ in "12"] == [
        (18, 32)
    ] * 2
    assert homeless.computed == 2
