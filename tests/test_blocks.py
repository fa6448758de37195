"""Adapters sit on exactly their layers; dropping blocks is loading the prefix; stock PEFT reads what is stored."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from s3t.backbone import Backbone, Family, pooled
from s3t.blocks import ChainModel, ModelState, adapter_config, score
from s3t.errors import IsolationError
from s3t.plan import Stage, s3t_plan, top_down_blocks
from s3t.records import Layout, Recipe
from s3t.store import tensor_bytes

RECIPE = Recipe(rank=2)
TEXTS = [{"text": "how many cats " * (1 + i % 4) + str(i)} for i in range(7)]


@pytest.fixture(scope="module")
def twelve(tiny: Backbone) -> Backbone:
    """A BERT of 12 layers, so that layers 1, 10 and 11 share a beginning."""
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=512,
            hidden_size=32,
            num_hidden_layers=12,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            attn_implementation="sdpa",
        )
        model = BertModel(config, add_pooling_layer=False).requires_grad_(False).eval()
    return dataclasses.replace(tiny, name="twelve", model=model, layers=12)


def _random(model: ChainModel, seed: int = 3) -> ModelState:
    """Non-zero tensors everywhere, B included: a block that is not active cannot hide."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.randn(tensor.shape, generator=generator) * 0.3 for name, tensor in sorted(tensors.items())}

    return ModelState({name: drawn(model.adapter_tensors(name)) for name in model.stages}, drawn(model.head_tensors()))


def _carrying(model: ChainModel, name: str) -> list[int]:
    layers = model.backbone.layer_modules(model._bare())
    return [
        i
        for i, layer in enumerate(layers)
        if any(isinstance(m, LoraLayer) and name in m.lora_A for m in layer.modules())
    ]


def _stages(layers: int, slices: int) -> tuple[Stage, ...]:
    return s3t_plan(Layout(1, slices, 1), RECIPE, layers).stages


@pytest.mark.parametrize("slices", range(1, 13))
def test_blocks_sit_on_exactly_their_layers(twelve: Backbone, slices: int) -> None:
    stages = _stages(12, slices)
    model = ChainModel(twelve, stages, RECIPE, 3)
    for stage, block in zip(stages, top_down_blocks(12, slices), strict=True):
        assert _carrying(model, stage.adapter) == list(block)
        assert len(model.adapter_parameters(stage.adapter)) == 2 * 2 * len(block)  # query and value, A and B
        wanted = {
            f"base_model.model.encoder.layer.{layer}.attention.self.{target}.lora_{side}.weight"
            for layer in block
            for target in ("query", "value")
            for side in "AB"
        }
        assert set(model.adapter_tensors(stage.adapter)) == wanted


def test_layer_1_is_not_layer_10_or_11(twelve: Backbone) -> None:
    model = ChainModel(twelve, [Stage("one", "lora", (1,), 1.0)], RECIPE, 2)
    assert _carrying(model, "one") == [1]


def test_a_misplaced_adapter_is_refused(twelve: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The substring fault of the published implementation, planted."""

    def by_substring(stage: Stage, family: Family, recipe: Recipe) -> Any:
        config = adapter_config(stage, family, recipe)
        config.layers_to_transform = [i for i in range(12) if any(str(layer) in str(i) for layer in stage.layers)]
        return config

    monkeypatch.setattr("s3t.blocks.adapter_config", by_substring)
    with pytest.raises(IsolationError, match=r"adapter 'one' sits on layers \[1, 10, 11\], not on \[1\]"):
        ChainModel(twelve, [Stage("one", "lora", (1,), 1.0)], RECIPE, 2)


def test_chain_models_share_the_base_and_alias_nothing_else(tiny: Backbone) -> None:
    stages = _stages(6, 3)
    one, two = ChainModel(tiny, stages, RECIPE, 3), ChainModel(tiny, stages, RECIPE, 3)
    base = {tensor.data_ptr() for tensor in tiny.model.state_dict().values()}
    others = [{t.data_ptr() for t in model.state_dict().values()} - base for model in (one, two)]
    assert all(len(own) == 3 * 8 + 2 for own in others)  # 3 blocks of 2 layers x 2 modules x A, B; the head
    assert not others[0] & others[1]
    assert base <= {t.data_ptr() for t in one.state_dict().values()}
    assert not any(isinstance(m, LoraLayer) for m in tiny.model.modules())


def test_full_fine_tuning_copies_the_base(tiny: Backbone) -> None:
    model = ChainModel(tiny, [Stage("full", "full", tuple(range(6)), 1.0)], RECIPE, 3)
    base = {tensor.data_ptr() for tensor in tiny.model.state_dict().values()}
    assert not base & {t.data_ptr() for t in model.state_dict().values()}
    assert set(model.adapter_tensors("full")) == set(tiny.model.state_dict())


def _hidden(model: ChainModel, backbone: Backbone, texts: Sequence[dict[str, str]] = TEXTS) -> Tensor:
    with torch.no_grad():
        return pooled(model.body, backbone.collate(backbone.encode(texts, 32)))


def test_dropping_blocks_is_loading_the_prefix_bit_for_bit(twelve: Backbone) -> None:
    stages = _stages(12, 6)
    whole = ChainModel(twelve, stages, RECIPE, 3)
    state = _random(whole)
    whole.mount(state)
    seen = []
    for length in range(6, 0, -1):
        names = [stage.adapter for stage in stages[:length]]
        whole.body.base_model.set_adapter(names, inference_mode=True)
        prefix = ChainModel(twelve, stages[:length], RECIPE, 3)
        prefix.mount(ModelState({name: state.adapters[name] for name in names}, state.head))
        hidden = _hidden(prefix, twelve)
        assert torch.equal(_hidden(whole, twelve), hidden)
        assert all(not torch.equal(hidden, other) for other in seen), "a block made no difference: it was not active"
        seen.append(hidden)


def test_earlier_blocks_keep_their_tensors_when_others_are_added(tiny: Backbone) -> None:
    """Loading and wrapping again would set every earlier B to zero."""
    stages = _stages(6, 3)
    state = _random(ChainModel(tiny, stages, RECIPE, 3))
    model = ChainModel(tiny, stages, RECIPE, 3)
    model.mount(state)
    for name, tensors in state.adapters.items():
        found = model.adapter_tensors(name)
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_stock_peft_reads_a_stored_chain(twelve: Backbone, tmp_path: Path) -> None:
    import copy

    stages = _stages(12, 3)
    ours = ChainModel(twelve, stages, RECIPE, 3)
    state = _random(ours)
    ours.mount(state)
    for stage in stages:
        folder = tmp_path / stage.adapter
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(tensor_bytes(state.adapters[stage.adapter]))
        adapter_config(stage, twelve.family, RECIPE).save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = PeftModel.from_pretrained(copy.deepcopy(twelve.model), tmp_path / "block-00", adapter_name="block-00")
        for stage in stages[1:]:
            stock.load_adapter(tmp_path / stage.adapter, adapter_name=stage.adapter)
    stock.base_model.set_adapter([stage.adapter for stage in stages], inference_mode=True)
    stock.eval()
    batch = twelve.collate(twelve.encode(TEXTS, 32))
    with torch.no_grad():
        assert torch.equal(stock(**batch).last_hidden_state, ours.body(**batch).last_hidden_state)
        assert not torch.equal(stock(**batch).last_hidden_state, twelve.model(**batch).last_hidden_state)


def test_mounting_what_does_not_fit_is_refused(tiny: Backbone) -> None:
    stages = _stages(6, 3)
    model = ChainModel(tiny, stages[:1], RECIPE, 3)
    state = _random(model)
    wrong = dict(state.adapters["block-00"])
    dropped = sorted(wrong)[0]
    del wrong[dropped]
    for tensors in (wrong, {**state.adapters["block-00"], "extra": torch.zeros(1)}):
        with pytest.raises(
            IsolationError, match=r"adapter 'block-00' does not fit: tensor .* is missing or not expected"
        ):
            model.mount(ModelState({"block-00": tensors}, state.head))


def test_initialisation_draws_from_its_seed_alone(tiny: Backbone) -> None:
    stages = _stages(6, 3)

    def drawn(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(noise)
        model = ChainModel(tiny, stages, RECIPE, 3)
        model.initialise("block-01", seed)
        model.initialise_head(seed)
        return {**model.adapter_tensors("block-01"), **model.head_tensors()}

    with torch.random.fork_rng(devices=[]):
        first, again, other = drawn(5, 1), drawn(5, 2), drawn(6, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, tensor in first.items():
        if "lora_B" in name or name == "bias":
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
        if "lora_A" in name:
            assert tensor.abs().max() <= 32**-0.5


def test_fresh_adapters_change_nothing(tiny: Backbone) -> None:
    model = ChainModel(tiny, _stages(6, 3), RECIPE, 3)
    for stage in model.stages:
        model.initialise(stage, 1)
    with torch.no_grad():
        base = pooled(tiny.model, tiny.collate(tiny.encode(TEXTS, 32)))
    assert torch.equal(_hidden(model, tiny), base)


def test_scores_come_in_the_order_of_the_rows(tiny: Backbone) -> None:
    model = ChainModel(tiny, _stages(6, 2), RECIPE, 3)
    model.mount(_random(model))
    rows = tiny.encode(TEXTS, 32)
    alone = torch.cat([score(model, [row]) for row in rows])
    for size in (1, 2, 3, 64):
        torch.testing.assert_close(score(model, rows, size), alone, rtol=1e-4, atol=1e-5)  # padding moves last bits
    assert score(model, []).shape == (0, 3)


def test_pooling_ignores_padding(tiny: Backbone) -> None:
    short, long = tiny.encode([{"text": "one two"}, {"text": "one two three four five six"}], 32)
    with torch.no_grad():
        alone = pooled(tiny.model, tiny.collate([short]))
        beside = pooled(tiny.model, tiny.collate([short, long]))[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"text": ""}, {"text": "  "}, {"text": b"bytes"}])
def test_an_input_without_text_is_refused(tiny: Backbone, fields: dict[str, Any]) -> None:
    from s3t.errors import DataError

    with pytest.raises(DataError, match="input 1 has no text"):
        tiny.encode([{"text": "fine"}, fields], 32)
