"""The fast kernel: tied to the reference by a stated tolerance, and a function of its node alone, bit for bit."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import deterministic

from baselines.plans import sequential
from s3t import training
from s3t.backbone import Backbone, load
from s3t.blocks import ChainModel, ModelState, score
from s3t.digests import tensors_digest
from s3t.engine import fast as fast_engine
from s3t.engine.activations import Activations
from s3t.engine.encoder import LEAN, Encoder
from s3t.engine.ensemble import FastChain, score_together
from s3t.engine.fast import train_node_fast
from s3t.errors import IsolationError, S3TError
from s3t.plan import Plan, Stage, s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Row, Seeds, Task, Trained, train_node

RECIPE = Recipe(rank=2, batch_size=4, lr=5e-3, warmup=0.3)
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [9, 0, 5, 2], [1]]
PRECISIONS = ("float32", "bfloat16")
GRADIENT = {"float32": 1e-4, "bfloat16": 0.1}
"""Tolerance of a gradient: largest difference over its largest value."""
LOGITS = {"float32": 1e-3, "bfloat16": 5e-2}
"""Tolerance of a trained chain's logits, likewise, after five steps of each stage. What Adam makes of gradients near zero
depends on their sign, so tensors may differ where what they compute does not."""


def rows_of(backbone: Backbone, count: int = 10) -> list[Row]:
    texts = [{"text": f"the cat {'sat ' * (i % 4)}on number {i}"} for i in range(count)]
    return [Row(encoded, i % 3, i % 3) for i, encoded in enumerate(backbone.encode(texts, 32))]


@pytest.fixture(scope="module")
def rows(tiny: Backbone) -> list[Row]:
    return rows_of(tiny)


def chain(
    train: Callable[..., Trained], backbone: Backbone, rows: Sequence[Row], plan: Plan, recipe: Recipe, **how: Any
) -> tuple[list[Trained], ModelState]:
    out: list[Trained] = []
    state: ModelState | None = None
    for depth, stage in enumerate(plan.stages, start=1):
        seeds = Seeds(depth, 10 + depth, 20 + depth)
        out.append(train(backbone, Task(plan.stages[:depth], state, rows, BATCHES, recipe, seeds, 3), **how))
        state = ModelState({**(state.adapters if state else {}), stage.adapter: out[-1].adapter}, out[-1].head)
    assert state is not None
    return out, state


def bits(trained: Sequence[Trained]) -> list[str]:
    return [tensors_digest({**t.adapter, **t.head}) for t in trained]


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "all targets": {"targets": ("key", "dense")},
    "dropout": {"dropout": 0.1},
}


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        *(("float32", name) for name in CHANGES),
        *(
            ("bfloat16", name) for name in CHANGES if name != "dropout"
        ),  # its masks are drawn for other numbers of bytes
    ],
)
def test_one_gradient_is_the_references(
    tiny: Backbone, rows: list[Row], precision: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first gradient of every stage, before clipping, from the same parent; with dropout in the same masks."""
    recipe = dataclasses.replace(RECIPE, **CHANGES[name])
    plan = s3t_plan(Layout(1, 3, 1), recipe, 6)
    _, state = chain(train_node, tiny, rows, plan, dataclasses.replace(recipe, dropout=0.0))
    seen: list[list[Tensor]] = []
    clip = nn.utils.clip_grad_norm_

    def watched(parameters: Any, *rest: Any, **more: Any) -> Tensor:
        seen.append([p.grad.clone() for p in parameters])
        return clip(parameters, *rest, **more)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    for depth in (1, 2, 3):
        kept = {stage.adapter: state.adapters[stage.adapter] for stage in plan.stages[: depth - 1]}
        parent = ModelState(kept, state.head) if depth > 1 else None
        task = Task(plan.stages[:depth], parent, rows, BATCHES[:1], recipe, Seeds(1, 2, 3), 3)
        train_node(tiny, task)
        train_node_fast(tiny, task, precision=precision)
        theirs, ours = seen
        seen.clear()
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert other.abs().max() == mine.abs().max() == 0 or apart(mine, other) < GRADIENT[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", [*sorted(LEAN), "llama"])
def test_trained_chains_compute_what_the_references_do(family: str, precision: Any) -> None:
    backbone = load(f"tiny-{family}", torch.device("cpu"))
    rows = rows_of(backbone)
    for plan in (s3t_plan(Layout(1, 2, 1), RECIPE, 4), sequential(Layout(1, 2, 1), RECIPE, 4)):
        _, theirs = chain(train_node, backbone, rows, plan, RECIPE)
        _, ours = chain(train_node_fast, backbone, rows, plan, RECIPE, precision=precision)
        model = ChainModel(backbone, plan.stages, RECIPE, 3)
        model.mount(theirs)
        asked = [row.encoded for row in rows]
        mine = score_together({0: FastChain(backbone, plan.stages, ours, RECIPE, precision)}, asked)[0]
        assert apart(mine, score(model, asked)) < LOGITS[precision]
        model.mount(ours)  # and what one engine has trained, the other can serve
        assert apart(mine, score(model, asked)) < LOGITS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_node_is_a_function_of_itself(tiny: Backbone, rows: list[Row], precision: Any, tmp_path: Any) -> None:
    """The same bits again, with activations kept, in files, or computed anew; other bits from another row."""
    plan = s3t_plan(Layout(1, 3, 1), RECIPE, 6)
    first, _ = chain(train_node_fast, tiny, rows, plan, RECIPE, precision=precision)

    def with_cache(cache: Activations) -> list[str]:
        def keep(piece: int, depth: int, make: Any) -> Any:
            return cache.get(str(piece), depth, lambda: make([0, 2, 4]))

        return bits(chain(train_node_fast, tiny, rows, plan, RECIPE, precision=precision, keep=keep)[0])

    in_memory, in_files = Activations(10**9), Activations(0, tmp_path / "files")
    assert with_cache(in_memory) == with_cache(in_files) == bits(first)
    assert in_memory.computed == in_files.computed == 3
    assert in_files.spilled > 0
    in_files.close()
    assert bits(chain(train_node_fast, load("tiny"), rows, plan, RECIPE, precision=precision)[0]) == bits(first)
    other = [dataclasses.replace(rows[0], label=2), *rows[1:]]
    assert not set(bits(chain(train_node_fast, tiny, other, plan, RECIPE, precision=precision)[0])) & set(bits(first))


def test_work_is_counted_as_it_is_done(tiny: Backbone, rows: list[Row]) -> None:
    plan = s3t_plan(Layout(1, 3, 1), RECIPE, 6)
    visits = sum(map(len, BATCHES))
    alone, _ = chain(train_node_fast, tiny, rows, plan, RECIPE, precision="float32")
    assert [t.layer_passes for t in alone] == [visits * (above + above) + 10 * (6 - above) for above in (2, 4, 6)]
    cache = Activations(10**9)

    def keep(piece: int, depth: int, make: Any) -> Any:
        return cache.get(str(piece), depth, lambda: make([0, 2, 4]))

    kept, _ = chain(train_node_fast, tiny, rows, plan, RECIPE, precision="float32", keep=keep)
    assert [t.layer_passes for t in kept] == [visits * 4 + 10 * 4, visits * 8, visits * 12]
    assert {(t.record_passes, t.optimizer_steps) for t in kept} == {(visits, 5)}


def test_nothing_frozen_changes(tiny: Backbone, rows: list[Row]) -> None:
    plan = s3t_plan(Layout(1, 3, 1), RECIPE, 6)
    encoder = Encoder.of(tiny, "bfloat16")

    def everything() -> str:
        lean = {f"{i}.{j}": t for i, layer in enumerate(encoder.layers) for j, t in enumerate(layer.tensors())}
        return tensors_digest({**{f"model.{k}": v for k, v in tiny.model.state_dict().items()}, **lean})

    before = everything()
    _, state = chain(train_node_fast, tiny, rows, plan, RECIPE, precision="bfloat16")
    parents = tensors_digest({f"{a}.{k}": v for a, named in state.adapters.items() for k, v in named.items()})
    parent = ModelState(dict(state.adapters), state.head)
    train_node_fast(tiny, Task(plan.stages, parent, rows, BATCHES, RECIPE, Seeds(1, 2, 3), 3), precision="bfloat16")
    assert everything() == before
    assert parents == tensors_digest({f"{a}.{k}": v for a, named in state.adapters.items() for k, v in named.items()})


def test_a_frozen_tensor_that_changes_is_noticed(
    tiny: Backbone, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = dataclasses.replace(tiny)
    real = fast_engine._run

    def planted(node: Any, graphs: bool) -> Any:
        node.layers[0].norm1.bias.add_(1.0)
        return real(node, graphs)

    monkeypatch.setattr(fast_engine, "_run", planted)
    stages = s3t_plan(Layout(1, 3, 1), RECIPE, 6).stages[:1]
    with pytest.raises(IsolationError, match="changed a frozen tensor"):
        train_node_fast(fresh, Task(stages, None, rows, BATCHES, RECIPE, Seeds(1, 2, 3), 3), precision="float32")


def test_an_adapter_that_does_not_fit(tiny: Backbone, rows: list[Row]) -> None:
    plan = s3t_plan(Layout(1, 3, 1), RECIPE, 6)
    done, state = chain(train_node_fast, tiny, rows, plan, RECIPE, precision="float32")
    first = dict(state.adapters["block-00"])
    lost = sorted(first)[0]
    for broken in ({k: v for k, v in first.items() if k != lost}, first | {lost: torch.zeros(3, 3)}):
        parent = ModelState({"block-00": broken}, done[0].head)
        with pytest.raises(IsolationError, match=f"'block-00' does not fit: tensor '{lost}'"):
            train_node_fast(
                tiny, Task(plan.stages[:2], parent, rows, [], RECIPE, Seeds(1, 2, 3), 3), precision="float32"
            )
        with pytest.raises(IsolationError, match="does not fit"):
            FastChain(tiny, plan.stages[:1], parent, RECIPE, "float32")


def test_divergence_is_one_clear_error(tiny: Backbone, rows: list[Row]) -> None:
    stages = s3t_plan(Layout(1, 3, 1), RECIPE, 6).stages[:1]
    poisoned = ModelState({}, {"weight": torch.full((3, 32), float("nan")), "bias": torch.zeros(3)})
    task = Task(stages, poisoned, rows, BATCHES, RECIPE, Seeds(1, 2, 3), 3)
    with pytest.raises(S3TError, match=r"diverged at step 0 \(gradient norm nan\); lower lr=0.005"):
        train_node_fast(tiny, task, precision="float32")
    allowed = dataclasses.replace(task, finite=False)
    assert train_node_fast(tiny, allowed, precision="float32").head["weight"].isnan().any()


def test_a_node_without_batches_takes_no_step(tiny: Backbone) -> None:
    stages = s3t_plan(Layout(1, 3, 1), RECIPE, 6).stages[:1]
    task = Task(stages, None, [], [], RECIPE, Seeds(1, 2, 3), 3)
    assert bits([train_node_fast(tiny, task, precision="bfloat16")]) == bits([train_node(tiny, task)])


def test_full_fine_tuning_is_the_reference_kernels(tiny: Backbone, rows: list[Row]) -> None:
    stages = (Stage("full", "full", tuple(range(6)), 1.0),)
    task = Task(stages, None, rows, BATCHES[:2], RECIPE, Seeds(1, 2, 3), 3)
    assert bits([train_node_fast(tiny, task, precision="bfloat16")]) == bits([train_node(tiny, task)])


def test_the_schedule_is_shared() -> None:
    assert fast_engine.schedule is training.schedule


@pytest.mark.parametrize("train", [train_node, functools.partial(train_node_fast, precision="bfloat16")])
def test_nothing_reads_memory_that_it_did_not_write(
    tiny: Backbone, rows: list[Row], train: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch fills new memory with NaN under deterministic algorithms, which training here leaves out, for it takes long."""
    plan = s3t_plan(Layout(1, 3, 1), RECIPE, tiny.layers)
    assert deterministic.fill_uninitialized_memory
    plain = [tensors_digest(done.adapter | done.head) for done in chain(train, tiny, rows, plan, RECIPE)[0]]
    assert deterministic.fill_uninitialized_memory
    monkeypatch.setattr(training, "memory", types.SimpleNamespace(fill_uninitialized_memory=True))
    filled = [tensors_digest(done.adapter | done.head) for done in chain(train, tiny, rows, plan, RECIPE)[0]]
    assert plain == filled
