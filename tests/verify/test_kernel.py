"""The numeric kernel against its slow, obvious oracle: the same bits everywhere, and a comparison that can fail."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from s3t import backbone as backbones
from s3t import blocks, training
from s3t.backbone import FAMILIES, Backbone, Encoded, load
from s3t.blocks import ChainModel, ModelState
from s3t.digests import tensors_digest
from s3t.errors import S3TError
from s3t.images import ImageBackbone
from s3t.records import Recipe
from s3t.tiny import tiny_model
from verify import derive, kernel
from verify.compare import compare_tensors
from verify.plans import Stage, documented_plan

FAMILY_NAMES = sorted(FAMILIES)
RECIPE = Recipe(rank=2, batch_size=4, lr=5e-3, dropout=0.1, warmup=0.3, epochs=2.0, clip=0.5)


@cache
def base(family: str) -> Backbone:
    """A small randomly initialised model of ``family``: 4 layers of 16, with dropout modules of its own."""
    if FAMILIES[family].reads == "image":
        return load(f"tiny-{family}", torch.device("cpu"))
    model, padding = tiny_model(family, 4, 16)
    model.requires_grad_(False).eval()

    def encode(inputs: Any, max_length: int) -> list[Encoded]:
        rows = []
        for fields in inputs:
            words = str(fields["text"]).split()[:max_length]
            ids = [2 + zlib.crc32(word.encode()) % 510 for word in words]
            tokens = {"input_ids": ids} | ({"token_type_ids": [0, *[1] * (len(ids) - 1)]} if family == "bert" else {})
            rows.append(Encoded(tokens, len(ids)))
        return rows

    pad = {"input_ids": padding} | ({"token_type_ids": 0} if family == "bert" else {})
    return Backbone(family, model, FAMILIES[family], 4, 16, "", torch.device("cpu"), encode, pad)


def encoded(backbone: Backbone, count: int) -> list[training.Row]:
    if isinstance(backbone, ImageBackbone):
        drawn = torch.randint(256, (count, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return [training.Row(row, i % 3) for i, row in enumerate(backbone.resident(drawn))]
    texts = [{"text": f"word-{i} " * (1 + i % 5) + f"and {i * i}"} for i in range(count)]
    return [training.Row(row, i % 3) for i, row in enumerate(backbone.encode(texts, 32))]


def order(rows: list[training.Row], recipe: Recipe, seed: int) -> list[list[int]]:
    ids = [f"{i:04d}" for i in range(len(rows))]
    lengths = {name: row.encoded.length for name, row in zip(ids, rows, strict=True)}
    asked = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "window": recipe.window}
    return [[int(name) for name in batch] for batch in derive.batches(ids, lengths, seed, **asked)]


def fast(
    backbone: Backbone, stages: tuple[Any, ...], rows: list[training.Row], recipe: Recipe, seed: int = 1
) -> list[training.Trained]:
    """Train a chain with the kernel under test; return every stage's outcome."""
    state: ModelState | None = None
    out = []
    for depth in range(1, len(stages) + 1):
        seeds, batches = training.Seeds(seed, seed + depth, seed + 2 * depth), order(rows, recipe, seed + depth)
        task = training.Task(stages[:depth], state, rows, batches, recipe, seeds, 3)
        out.append(training.train_node(backbone, task))
        adapters = {**(state.adapters if state else {}), stages[depth - 1].adapter: out[-1].adapter}
        state = ModelState(adapters, out[-1].head)
    return out


def slow(
    backbone: Backbone, stages: tuple[Any, ...], rows: list[training.Row], recipe: Recipe, seed: int = 1
) -> list[kernel.Trained]:
    """Train the same chain with the oracle, on top of what the oracle made."""
    mine = [kernel.Row(row.encoded, row.label) for row in rows]
    state: kernel.State | None = None
    out = []
    for depth in range(1, len(stages) + 1):
        seeds, batches = kernel.Seeds(seed, seed + depth, seed + 2 * depth), order(rows, recipe, seed + depth)
        task = kernel.Task(stages[:depth], state, mine, batches, recipe, seeds, 3)
        out.append(kernel.train_node_slowly(backbone, task))
        adapters = {**(state.adapters if state else {}), stages[depth - 1].adapter: out[-1].adapter}
        state = kernel.State(adapters, out[-1].head)
    return out


def both(*chain: Any) -> list[tuple[training.Trained, kernel.Trained]]:
    return list(zip(fast(*chain), slow(*chain), strict=True))


def apart(outcomes: list[tuple[training.Trained, kernel.Trained]]) -> list[str]:
    """Return how the two kernels' outcomes differ, in words."""
    found = []
    for number, (one, two) in enumerate(outcomes):
        for part in ("adapter", "head"):
            for difference in compare_tensors(getattr(two, part), getattr(one, part)):
                found.append(f"stage {number}: {difference.tensor}: {difference.message}")
        for count in ("optimizer_steps", "record_passes", "layer_passes"):
            if getattr(one, count) != getattr(two, count):
                found.append(f"stage {number}: {count}")
    return found


def stages_of(method: str, slices: int) -> tuple[Stage, ...]:
    plan = documented_plan(method, shards=1, slices=slices, budget=1, layers=4, epochs=1.0)
    assert plan is not None
    return plan.stages


@pytest.mark.parametrize("method", ["s3t", "sequential", "sisa-full"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_and_kind_has_the_same_bits(family: str, method: str) -> None:
    backbone = base(family)
    outcomes = both(backbone, stages_of(method, 2), encoded(backbone, 9), RECIPE)
    assert apart(outcomes) == []
    assert not torch.equal(outcomes[0][1].head["weight"], outcomes[1][1].head["weight"])


def recipes() -> st.SearchStrategy[Recipe]:
    return st.builds(
        Recipe,
        rank=st.sampled_from([1, 2, 4]),
        alpha=st.sampled_from([0.5, 3.0, 16.0]),
        dropout=st.sampled_from([0.0, 0.1, 0.5]),
        rslora=st.booleans(),
        dora=st.booleans(),
        targets=st.sampled_from([(), ("query",), ("value", "key")]),
        epochs=st.sampled_from([0.3, 0.5, 1.0, 1.4, 2.0]),
        batch_size=st.integers(1, 7),
        lr=st.sampled_from([0.0, 1e-3, 2e-2]),
        head_lr=st.sampled_from([1e-3, 1e-1]),
        weight_decay=st.sampled_from([0.0, 0.01, 0.5]),
        warmup=st.sampled_from([0.0, 0.06, 0.5, 1.0]),
        clip=st.sampled_from([1e-3, 1.0, 1e6]),
        window=st.sampled_from([1, 3]),
    )


METHODS = st.sampled_from(["s3t", "sequential", "sisa-lora", "sisa-full", "retrain-lora", "retrain-full"])


def check_recipe(method: str, slices: int, count: int, recipe: Recipe, seed: int) -> None:
    backbone = base("bert")
    assert apart(both(backbone, stages_of(method, slices), encoded(backbone, count), recipe, seed)) == []


ARGUMENTS: dict[str, Any] = {
    "method": METHODS,
    "slices": st.integers(1, 3),
    "count": st.integers(0, 12),
    "recipe": recipes(),
    "seed": st.integers(0, 2**63 - 100),
}
QUIET: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=12, derandomize=True, **QUIET)
@given(**ARGUMENTS)
def test_drawn_recipes_have_the_same_bits(method: str, slices: int, count: int, recipe: Recipe, seed: int) -> None:
    check_recipe(method, slices, count, recipe, seed)


@pytest.mark.slow
@settings(max_examples=300, **QUIET)
@given(**ARGUMENTS)
def test_many_drawn_recipes_have_the_same_bits(method: str, slices: int, count: int, recipe: Recipe, seed: int) -> None:
    check_recipe(method, slices, count, recipe, seed)


def test_without_rows_no_step_is_taken_and_the_tensors_are_as_initialised() -> None:
    backbone = base("bert")
    ((one, two),) = both(backbone, stages_of("s3t", 1), [], RECIPE)
    assert apart([(one, two)]) == []
    assert (two.optimizer_steps, two.record_passes, two.layer_passes) == (0, 0, 0)
    assert all(not tensor.any() for name, tensor in two.adapter.items() if "lora_B" in name)
    assert not two.head["bias"].any()


def test_scores_have_the_same_bits() -> None:
    backbone = base("bert")
    for method in ("s3t", "sequential", "sisa-full"):
        stages = stages_of(method, 2)
        outcomes = both(backbone, stages, encoded(backbone, 6), RECIPE)
        adapters = {stage.adapter: two.adapter for stage, (_, two) in zip(stages, outcomes, strict=True)}
        head = outcomes[-1][1].head
        asked = [row.encoded for row in encoded(backbone, 70)]
        model = ChainModel(backbone, stages, RECIPE, 3)  # type: ignore[arg-type]
        model.mount(ModelState(adapters, head))
        found = kernel.score_slowly(backbone, stages, kernel.State(adapters, head), asked, RECIPE, 3)
        assert compare_tensors({"": blocks.score(model, asked)}, {"": found}) == []


def test_the_oracle_shares_no_tensor_with_the_base_model_and_leaves_no_trace() -> None:
    backbone = base("bert")
    before, state = tensors_digest(backbone.model.state_dict()), torch.random.get_rng_state()
    for method in ("s3t", "sisa-full"):
        ((_, two),) = both(backbone, stages_of(method, 1), encoded(backbone, 5), RECIPE)
        addresses = {tensor.data_ptr() for tensor in backbone.model.state_dict().values()}
        assert not addresses & {tensor.data_ptr() for tensor in {**two.adapter, **two.head}.values()}
        assert not any(tensor.requires_grad for tensor in {**two.adapter, **two.head}.values())
    assert tensors_digest(backbone.model.state_dict()) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_not_finite_stops_the_oracle_unless_it_is_told_to_go_on() -> None:
    backbone = base("bert")
    stages, rows, recipe = stages_of("s3t", 1), encoded(backbone, 4), dataclasses.replace(RECIPE, head_lr=10.0)
    poisoned = kernel.State({}, {"weight": torch.full((3, 16), math.nan), "bias": torch.zeros(3)})
    mine = [kernel.Row(row.encoded, row.label) for row in rows]
    task = kernel.Task(stages, poisoned, mine, [[0, 1], [2]], recipe, kernel.Seeds(1, 2, 3), 3)
    with pytest.raises(S3TError, match=r"training diverged at step 0 \(gradient norm nan\); lower lr="):
        kernel.train_node_slowly(backbone, task)
    allowed = dataclasses.replace(task, finite=False)
    assert kernel.train_node_slowly(backbone, allowed).head["weight"].isnan().all()


def test_the_oracle_follows_the_same_version_of_the_rules() -> None:
    assert kernel.KERNEL == training.KERNEL


# ---- what the comparison must notice: the kernel altered, one rule at a time ----

Plant = Callable[[pytest.MonkeyPatch], None]


def _optimizer(**changes: Any) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        real = torch.optim.AdamW
        patch.setattr(training.torch.optim, "AdamW", lambda groups, **given_: real(groups, **(given_ | changes)))

    return plant


def _schedule(share: Callable[[int, int, float], float]) -> Plant:
    return lambda patch: patch.setattr(training, "schedule", share)


def _no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(1.0))


def _summed_loss(patch: pytest.MonkeyPatch) -> None:
    real = nn.functional.cross_entropy
    patch.setattr(training.nn.functional, "cross_entropy", lambda x, y: real(x, y, reduction="sum"))


def _padded_further(patch: pytest.MonkeyPatch) -> None:
    real = Backbone.collate

    def collate(self: Backbone, rows: Any) -> Any:
        batch = real(self, rows)
        return {name: nn.functional.pad(tensor, (0, 3), value=0) for name, tensor in batch.items()}

    patch.setattr(Backbone, "collate", collate)


def _first_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(backbones, "pooled", lambda model, batch, pooling: model(**batch).last_hidden_state[:, 0])


def _all_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(backbones, "pooled", lambda model, batch, pooling: model(**batch).last_hidden_state.mean(1))


def _no_dropout(patch: pytest.MonkeyPatch) -> None:
    real = blocks.adapter_config
    patch.setattr(blocks, "adapter_config", lambda s, b, r: real(s, b, dataclasses.replace(r, dropout=0.0)))


def _base_dropout(patch: pytest.MonkeyPatch) -> None:
    real = training._run

    def run(model: ChainModel, *rest: Any) -> None:
        model.body.train()
        real(model, *rest)

    patch.setattr(training, "_run", run)


def _dropout_from_elsewhere(patch: pytest.MonkeyPatch) -> None:
    real = training._run

    def run(*rest: Any) -> None:
        torch.rand(1)
        real(*rest)

    patch.setattr(training, "_run", run)


def _scaling(patch: pytest.MonkeyPatch) -> None:
    real = blocks.adapter_config
    patch.setattr(blocks, "adapter_config", lambda s, b, r: real(s, b, dataclasses.replace(r, rslora=not r.rslora)))


def _other_start(patch: pytest.MonkeyPatch) -> None:
    real = ChainModel.initialise
    patch.setattr(ChainModel, "initialise", lambda self, name, seed: real(self, name, seed + 1))


def _other_head(patch: pytest.MonkeyPatch) -> None:
    real = ChainModel.initialise_head
    patch.setattr(ChainModel, "initialise_head", lambda self, seed: real(self, seed + 1))


def _start_again(patch: pytest.MonkeyPatch) -> None:
    real = ChainModel.mount

    def mount(self: ChainModel, state: ModelState) -> None:
        real(self, state)
        for name in state.adapters:
            self.initialise(name, 1)

    patch.setattr(ChainModel, "mount", mount)


def _head_dropped(patch: pytest.MonkeyPatch) -> None:
    real = ChainModel.mount

    def mount(self: ChainModel, state: ModelState) -> None:
        real(self, state)
        self.initialise_head(3)

    patch.setattr(ChainModel, "mount", mount)


KERNEL_FAULTS: dict[str, Plant] = {
    "no weight decay": _optimizer(weight_decay=0.0),
    "other betas": _optimizer(betas=(0.9, 0.99)),
    "other epsilon": _optimizer(eps=1e-6),
    "AMSGrad": _optimizer(amsgrad=True),
    "constant learning rate": _schedule(lambda step, steps, warmup: 1.0),
    "warm-up off by one": _schedule(
        lambda step, steps, warmup: (
            step / max(1, math.ceil(warmup * steps)) if step < math.ceil(warmup * steps) else 1 - step / steps
        )
    ),
    "no clipping": _no_clip,
    "summed loss": _summed_loss,
    "padding beyond the longest row": _padded_further,
    "first token pooled": _first_token,
    "padding pooled": _all_tokens,
    "no dropout": _no_dropout,
    "dropout of the base model active": _base_dropout,
    "dropout drawn from a used generator": _dropout_from_elsewhere,
    "other scaling of the update": _scaling,
    "other start of the adapter": _other_start,
    "other start of the head": _other_head,
    "the parent's adapters forgotten": _start_again,
    "the parent's head forgotten": _head_dropped,
}


@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_the_comparison_notices(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = base("bert")
    stages, rows = stages_of("s3t", 2), encoded(backbone, 9)
    recipe = dataclasses.replace(RECIPE, weight_decay=0.1, alpha=64.0, lr=5e-2)
    expected = slow(backbone, stages, rows, recipe)
    assert apart(list(zip(fast(backbone, stages, rows, recipe), expected, strict=True))) == []
    KERNEL_FAULTS[fault](monkeypatch)
    assert apart(list(zip(fast(backbone, stages, rows, recipe), expected, strict=True))) != []


def test_the_suites_own_tiny_model_has_the_same_bits() -> None:
    backbone = backbones.load("tiny", torch.device("cpu"))
    plan = documented_plan("s3t", shards=1, slices=3, budget=1, layers=6, epochs=1.0)
    assert plan is not None
    assert apart(both(backbone, plan.stages, encoded(backbone, 12), RECIPE)) == []
