"""Every family: what a stage may change, that a prefix is a prefix, that the engines and the oracle agree on what is served."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s3t import S3T
from s3t.backbone import FAMILIES, Backbone, load, pooled
from s3t.blocks import ChainModel, ModelState, score
from s3t.digests import tensors_digest
from s3t.plan import s3t_plan
from s3t.records import Inputs, Layout, Recipe, Record
from s3t.system import System
from s3t.training import Row, Seeds, Task, Trained, train_node

RECIPE = Recipe(rank=2, epochs=1.0, batch_size=6, dropout=0.1)
PLAN = s3t_plan(Layout(1, 2, 1), RECIPE, 4)
KEY = bytes(range(32))
EVERY = pytest.mark.parametrize("family", sorted(FAMILIES))
TEXTS = sorted(family for family, about in FAMILIES.items() if about.reads == "text")


def base(family: str) -> Backbone:
    return load(f"tiny-{family}", torch.device("cpu"))


def content(family: str, i: int) -> Inputs:
    """Return what the model reads of record ``i``: a text, or an image of one of three sizes."""
    if family in TEXTS:
        return {"text": f"the cat {'sat ' * (i % 4)}on number {i}"}
    shade = np.random.default_rng(i).integers(0, 256, (8 + 4 * (i % 3), 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(shade).save(file, "PNG")
    return {"image": file.getvalue()}


@functools.cache
def records(family: str) -> list[Record]:
    return [Record(f"row-{i:03d}", content(family, i), i % 3) for i in range(30)]


def chain(backbone: Backbone) -> list[Trained]:
    """Train two stages."""
    mine = records(backbone.kind)
    encoded = backbone.encode([record.inputs for record in mine], 32)
    rows = [Row(e, record.label) for e, record in zip(encoded, mine, strict=True)]
    batches, state, out = [list(range(i, i + 6)) for i in range(0, 30, 6)], None, []
    for depth in (1, 2):
        task = Task(PLAN.stages[:depth], state, rows, batches, RECIPE, Seeds(depth, 3, 4), 3)
        out.append(train_node(backbone, task))
        adapters = {**(state.adapters if state else {}), PLAN.stages[depth - 1].adapter: out[-1].adapter}
        state = ModelState(adapters, out[-1].head)
    return out


@EVERY
def test_a_stage_changes_its_block_and_the_head_alone(family: str) -> None:
    backbone = base(family)
    before = tensors_digest(backbone.model.state_dict())
    first, second = chain(backbone)
    assert tensors_digest(backbone.model.state_dict()) == before
    for trained, layers in ((first, (2, 3)), (second, (0, 1))):
        assert trained.adapter and all(
            any(f"{backbone.family.layers}.{layer}." in name for layer in layers) for name in trained.adapter
        )
        assert all(tensor.any() for name, tensor in trained.adapter.items() if "lora_B" in name), "B is still zero"
    assert not torch.equal(first.head["weight"], second.head["weight"])


@EVERY
def test_to_drop_a_block_is_to_load_the_prefix(family: str) -> None:
    """A model of two stages with the second block at zero is, bit for bit, the model of one stage."""
    backbone = base(family)
    first, second = chain(backbone)
    short = ChainModel(backbone, PLAN.stages[:1], RECIPE, 3)
    short.mount(ModelState({"block-00": first.adapter}, first.head))
    long = ChainModel(backbone, PLAN.stages, RECIPE, 3)
    zero = {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in second.adapter.items()}
    long.mount(ModelState({"block-00": first.adapter, "block-01": zero}, first.head))
    rows = backbone.encode([record.inputs for record in records(family)[:9]], 32)
    assert torch.equal(score(short, rows), score(long, rows))
    long.mount(ModelState({"block-00": first.adapter, "block-01": second.adapter}, second.head))
    assert not torch.equal(score(short, rows), score(long, rows))


@pytest.mark.parametrize("family", TEXTS)
def test_padding_is_no_part_of_the_features(family: str) -> None:
    backbone = base(family)
    short, long = backbone.encode([{"text": "a b"}, {"text": "a b c d e f g h i"}], 32)
    pooling = backbone.family.pooling
    with torch.no_grad():
        alone = pooled(backbone.model, backbone.collate([short]), pooling)
        beside = pooled(backbone.model, backbone.collate([short, long]), pooling)[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@EVERY
def test_a_run_is_exact_after_a_deletion(family: str, tmp_path: Path, rebuilt: Callable[..., None]) -> None:
    """The clean room with the system's kernel and with the oracle's own, for what serves."""
    layout, mine = Layout(1, 2, 2), records(family)
    system = S3T(
        tmp_path / "run", layout, classes=("a", "b", "c"), model=f"tiny-{family}", recipe=RECIPE, key=KEY,
        evaluation=((), mine[:4]),
    )  # fmt: skip
    system.fit(mine[4:])
    system.delete([mine[9].id])
    rebuilt(system, mine[4:])
    system.close()


def test_a_decoder_in_the_hubs_format_without_a_padding_token(tmp_path: Path) -> None:
    """Nothing that stands behind a row's last token can move its features, so its tokenizer needs no padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "<end>": 1, **{word: i + 2 for i, word in enumerate(["the", "cat", "sat", "on", "number"])}}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", eos_token="<end>")
    folder = tmp_path / "model"
    base("llama").model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    backbone = load(str(folder), torch.device("cpu"))
    assert backbone.pad["input_ids"] == 1 and backbone.model.config.use_cache is False  # type: ignore[union-attr]
    system = S3T(tmp_path / "run", Layout(1, 2, 1), classes=("a", "b", "c"), model=backbone, recipe=RECIPE, key=KEY)
    system.fit(records("llama"))
    assert System.open(tmp_path / "run").predict([{"text": "the cat"}]).shape == (1, 3)
