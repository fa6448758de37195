"""Replayed steps: the plain ones' bits where rates have them exactly, recorded only where it pays, a function of the node."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from s3t.backbone import Backbone
from s3t.digests import tensors_digest
from s3t.engine import steps
from s3t.engine.activations import Piece, gather
from s3t.engine.encoder import Encoder
from s3t.engine.fast import train_node_fast
from s3t.engine.steps import LEAST, repeated
from s3t.errors import RecipeError
from s3t.images import ImageBackbone
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Row, Seeds, Task, Trained

RECIPE = Recipe(rank=2, lr=2**-8, head_lr=2**-7, warmup=0.0)
"""Rates that float32 has exactly, and so has each of 16 equal parts of them."""
BATCHES = [*([[0, 1, 2, 3], [7, 6, 5, 4]] * 5), [0, 1], [2, 3, 4], [5, 6], [1, 7], [3, 0], [6, 2]]
PLAN = s3t_plan(Layout(1, 2, 1), RECIPE, 4)


def task_of(images: Sequence[Row], **changes: Any) -> Task:
    return Task(PLAN.stages[:1], None, images, BATCHES, dataclasses.replace(RECIPE, **changes), Seeds(1, 2, 3), 3)


def bits(trained: Trained) -> str:
    return tensors_digest({**trained.adapter, **trained.head})


def test_only_what_comes_often_is_recorded() -> None:
    assert repeated(BATCHES) == {4}
    assert repeated([[0]] * (LEAST - 1)) == frozenset()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_replayed_steps_train_what_plain_ones_do(
    vit: ImageBackbone, images: list[Row], precision: Any, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the recorded steps others are taken as they are; the order of all is kept."""
    taken: list[int] = []
    recorded = steps.Recorded.__call__

    def counted(self: Any, hidden: Any, answers: Any) -> Any:
        taken.append(len(hidden))
        return recorded(self, hidden, answers)

    monkeypatch.setattr(steps.Recorded, "__call__", counted)
    task = task_of(images, dropout=dropout)
    plain = train_node_fast(vit, task, precision=precision)
    assert not taken
    replayed = train_node_fast(vit, task, precision=precision, graphs=True)
    assert taken == [4] * 9
    assert bits(replayed) == bits(plain)
    assert replayed.optimizer_steps == plain.optimizer_steps == len(BATCHES)
    assert bits(train_node_fast(vit, task, precision=precision, graphs=True)) == bits(plain)


def test_rates_of_one_float32_make_other_bits(vit: ImageBackbone, images: list[Row]) -> None:
    """Why replayed steps are a kernel of their own."""
    plain, replayed = (
        train_node_fast(vit, task_of(images, lr=1e-3), precision="float32", graphs=graphs) for graphs in (False, True)
    )
    assert bits(replayed) != bits(plain)
    for name, tensor in plain.adapter.items():
        torch.testing.assert_close(replayed.adapter[name], tensor, rtol=1e-3, atol=1e-6)


def test_texts_differ_in_length(tiny: Backbone) -> None:
    with pytest.raises(RecipeError, match=r"engine=graphs needs records of one length.*those of a bert differ"):
        train_node_fast(tiny, task_of([]), precision="float32", graphs=True)


def test_rows_of_one_length_are_gathered_as_others_are() -> None:
    torch.manual_seed(0)
    alike = [Piece(torch.randn(3 * n, 4), tuple(range(0, 3 * n, 3)), (3,) * n) for n in (2, 5)]
    where = [(1, 4), (0, 1), (1, 0), (1, 3)]
    found, lengths = gather(alike, where)
    assert lengths == [3] * 4
    assert torch.equal(found, torch.stack([alike[piece].row(i) for piece, i in where]))
    mixed = Piece(torch.randn(5, 4), (0, 3), (3, 2))
    padded, lengths = gather([mixed], [(0, 1), (0, 0)])
    assert lengths == [2, 3] and torch.equal(padded[0, :2], mixed.row(1)) and not padded[0, 2].any()
    alone, _ = gather([mixed], [(0, 1), (0, 1)])
    assert torch.equal(alone, torch.stack([mixed.row(1)] * 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: a CUDA graph cannot be recorded")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cuda_graph_trains_what_its_steps_do(
    vit: ImageBackbone, images: list[Row], precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded and replayed on the device, against the same steps with nothing recorded; then all of it again."""
    device = torch.device("cuda")
    from s3t.images import image_backbone

    there = image_backbone(vit.model.to(device), "vit", device)
    task = task_of(images)
    found = [bits(train_node_fast(there, task, precision=precision, graphs=True)) for _ in range(2)]
    monkeypatch.setattr(steps, "repeated", lambda batches: frozenset())
    monkeypatch.setattr("s3t.engine.fast.repeated", lambda batches: frozenset())
    assert bits(train_node_fast(there, task, precision=precision, graphs=True)) == found[0] == found[1]
    assert Encoder.of(there, precision).one_length
