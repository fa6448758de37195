"""Packing: which records share a row, that none sees another, that loss and gradients are those without, audited runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from s3t import S3T
from s3t.answers import TEXT
from s3t.backbone import FAMILIES, Backbone, Encoded, load
from s3t.blocks import ChainModel
from s3t.errors import DataError, RecipeError
from s3t.language import ASKED, LanguageBackbone
from s3t.packing import packs
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.system import System
from s3t.training import Row, Seeds, Task, train_node
from verify import kernel
from verify.cli import main as verify
from verify.compare import compare_tensors
from verify.plans import documented_plan
from verify.texts import packed_batch, rows_of_packs

LANGUAGE = sorted(family for family, about in FAMILIES.items() if about.pooling == "last")
"""The families that predict text."""
LIMIT = 24
RECIPE = Recipe(rank=2, batch_size=9, lr=5e-3, max_length=LIMIT, packing=True)
TEXTS = [
    {"text": "dog " * i + f"number {j}", "answer": "red " * j} if (i + j) % 3 else {"text": "sun moon " * i + "cat"}
    for i, j in itertools.product((1, 2, 4), (1, 2, 3))
]
PIECES = [0, 1, 0, 1, 1, 0, 0, 0, 1]


@cache
def base(family: str, attention: str = "sdpa") -> LanguageBackbone:
    found = load(f"lm:tiny-{family}", torch.device("cpu"))
    assert isinstance(found, LanguageBackbone)
    found.model.set_attn_implementation(attention)  # type: ignore[operator]
    return found


def close(found: Tensor, wanted: Tensor) -> None:
    """Both agree to 1e-5 of the largest number."""
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def chain(backbone: Backbone, classes: int = 1) -> ChainModel:
    """A model of one stage whose adapter does something, with what the stage trains asking for gradients."""
    stages = s3t_plan(Layout(1, 2, 1), RECIPE, 4).stages[:1]
    model = ChainModel(backbone, stages, RECIPE, classes)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.adapter_parameters("block-00"):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.requires_grad_(True)
    return model


# ---- which records share a row ----

BATCHES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), max_size=16)


@settings(deadline=None)
@given(BATCHES, st.integers(0, 100))
def test_rows_hold_every_record_once_of_one_slice_and_no_more_than_the_limit(
    drawn: list[tuple[int, int]], more: int
) -> None:
    lengths, pieces = [length for length, _ in drawn], [piece for _, piece in drawn]
    limit = max(lengths, default=1) + more
    rows = packs(lengths, pieces, limit)
    assert Counter(i for row in rows for i in row) == Counter(range(len(drawn)))
    assert all(len({pieces[i] for i in row}) == 1 for row in rows)
    assert all(sum(lengths[i] for i in row) <= limit for row in rows)
    if drawn:
        assert rows == rows_of_packs(lengths, pieces, limit), "the oracle tries every width"
        longest = max(sum(lengths[i] for i in row) for row in rows)
        assert len(rows) * longest <= len(drawn) * max(lengths), "never more tokens than without packing"


@pytest.mark.parametrize(
    ("lengths", "pieces", "limit", "rows"),
    [
        ([2, 5, 3], [0, 0, 0], 5, [[1], [2, 0]]),
        ([2, 5, 3], [0, 0, 1], 10, [[1, 0], [2]]),  # 2 x 7 tokens; each for itself 3 x 5; slice 1 stays alone
        ([4, 4, 4, 4], [0] * 4, 12, [[0], [1], [2], [3]]),  # 4 x 4; two rows of 8 hold as many and are wider
        ([4, 4, 4, 4], [0, 1, 1, 0], 15, [[0], [1], [2], [3]]),
        ([6, 2, 2, 2], [7] * 4, 6, [[0], [1, 2, 3]]),
        ([3], [0], 3, [[0]]),
        ([], [], 3, []),
    ],
)
def test_rows_worked_by_hand(lengths: list[int], pieces: list[int], limit: int, rows: list[list[int]]) -> None:
    assert packs(lengths, pieces, limit) == rows


def test_a_record_longer_than_the_row_is_refused() -> None:
    with pytest.raises(DataError, match="a record of 5 tokens does not fit into a row of 4; cut it to that"):
        packs([2, 5], [0, 0], 4)


# ---- what a packed batch says ----


def test_a_packed_batch_worked_by_hand() -> None:
    rows = [
        Encoded({"input_ids": [10 + i] * length, ASKED: [1] * length}, length) for i, length in enumerate((2, 3, 4))
    ]
    batch = base("llama").pack(rows, [0, 0, 1], 5)
    assert batch["input_ids"].tolist() == [[12, 12, 12, 12, 1], [11, 11, 11, 10, 10]], "padded with 1"
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    assert batch[ASKED].tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 0, 1]], "nothing stands before a record's first token"
    assert batch["attention_mask"].dtype == torch.float32
    low = torch.finfo(torch.float32).min
    assert batch["attention_mask"][1, 0].tolist() == [
        [0, low, low, low, low],
        [0, 0, low, low, low],
        [0, 0, 0, low, low],
        [low, low, low, 0, low],
        [low, low, low, 0, 0],
    ]
    assert batch["attention_mask"][0, 0, 4].tolist() == [low] * 4 + [0]


@pytest.mark.parametrize("family", LANGUAGE)
def test_the_oracle_makes_the_same_batch(family: str) -> None:
    backbone = base(family)
    rows = backbone.encode(TEXTS, LIMIT)
    mine, theirs = backbone.pack(rows, PIECES, LIMIT), packed_batch(rows, PIECES, LIMIT, backbone.pad)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert len(mine["input_ids"]) < len(rows), "several share a row"


def of_each(backbone: LanguageBackbone, rows: Sequence[Encoded], pieces: Sequence[int]) -> list[Tensor]:
    """Return each record's sum of log-likelihoods and number of tokens in the packed batch, as it is trained on."""
    model, out = chain(backbone), []
    for chosen in range(len(rows)):
        quiet = [
            row if i == chosen else Encoded(row.fields | {ASKED: [0] * row.length}, row.length)
            for i, row in enumerate(rows)
        ]
        with torch.no_grad():
            out.append(model(backbone.pack(quiet, pieces, LIMIT)).sum(0))
    return out


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", LANGUAGE)
def test_no_record_sees_another(family: str, attention: str) -> None:
    """Other tokens in one record leave every other's loss as it was, to the bit; and each is that of the record alone."""
    backbone = base(family, attention)
    rows = backbone.encode(TEXTS, LIMIT)
    before = of_each(backbone, rows, PIECES)
    model = chain(backbone)
    for row, found in zip(rows, before, strict=True):
        with torch.no_grad():
            alone = model(backbone.collate([row]))[0]
        close(found, alone)
        assert found[1] == alone[1]
    for changed in range(len(rows)):
        ids = [token % 500 + 7 for token in rows[changed].fields["input_ids"]]
        other = [*rows]
        other[changed] = Encoded(rows[changed].fields | {"input_ids": ids}, rows[changed].length)
        after = of_each(backbone, other, PIECES)
        same = [torch.equal(one, two) for one, two in zip(before, after, strict=True)]
        assert same == [i != changed for i in range(len(rows))]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", LANGUAGE)
def test_loss_and_gradients_are_those_of_the_batch_without_packing(family: str, attention: str) -> None:
    backbone = base(family, attention)
    rows = backbone.encode(TEXTS, LIMIT)
    found = []
    for batch in (backbone.pack(rows, PIECES, LIMIT), backbone.collate(rows)):
        model = chain(backbone)
        loss = backbone.loss(model(batch), torch.zeros(len(rows)))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in model.adapter_parameters("block-00")]
        found.append((loss.detach(), torch.cat([one.flatten() for one in gradients if one is not None])))
    (packed, gradient), (alone, wanted) = found
    close(packed, alone)
    close(gradient, wanted)
    assert wanted.any()


# ---- training ----


def both(backbone: LanguageBackbone, method: str, recipe: Recipe) -> list[tuple[Any, Any]]:
    """Train two stages with the kernel and with the oracle; return every stage's outcomes."""
    plan = documented_plan(method, shards=1, slices=2, budget=1, layers=4, epochs=1.0)
    assert plan is not None
    encoded = backbone.encode(TEXTS, LIMIT)
    batches = [[0, 1, 2, 3, 4], [8, 7, 6, 5]]
    out: list[tuple[Any, Any]] = []
    state: Any = None
    for depth in (1, 2):
        seeds = (depth, depth + 1, depth + 2)
        fast = train_node(
            backbone,
            Task(
                plan.stages[:depth],  # type: ignore[arg-type]
                state,
                [Row(row, 0, piece) for row, piece in zip(encoded, PIECES, strict=True)],
                batches,
                recipe,
                Seeds(*seeds),
                1,
            ),
        )
        slow = kernel.train_node_slowly(
            backbone,
            kernel.Task(
                plan.stages[:depth],
                state,
                [kernel.Row(row, 0, piece) for row, piece in zip(encoded, PIECES, strict=True)],
                batches,
                recipe,
                kernel.Seeds(*seeds),
                1,
            ),
        )
        out.append((fast, slow))
        adapters = {**(state.adapters if state else {}), plan.stages[depth - 1].adapter: slow.adapter}
        state = kernel.State(adapters, slow.head)
    return out


@pytest.mark.parametrize("method", ["s3t", "sisa-full"])
@pytest.mark.parametrize("family", LANGUAGE)
def test_the_oracle_trains_the_same_bits(family: str, method: str) -> None:
    for fast, slow in both(base(family), method, dataclasses.replace(RECIPE, dropout=0.1)):
        assert compare_tensors(slow.adapter, fast.adapter) == compare_tensors(slow.head, fast.head) == []
        assert (
            (fast.optimizer_steps, fast.record_passes) == (slow.optimizer_steps, slow.record_passes) == (2, len(TEXTS))
        )
        assert fast.layer_passes == slow.layer_passes


def test_training_packs_what_it_is_told_to_and_counts_records_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained is, to rounding, what is trained without packing; the model reads fewer rows."""
    backbone, read = base("llama"), list[tuple[int, ...]]()
    outputs = LanguageBackbone.outputs

    def spied(self: LanguageBackbone, body: Any, head: Any, batch: dict[str, Tensor]) -> Tensor:
        read.append(tuple(batch["input_ids"].shape))
        return outputs(self, body, head, batch)

    monkeypatch.setattr(LanguageBackbone, "outputs", spied)
    rows = [Row(row, 0, piece) for row, piece in zip(backbone.encode(TEXTS, LIMIT), PIECES, strict=True)]
    plan = s3t_plan(Layout(1, 2, 1), RECIPE, 4)
    done = [
        train_node(backbone, Task(plan.stages[:1], None, rows, [[*range(9)]] * 2, recipe, Seeds(1, 2, 3), 1))
        for recipe in (RECIPE, dataclasses.replace(RECIPE, packing=False))
    ]
    lengths = [row.encoded.length for row in rows]
    shapes = packs(lengths, PIECES, LIMIT)
    wanted = len(shapes), max(sum(lengths[i] for i in row) for row in shapes)
    assert read == [wanted] * 2 + [(9, max(lengths))] * 2 and wanted[0] * wanted[1] < 9 * max(lengths)
    packed, alone = done
    assert (packed.record_passes, packed.layer_passes) == (alone.record_passes, alone.layer_passes)
    assert packed.record_passes == 18
    for name in alone.adapter:
        torch.testing.assert_close(packed.adapter[name], alone.adapter[name], rtol=1e-3, atol=1e-5)


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"repeat {i % 7} " * (1 + i % 4), "output": "yes " * (1 + i % 5) + str(i)} for i in range(80)
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    return tmp_path / "alpaca.json"


HOW = (
    "--shards",
    "1",
    "--slices",
    "2",
    "--budget",
    "2",
    "--epochs",
    "2",
    "--batch-size",
    "8",
    "--lr",
    "0.02",
    "--max-length",
    "60",
)


def test_a_packed_run_is_rebuilt_to_the_bit(alpaca: Path, tmp_path: Path) -> None:
    """After a deletion and a refresh, by the shared kernel and by the oracle; the recipe says how it was trained."""
    run = tmp_path / "run"
    call("train", run, "--data", alpaca, "--model", "tiny-llama", *HOW, "--recipe", "packing=true")
    assert json.loads((run / "run.json").read_text())["recipe"]["packing"] is True
    call("delete", run, "--any", "1")
    call("refresh", run)  # the chains have both slices again, so batches hold records of two
    for level in ("E0", "E1a", "E1b"):
        assert verify([str(run), "--level", level]) == 0, level
    assert verify([str(run), "--oracle"]) == 0


def test_a_run_that_was_not_packed_as_it_says_is_found(
    alpaca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained as if all records were of one slice: the clean room's bits are others."""
    run = tmp_path / "run"
    real = LanguageBackbone.pack
    with monkeypatch.context() as patch:
        patch.setattr(
            LanguageBackbone, "pack", lambda self, rows, pieces, limit: real(self, rows, [0] * len(rows), limit)
        )
        call("train", run, "--data", alpaca, "--model", "tiny-llama", *HOW, "--recipe", "packing=true")
    assert verify([str(run), "--level", "E1a"]) == 1


# ---- refusals ----


def test_models_that_predict_no_text_are_not_packed(alpaca: Path, tmp_path: Path) -> None:
    recipe = Recipe(packing=True)
    message = "packing=True is for models that predict text, and 'tiny' is loaded for others; leave it out"
    tiny = load("tiny", torch.device("cpu"))
    with pytest.raises(RecipeError, match=message):
        System.create(tmp_path / "a", s3t_plan(Layout(1, 2, 1), recipe, 6), recipe, model=tiny, classes=("a", "b"))
    with pytest.raises(RecipeError, match=message):
        S3T(tmp_path / "b", Layout(1, 2, 1), classes=("a", "b"), model=tiny, recipe=recipe, engine="fast")
    rows = [Row(row, 0) for row in tiny.encode([{"text": "a b"}], 32)]
    stages = s3t_plan(Layout(1, 2, 1), recipe, 6).stages[:1]
    with pytest.raises(RecipeError, match=message):
        train_node(tiny, Task(stages, None, rows, [[0]], recipe, Seeds(1, 2, 3), 2))
    plan = s3t_plan(Layout(1, 2, 1), recipe, 4)
    with pytest.raises(RecipeError, match="the fast engine trains classes and numbers, not texts"):
        System.create(tmp_path / "c", plan, recipe, model=base("llama"), classes=TEXT, engine="fast")
    said = refused("train", tmp_path / "d", "--data", alpaca, "--model", "tiny-llama", "--recipe", "packing=yes")
    assert "packing='yes' is neither true nor false; give one of them" in said
    assert [path.name for path in tmp_path.iterdir()] == ["alpaca.json"]


def test_layers_that_see_less_than_a_record_are_not_packed() -> None:
    """One mask goes to all layers, so windows of some would be lost."""
    size = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}
    given: dict[str, Any] = {**size, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=512, num_hidden_layers=2, **given)).model
    windowed = dataclasses.replace(base("qwen2"), model=model)
    with pytest.raises(
        RecipeError, match="some of 'lm:tiny-qwen2' see 16 tokens; leave it out, or give max_length=16 at most"
    ):
        windowed.check_packing(17)
    windowed.check_packing(16)
    base("qwen2").check_packing(10**6)
