"""Groups of nodes: a node's bits whatever its company and place, the plain engine's numbers, and how builds fill groups."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from s3t import S3T
from s3t.backbone import Backbone, load
from s3t.blocks import ModelState
from s3t.building import Builder
from s3t.digests import tensors_digest
from s3t.engine import grouped
from s3t.engine.fast import train_node_fast
from s3t.engine.grouped import train_group
from s3t.engine.mode import GROUP
from s3t.errors import DivergedError, IsolationError, RecipeError
from s3t.images import ImageBackbone
from s3t.partition import slot
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.system import System
from s3t.training import Row, Seeds, Task, Trained
from verify.cli import main as verify

RECIPE = Recipe(rank=2, batch_size=4, warmup=0.1, targets=("q_proj", "v_proj", "fc1", "fc2"))
PLAN = s3t_plan(Layout(1, 2, 1), RECIPE, 4)
SIZES = ((4, 4, 3), (2,), (4, 1, 4, 4, 2))


def task_of(images: Sequence[Row], number: int, parent: ModelState | None = None, **changes: Any) -> Task:
    """Return node ``number``'s task: rows, batches and seeds of its own; of the second stage if there is a parent."""
    draw = np.random.default_rng(number)
    batches = [draw.choice(len(images), size, replace=False).tolist() for size in SIZES[number % len(SIZES)]]
    stages = PLAN.stages[: 1 if parent is None else 2]
    seeds = Seeds(number, number + 1, number + 2)
    return Task(stages, parent, images, batches, dataclasses.replace(RECIPE, **changes), seeds, 3)


def bits(trained: Any) -> str:
    assert isinstance(trained, Trained)
    return tensors_digest({**trained.adapter, **trained.head})


def group(base: Backbone, tasks: Sequence[Task], precision: Any = "float32") -> list[Trained | DivergedError]:
    return train_group(base, tasks, precision=precision, keeps=[None] * len(tasks))


def state_of(trained: Any, parent: ModelState | None = None) -> ModelState:
    adapters = dict(parent.adapters) if parent else {}
    return ModelState(adapters | {PLAN.stages[len(adapters)].adapter: trained.adapter}, trained.head)


@pytest.fixture(params=["vit", "deit", "dinov2"])
def base(request: pytest.FixtureRequest) -> ImageBackbone:
    found: ImageBackbone = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def rows(base: ImageBackbone) -> list[Row]:
    """Ten images of three classes and two slices, as the model wants them."""
    images = torch.randint(256, (10, 3, 12, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return [Row(image, i % 3, i % 2) for i, image in enumerate(base.resident(images))]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_nodes_bits_are_its_own(base: ImageBackbone, rows: list[Row], precision: Any, dropout: float) -> None:
    """Alone, in a full group at every place, in other company; first and second stage."""
    tasks = [task_of(rows, i, dropout=dropout) for i in range(GROUP)]
    parents: list[Any] = []
    for _ in PLAN.stages:
        alone = [bits(group(base, [task], precision)[0]) for task in tasks]
        assert len(set(alone)) == GROUP
        together = group(base, tasks, precision)
        assert [bits(done) for done in together] == alone
        turned = group(base, [*tasks[3:], *tasks[:3]], precision)
        assert [bits(done) for done in turned] == [*alone[3:], *alone[:3]]
        assert [bits(done) for done in group(base, tasks[5:2:-1], precision)] == alone[5:2:-1]
        parents = [state_of(done) for done in together]
        tasks = [task_of(rows, i, parent, dropout=dropout) for i, parent in enumerate(parents)]


def test_groups_train_what_plain_steps_do(base: ImageBackbone, rows: list[Row]) -> None:
    """Up to rounding, in the first stage and the second, with the same counts of work."""
    parent = None
    for _ in PLAN.stages:
        task = task_of(rows, 2, parent)
        plain, (ours,) = train_node_fast(base, task, precision="float32"), group(base, [task])
        assert isinstance(ours, Trained)
        for mine, theirs in ((ours.adapter, plain.adapter), (ours.head, plain.head)):
            for name in theirs:
                torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=2e-5)
        for count in ("optimizer_steps", "record_passes", "layer_passes"):
            assert getattr(ours, count) == getattr(plain, count)
        parent = state_of(plain, parent)


def test_numbers_are_answers_too(vit: ImageBackbone, images: list[Row]) -> None:
    rows = [dataclasses.replace(row, label=0.1 * i) for i, row in enumerate(images)]
    tasks = [dataclasses.replace(task_of(rows, i), classes=1) for i in range(3)]
    plain = train_node_fast(vit, tasks[0], precision="float32")
    together = group(vit, tasks)
    assert bits(together[0]) == bits(group(vit, tasks[:1])[0])
    assert isinstance(together[0], Trained)
    torch.testing.assert_close(together[0].head, plain.head, rtol=1e-3, atol=2e-5)


def test_one_that_diverges_takes_nobody_along(vit: ImageBackbone, images: list[Row]) -> None:
    good = [state_of(done) for done in group(vit, [task_of(images, i) for i in range(3)])]
    poisoned = ModelState(good[1].adapters, {n: t * float("nan") for n, t in good[1].head.items()})
    blown = ModelState({n: {k: t * 1e38 for k, t in a.items()} for n, a in good[2].adapters.items()}, good[2].head)
    tasks = [task_of(images, i, parent) for i, parent in enumerate((good[0], poisoned, blown))]
    found = group(vit, tasks)
    assert [isinstance(done, DivergedError) for done in found] == [False, True, True]
    assert "diverged at step 0" in str(found[1])
    assert bits(found[0]) == bits(group(vit, tasks[:1])[0])


def test_a_group_is_of_one_kind(vit: ImageBackbone, tiny: Backbone, images: list[Row]) -> None:
    with pytest.raises(ValueError, match=f"9 nodes in a group of {GROUP}"):
        group(vit, [task_of(images, i) for i in range(9)])
    with pytest.raises(ValueError, match="share their stages, recipe and classes"):
        group(vit, [task_of(images, 0), task_of(images, 1, lr=1.0)])
    with pytest.raises(RecipeError, match=r"engine=grouped needs records of one length.*those of a bert differ"):
        group(tiny, [task_of(images, 0)])


def test_a_frozen_tensor_that_changes_is_noticed(
    vit: ImageBackbone, images: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grouped._run

    def planted(nodes: Any, layers: Any) -> Any:
        layers[0].qkv.weight.mul_(2.0)
        return real(nodes, layers)

    monkeypatch.setattr(grouped, "_run", planted)
    with pytest.raises(IsolationError, match="changed a frozen tensor"):
        group(vit, [task_of(images, 0)])


# ---- builds ----


def image_of(number: int) -> bytes:
    """A PNG of 8 x 8 pixels, red or blue, with noise."""
    colour = ((200, 30, 30), (30, 30, 200))[number % 2]
    noise = np.random.default_rng(number).normal(0, 20, (8, 8, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


RECORDS = [Record(f"r{i:02d}", {"image": image_of(i)}, i % 2) for i in range(40)]


def system_of(folder: Path, layout: Layout, **how: Any) -> S3T:
    recipe = Recipe(rank=2, epochs=1, batch_size=4)
    common: Any = {"classes": ("blue", "red"), "model": load("tiny-vit", torch.device("cpu")), "recipe": recipe}
    return S3T(
        folder,
        layout,
        **common | {"key": b"k" * 32, "allow_empty": True, "engine": "grouped", "precision": "float32"} | how,
    )


def files(system: System) -> dict[str, Any]:
    """Return the digests of each surviving node's files, by the node's name."""
    facts = system._opened()[1]
    facts.update()
    return {node.name: fact.files["head.safetensors"] for node, fact in facts.alive.items()}


def delete_elsewhere(system: System, record_id: str) -> None:
    """Delete a record through another opening of the same run, as another process does."""
    other = System.open(system.path, system._backbone)
    other.delete([record_id])
    other.close()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nodes each group of a build had."""
    found: list[int] = []
    real = Builder.run_kernels

    def counted(self: Builder, plan: Any, jobs: Any) -> Any:
        found.append(len(jobs))
        return real(self, plan, jobs)

    monkeypatch.setattr(Builder, "run_kernels", counted)
    return found


def test_builds_fill_groups_stage_by_stage(tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five shards of two orders: ten nodes without a parent, ten that follow; the bits are those of nodes alone."""
    system = system_of(tmp_path / "run", Layout(5, 2, 2))
    cost = system.fit(RECORDS)
    assert sizes == [8, 2, 8, 2] and cost.nodes == 20
    monkeypatch.setattr("s3t.engine.numerics.Numerics.together", 1)
    alone = system_of(tmp_path / "alone", Layout(5, 2, 2))
    monkeypatch.setattr(
        "s3t.engine.numerics.Numerics.train",
        lambda self, backbone, task, keep: self.train_group(backbone, [task], [keep])[0],
    )
    alone.fit(RECORDS)
    assert sizes == [8, 2, 8, 2] and files(alone) == files(system)


def test_a_deletion_that_overtakes_a_group_wins(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = system_of(tmp_path / "run", Layout(2, 2, 1))
    real, gone = Builder.run_kernels, RECORDS[0].id

    def overtaken(self: Builder, plan: Any, jobs: Any) -> Any:
        trained = real(self, plan, jobs)
        if len(sizes) == 1:
            delete_elsewhere(system, gone)
        return trained

    monkeypatch.setattr(Builder, "run_kernels", overtaken)
    system.fit(RECORDS)
    assert gone not in system.ids()
    scratch = system_of(tmp_path / "scratch", Layout(2, 2, 1))
    scratch.fit([record for record in RECORDS if record.id != gone])
    assert files(system) == files(scratch)


def test_a_deletion_between_two_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the parent of a node that was read already; the others of the group are taken up again."""
    system = system_of(tmp_path / "run", Layout(2, 2, 1))
    real, taken = Builder.take, list[Any]()

    def overtaken(self: Builder, node: Any) -> Any:
        job = real(self, node)
        taken.append(job)
        if len(taken) == 3:  # the first node of the second stage
            assert len(node.prefix) == 2
            first = next(row.record.id for row in job.stored if slot(b"k" * 32, row.record.id, Layout(2, 2, 1))[1] == 0)
            delete_elsewhere(system, first)
        return job

    monkeypatch.setattr(Builder, "take", overtaken)
    system.fit(RECORDS)
    scratch = system_of(tmp_path / "scratch", Layout(2, 2, 1))
    scratch.fit([record for record in RECORDS if record.id in system.ids()])
    assert len(system.ids()) == len(RECORDS) - 1 and files(system) == files(scratch)


def test_what_is_good_is_kept_when_one_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Builder.run_kernels

    def broken(self: Builder, plan: Any, jobs: Any) -> Any:
        return [DivergedError("training diverged at step 0"), *real(self, plan, jobs)[1:]]

    system = system_of(tmp_path / "run", Layout(2, 1, 1))
    monkeypatch.setattr(Builder, "run_kernels", broken)
    with pytest.raises(DivergedError, match="at step 0"):
        system.fit(RECORDS)
    assert len(files(system)) == 1
    monkeypatch.undo()
    assert system.fit(RECORDS).nodes == 1


def test_what_passes_between_nodes_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted fault: gradients weigh less the more nodes there are. The auditor trains every node alone."""
    real = grouped._batch

    def crossing(given: Any, size: int) -> Any:
        hidden, lengths, answers, weights = real(given, size)
        return hidden, lengths, answers, weights / len(given)

    def life(run: Path) -> int:
        system = system_of(run, Layout(2, 2, 1), model="tiny-vit")
        system.fit(RECORDS)
        system.delete([RECORDS[3].id])
        system.close()
        return verify([str(run), "--level", "E1a"])

    assert life(tmp_path / "sound") == 0
    monkeypatch.setattr(grouped, "_batch", crossing)
    assert life(tmp_path / "leaking") == 1
    assert "VIOLATED" in capsys.readouterr().out
