"""(IA)3: vectors that scale activations are trained instead of LoRA's pairs, under the same exactness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3t import S3T, backbone
from s3t.backbone import load, pooled
from s3t.blocks import ChainModel, ModelState
from s3t.errors import RecipeError
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.training import Row, Seeds, Task, train_node
from verify.kernel import train_node_slowly

CPU = torch.device("cpu")
RECIPE = Recipe(adapter="ia3", epochs=1.0, batch_size=6, lr=2e-2)
RECORDS = [Record(f"row-{i:03d}", {"text": f"the cat {'sat ' * (i % 4)}on number {i}"}, i % 3) for i in range(40)]
INPUTS = [record.inputs for record in RECORDS]
FAMILIES = ("tiny", "tiny-mpnet", "tiny-distilbert", "tiny-deberta-v2", "tiny-gpt2", "tiny-llama", "tiny-qwen2")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stage_trains_its_vectors_alone(name: str) -> None:
    """Keys, values and what the feed-forward's last map reads, of the stage's layers; the oracle gets the same bits."""
    base = load(name, CPU)
    plan = s3t_plan(Layout(1, 2, 1), RECIPE, base.layers)
    rows = [Row(encoded, i % 3) for i, encoded in enumerate(base.encode(INPUTS[:12], 32))]
    state, family = None, base.family
    for depth in (1, 2):
        stages = plan.stages[:depth]
        task = Task(stages, state, rows, [list(range(6)), list(range(6, 12))], RECIPE, Seeds(1, 2, 3), 3)
        done = train_node(base, task)
        wanted = {
            f"base_model.model.{family.layers}.{layer}.{path}.ia3_l"
            for layer in stages[-1].layers
            for path in (*family.ia3, *family.ia3_inputs)
        }
        assert set(done.adapter) == wanted
        assert all(not torch.equal(t, torch.ones_like(t)) for t in done.adapter.values()), "it learned"
        slow = train_node_slowly(base, task)  # type: ignore[arg-type]
        assert all(torch.equal(slow.adapter[key], value) for key, value in done.adapter.items())
        assert all(torch.equal(slow.head[key], value) for key, value in done.head.items())
        state = ModelState({**(state.adapters if state else {}), stages[-1].adapter: done.adapter}, done.head)


@pytest.mark.parametrize("kind", backbone.FAMILIES)
def test_every_family_has_the_modules_that_it_names(kind: str) -> None:
    """PEFT takes what a pattern matches and says nothing of the rest."""
    base = load(f"tiny-{kind}", CPU)
    assert base.family.ia3 and base.family.ia3_inputs
    for layer in base.layer_modules(base.model):
        inside = {name for name, _ in layer.named_modules()}
        assert {*base.family.ia3, *base.family.ia3_inputs} <= inside


def test_a_fresh_vector_changes_nothing() -> None:
    base = load("tiny", CPU)
    plan = s3t_plan(Layout(1, 2, 1), RECIPE, base.layers)
    model = ChainModel(base, plan.stages, RECIPE, 3)
    for stage in plan.stages:
        model.initialise(stage.adapter, 0)
    batch = base.collate(base.encode(INPUTS[:3], 32))
    with torch.no_grad():
        assert torch.equal(pooled(model.body, batch), pooled(base.model, batch))


def test_targets_are_matched_as_for_lora() -> None:
    base, recipe = load("tiny", CPU), Recipe(adapter="ia3", targets=("query", "output.dense"))
    plan = s3t_plan(Layout(1, 2, 1), recipe, base.layers)
    model = ChainModel(base, plan.stages[:1], recipe, 3)
    found = {
        name.rsplit(".ia3_l", 1)[0].split(".layer.")[1].split(".", 1)[1] for name in model.adapter_tensors("block-00")
    }
    assert found == {"attention.self.query", "attention.output.dense", "output.dense"}
    shapes = {
        name.split(".layer.")[1].split(".", 1)[1]: tuple(t.shape)
        for name, t in model.adapter_tensors("block-00").items()
    }
    wide = base.model.config.intermediate_size  # type: ignore[union-attr]
    assert shapes["output.dense.ia3_l"] == (1, wide) and shapes["attention.output.dense.ia3_l"] == (base.hidden, 1)


def test_what_does_not_go_with_it(tmp_path: Path) -> None:
    for change in ({"dropout": 0.1}, {"rslora": True}, {"dora": True}):
        with pytest.raises(RecipeError, match="adapter='ia3' has no rslora, dora or dropout"):
            Recipe(adapter="ia3", **change)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"adapter='lara' is unknown \(did you mean 'lora'"):
        Recipe(adapter="lara")
    with pytest.raises(RecipeError, match="fast engine trains LoRA, not adapter='ia3'; use engine=reference"):
        S3T(tmp_path / "run", Layout(1, 2, 1), classes=("a", "b"), model="tiny", recipe=RECIPE, engine="fast")
