"""The stock pipeline: exactly the intended tensors train, its steps are the reference kernel's, its counts the planner's."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from baselines.methods import make_plan
from baselines.stock.images import Images, Preprocess, image_base
from baselines.stock.model import Base, Classifier, load_chain
from baselines.stock.options import Options
from baselines.stock.text import partition, text_base, text_examples
from baselines.stock.training import Fitted, fit, scores, train_stage
from baselines.stock.tune import Trial, Tuned, grid, tune
from s3t.backbone import Backbone
from s3t.blocks import ChainModel, ModelState
from s3t.errors import DataError, LayoutError, ModelError, RecipeError
from s3t.partition import slot
from s3t.plan import s3t_plan
from s3t.planner.work import upfront
from s3t.records import Layout, Recipe, Record
from s3t.training import Row, Seeds, Task, train_node

KEY = bytes(range(32))
LAYOUT = Layout(2, 2, 2)
RECIPE = Recipe(rank=2, batch_size=4, epochs=2, lr=5e-3, head_lr=1e-2)
PLAN = s3t_plan(LAYOUT, RECIPE, 6)
PER_SLOT = 5


def _balanced(layout: Layout, each: int) -> list[Record]:
    """As many records as slots times ``each``, so that every slot has the mean number."""
    room = dict.fromkeys(((s, p) for s in range(layout.shards) for p in range(layout.slices)), each)
    out: list[Record] = []
    for number in range(10_000):
        record = Record(f"row-{number}", {"text": f"the cat {'sat ' * (number % 4)}on number {number}"}, number % 3)
        place = slot(KEY, record.id, layout)
        if room[place]:
            room[place] -= 1
            out.append(record)
    assert not any(room.values())
    return out


RECORDS = _balanced(LAYOUT, PER_SLOT)


@pytest.fixture(scope="module")
def base(tiny: Backbone) -> Base:
    return text_base(tiny)


@pytest.fixture(scope="module")
def examples(tiny: Backbone) -> list[dict[str, Any]]:
    return text_examples(tiny, RECORDS, RECIPE)


@pytest.fixture(scope="module")
def fitted(base: Base, examples: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    slots = partition(KEY, RECORDS, LAYOUT)
    return fit(base, PLAN, RECIPE, examples, slots, 3, tmp_path_factory.mktemp("stock"))


def _bits(model: Classifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _moved(model: Classifier, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    "options",
    [Options(), Options("bfloat16", True), Options("bfloat16", half_base=True, attention="eager")],
    ids=lambda o: o.name,
)
def test_each_stage_trains_its_block_and_the_head_alone(
    base: Base, examples: list[dict[str, Any]], tmp_path: Path, options: Options
) -> None:
    model = Classifier(base.prepared(options), RECIPE, 3)
    frozen = copy.deepcopy(base.model.state_dict())
    for stage in PLAN.stages:
        model.grow(stage)
        before = _bits(model)
        learning = {name for name, p in model.named_parameters() if p.requires_grad}
        train_stage(model, examples, range(len(examples)), RECIPE, tmp_path, options, 1)
        own = {name for name in before if f".{stage.adapter}." in name or name.startswith("head.")}
        assert _moved(model, before) == learning == own
        assert len(own) == 3 * 2 * 2 + 2  # three layers, query and value, A and B; the head's weight and bias
        kinds = {name: tensor.dtype for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        assert {kinds[name] for name in own} == {torch.float32}
        half = {kinds[name] for name in kinds if ".lora_" not in name and not name.startswith("head.")}
        assert half == {torch.bfloat16 if options.half_base else torch.float32}
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in base.model.state_dict().items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("epochs", [1, 5])
def test_steps_on_one_batch_are_the_reference_kernels(
    tiny: Backbone, base: Base, examples: list[dict[str, Any]], tmp_path: Path, epochs: int
) -> None:
    """All rows in one batch: the order of rows within it is free, so both losses agree to the rounding of float32."""
    recipe = dataclasses.replace(RECIPE, batch_size=len(RECORDS), epochs=epochs, warmup=0.4)
    rows = [Row(e, r.label) for e, r in zip(tiny.encode([r.inputs for r in RECORDS], 128), RECORDS, strict=True)]
    ours: ModelState | None = None
    theirs = Classifier(base, recipe, 3)
    for number, stage in enumerate(PLAN.stages):
        depth, seeds = number + 1, Seeds(10 + number, 3, 0)
        start = train_node(tiny, Task(PLAN.stages[:depth], ours, [], [], recipe, seeds, 3))
        batches = [list(range(len(rows)))] * epochs
        end = train_node(tiny, Task(PLAN.stages[:depth], ours, rows, batches, recipe, seeds, 3))
        theirs.grow(stage)
        _copy_adapter(start.adapter, theirs)
        theirs.head.load_state_dict(start.head)
        loss = _loss(theirs, examples)
        assert train_stage(theirs, examples, range(len(examples)), recipe, tmp_path, Options(), 7) == epochs
        ours = ModelState({**(ours.adapters if ours else {}), stage.adapter: end.adapter}, end.head)
        reference = ChainModel(tiny, PLAN.stages[:depth], recipe, 3)
        reference.mount(ours)
        wanted = _loss(reference_of(reference), examples)
        assert _loss(theirs, examples) == pytest.approx(wanted, rel=1e-5)
        assert abs(loss - wanted) > 1e-3, "the steps moved nothing, so that agreement shows nothing"
        for name, tensor in end.head.items():
            torch.testing.assert_close(theirs.head.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def reference_of(model: ChainModel) -> Callable[..., dict[str, Tensor]]:
    return lambda **batch: {"logits": model({k: v for k, v in batch.items() if k != "labels"})}


def _copy_adapter(tensors: dict[str, Tensor], model: Classifier) -> None:
    own = {name: p for name, p in model.body.named_parameters() if f".{model.stages[-1].adapter}." in name}
    assert len(own) == len(tensors)
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name.replace(f".{model.stages[-1].adapter}.", ".")])


def _loss(model: Callable[..., dict[str, Tensor]], examples: list[dict[str, Any]]) -> float:
    words = max(len(e["input_ids"]) for e in examples)
    pad = {name: [e[name] + [0] * (words - len(e[name])) for e in examples] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**{name: torch.tensor(rows) for name, rows in pad.items()})["logits"]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor([e["labels"] for e in examples])))


def test_counts_are_the_planners(fitted: Fitted) -> None:
    work = upfront(PLAN, len(RECORDS), 6)
    assert sum(len(chain.stages) for chain in fitted.chains) == work.nodes
    assert fitted.records == work.record_passes == LAYOUT.shards * 2 * 2 * (PER_SLOT + 2 * PER_SLOT)
    assert fitted.layer_passes == work.layer_passes
    assert fitted.steps == 2 * 2 * 2 * (2 + 3)  # shards, orders, epochs; 5 rows make 2 batches of 4, 10 make 3


def test_dropping_blocks_leaves_what_a_fresh_load_of_the_prefix_serves(
    fitted: Fitted, base: Base, examples: list[dict[str, Any]]
) -> None:
    chain = fitted.chains[0]
    whole = scores(fitted.model(chain, 2), examples)
    cut = scores(fitted.model(chain, 1), examples)
    one = load_chain(base, RECIPE, 3, PLAN.stages[:1], [chain.stages[0].folder])
    assert np.array_equal(cut, scores(one, examples))
    assert not np.array_equal(cut, whole)
    assert {p.requires_grad for p in one.parameters()} == {False}


def test_earlier_blocks_stay_active_and_bitwise_as_saved(fitted: Fitted) -> None:
    chain = fitted.chains[0]
    first, both = (fitted.model(chain, length).state_dict() for length in (1, 2))
    blocks = {name for name in first if ".block-00." in name}
    assert blocks and all(torch.equal(first[name], both[name]) for name in blocks)
    assert any(both[name].any() for name in blocks if "lora_B" in name), "a re-wrapped model would have zeros here"


@pytest.mark.parametrize(
    ("hit", "expected"),
    [
        (set(), {0: (0, 2), 1: (0, 2)}),
        ({(0, 1)}, {0: (0, 1), 1: (0, 2)}),
        ({(0, 0)}, {0: (1, 1), 1: (0, 2)}),
        ({(0, 0), (0, 1), (1, 0)}, {1: (1, 1)}),
    ],
)
def test_the_longest_chain_of_the_lowest_order_serves(fitted: Fitted, hit: Any, expected: Any) -> None:
    assert {s: (chain.index, length) for s, (chain, length) in fitted.serving(hit).items()} == expected


def test_the_ensemble_is_the_mean_of_the_live_shards(fitted: Fitted, examples: list[dict[str, Any]]) -> None:
    hit = {(0, 1), (1, 0)}
    parts = [scores(fitted.model(*fitted.serving(hit)[shard]), examples) for shard in (0, 1)]
    np.testing.assert_allclose(fitted.predict(examples, hit), np.mean(parts, axis=0), atol=1e-6)
    assert np.array_equal(
        fitted.predict(examples, {(0, 0), (0, 1), (1, 1)}), scores(fitted.model(fitted.chains[2], 1), examples)
    )
    with pytest.raises(LayoutError, match="every shard is dead"):
        fitted.predict(examples, {(s, p) for s in (0, 1) for p in (0, 1)})


def test_the_same_seed_gives_the_same_bits_and_global_state_is_left_alone(
    base: Base, examples: list[dict[str, Any]], tmp_path: Path
) -> None:
    plan = s3t_plan(Layout(1, 1, 1), RECIPE, 6)
    torch.manual_seed(5)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1]
    first, again, other = (
        fit(base, plan, RECIPE, examples, {(0, 0): range(8)}, 3, tmp_path / str(i), seed=seed).predict(examples)
        for i, seed in enumerate((0, 0, 1))
    )
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1]
    assert torch.equal(before[0], after[0]) and before[1] == after[1] and np.array_equal(before[2], after[2])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_bfloat16_base_predicts_nearly_the_same(base: Base, examples: list[dict[str, Any]], tmp_path: Path) -> None:
    plan, slots = s3t_plan(Layout(1, 1, 1), RECIPE, 6), {(0, 0): range(8)}
    options = (Options(), Options("bfloat16", half_base=True))
    found = [
        fit(base, plan, RECIPE, examples, slots, 3, tmp_path / o.name, options=o).predict(examples) for o in options
    ]
    assert 0 < np.abs(found[0] - found[1]).max() < 0.1 * np.abs(found[0]).max()


@pytest.mark.parametrize("had", ["sdpa", "eager"])
@pytest.mark.parametrize("asked", ["sdpa", "eager"])
def test_attention_is_what_the_options_say(tiny: Backbone, had: str, asked: Any) -> None:
    given = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model))
    given.model.set_attn_implementation(had)  # S3T's reference engine takes the eager one on a GPU
    prepared: Any = text_base(given).prepared(Options(attention=asked)).model
    assert prepared.config._attn_implementation == asked
    assert given.model.config._attn_implementation == had  # type: ignore[union-attr]
    assert (prepared is given.model) == (had == asked)
    half: Any = text_base(given).prepared(Options("bfloat16", half_base=True, attention=asked)).model
    assert (half.config._attn_implementation, half.dtype) == (asked, torch.bfloat16)


def test_an_empty_slice_trains_nothing(base: Base, examples: list[dict[str, Any]], tmp_path: Path) -> None:
    plan = s3t_plan(Layout(1, 2, 1), RECIPE, 6)
    done = fit(base, plan, RECIPE, examples, {(0, 1): [0, 1, 2]}, 3, tmp_path)
    assert [stage.records for stage in done.chains[0].stages] == [0, 6]
    assert done.predict(examples).shape == (len(examples), 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"precision": "bfloat1"},
            r"precision='bfloat1' is unknown \(did you mean 'bfloat16'\?\); choose from float32, bfloat16",
        ),
        ({"attention": "flash"}, "attention='flash' is unknown; choose from sdpa, eager"),
        ({"workers": -1}, "workers=-1 is not possible"),
        ({"half_base": True}, "half_base=True needs precision='bfloat16', not 'float32'"),
        ({"batch_size": 0}, "batch_size=0 is not possible: give a whole number of at least 1"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Options(**wrong)


def test_wrong_plans_and_slots_are_refused(base: Base, examples: list[dict[str, Any]], tmp_path: Path) -> None:
    slots = partition(KEY, RECORDS, LAYOUT)
    with pytest.raises(LayoutError, match=r"slot \(1, 0\) is not in a layout of 1 shards of 2 slices"):
        fit(base, s3t_plan(Layout(1, 2, 1), RECIPE, 6), RECIPE, examples, slots, 3, tmp_path)
    with pytest.raises(LayoutError, match=r"layer 11 is not in this model; its layers are 0\.\.5"):
        fit(base, s3t_plan(LAYOUT, RECIPE, 12), RECIPE, examples, slots, 3, tmp_path)
    with pytest.raises(LayoutError, match="trains a LoRA block per stage, not the stages of 'sequential'"):
        fit(base, make_plan("sequential", LAYOUT, RECIPE, 6), RECIPE, examples, slots, 3, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tuning_takes_the_fastest_of_the_same_schedule(base: Base, examples: list[dict[str, Any]]) -> None:
    options = (Options(), Options(batch_size=8))
    one = s3t_plan(Layout(1, 1, 1), RECIPE, 6)
    found = tune(base, one, RECIPE, examples, 3, options=options, records=8, rounds=2)
    assert isinstance(found, Tuned) and found.options == Options()
    assert {trial.options: trial.same_schedule for trial in found.trials} == {options[0]: True, options[1]: False}
    assert all(len(trial.records_per_second) == 2 and trial.best > 0 for trial in found.trials)
    assert [t.best for t in found.trials] == sorted((t.best for t in found.trials), reverse=True)
    with pytest.raises(DataError, match="none of the 1 combinations has the recipe's batches of 4"):
        tune(base, one, RECIPE, examples, 3, options=options[1:], records=4, rounds=1)
    with pytest.raises(DataError, match="tuning on 0 rows"):
        tune(base, one, RECIPE, [], 3)
    assert Trial(Options(), (1.0, 3.0), True).best == 3.0


def test_the_grid_covers_every_combination() -> None:
    found = grid(RECIPE)
    assert len(found) == len(set(found)) == 3 * 2 * 2 * 2 + 3 * 2 * 2
    assert {o.batch_size for o in found} == {None, 8}
    assert not any(o.group_by_length for o in grid(RECIPE, by_length=False))


# ---- images ----


@pytest.fixture(scope="module")
def vision() -> Base:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return image_base(ViTForImageClassification(config))


def _images(count: int, transform: Any) -> Images:
    draw = np.random.default_rng(3)
    arrays = [draw.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(count)]
    images = [Image.fromarray(array) if i % 2 else array for i, array in enumerate(arrays)]
    return Images(images, [i % 2 for i in range(count)], transform)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_train_through_the_same_pipeline(vision: Base, tmp_path: Path, workers: int) -> None:
    plan = s3t_plan(Layout(1, 2, 1), RECIPE, vision.depth)
    images = _images(16, Preprocess(16))
    slots = {(0, 0): range(8), (0, 1): range(8, 16)}
    done = fit(vision, plan, RECIPE, images, slots, 2, tmp_path, options=Options(workers=workers))
    work = upfront(plan, 16, 4)
    assert (done.records, done.layer_passes) == (work.record_passes, work.layer_passes)
    unflipped = _images(16, Preprocess(16, flip=0.0))
    assert done.predict(unflipped).shape == (16, 2)
    assert np.array_equal(done.predict(unflipped), done.predict(unflipped))


def test_preprocessing_resizes_flips_and_normalises() -> None:
    array = np.zeros((4, 4, 3), dtype=np.uint8)
    array[:, :2] = 255
    straight, flipped = (Preprocess(8, flip=f)(Image.fromarray(array)) for f in (0.0, 1.0))
    assert straight.shape == (3, 8, 8) and straight.dtype == torch.float32
    assert torch.equal(straight.flip(2), flipped)
    assert float(straight.max()) == 1.0 and float(straight.min()) == -1.0
    assert torch.equal(
        Preprocess(4, (0.0,) * 3, (1.0,) * 3, flip=0.0)(Image.fromarray(array))[0, 0], torch.tensor([1.0, 1, 0, 0])
    )


def test_wrong_images_are_refused(vision: Base, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 images do not fit 1 labels"):
        Images([np.zeros((2, 2, 3), np.uint8)] * 2, [0], Preprocess(4))
    with pytest.raises(DataError, match="image 0 is a ndarray; give PIL images or uint8 arrays"):
        Images([np.zeros((2, 2, 3), np.float32)], [0], Preprocess(4))  # type: ignore[list-item]
    with pytest.raises(DataError, match="size=0"):
        Preprocess(0)
    with pytest.raises(ModelError, match="a Linear is not a vision transformer"):
        image_base(torch.nn.Linear(2, 2))
    plan = s3t_plan(Layout(1, 1, 1), RECIPE, 4)
    with pytest.raises(RecipeError, match="asks for examples with token ids"):
        fit(vision, plan, RECIPE, [], {}, 2, tmp_path, options=Options(group_by_length=True))
