"""DoRA: a magnitude per output is trained with A and B, under the same exactness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3t import S3T
from s3t.backbone import load
from s3t.blocks import ModelState
from s3t.errors import RecipeError
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.training import Row, Seeds, Task, train_node

CPU = torch.device("cpu")
RECIPE = Recipe(rank=2, epochs=1.0, batch_size=6, dropout=0.1, lr=1e-2, dora=True)
RECORDS = [Record(f"row-{i:03d}", {"text": f"the cat {'sat ' * (i % 4)}on number {i}"}, i % 3) for i in range(40)]
INPUTS = [record.inputs for record in RECORDS]


@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2"])
def test_a_stage_trains_its_magnitudes(name: str) -> None:
    base = load(name, CPU)
    plan = s3t_plan(Layout(1, 2, 1), RECIPE, base.layers)
    rows = [Row(encoded, i % 3) for i, encoded in enumerate(base.encode(INPUTS[:12], 32))]
    task = Task(plan.stages[:1], None, rows, [list(range(6)), list(range(6, 12))], RECIPE, Seeds(1, 2, 3), 3)
    first = train_node(base, task)
    names = [key for key in first.adapter if "lora_magnitude_vector" in key]
    assert names and len(first.adapter) == 3 * len(names), "a magnitude for each pair"
    key = names[0]
    module = key.removeprefix("base_model.model.").partition(".lora_magnitude_vector")[0]
    weight = base.model.get_submodule(module).weight
    rows_of = weight.t() if base.family.transposed else weight
    norm = torch.linalg.norm(rows_of, dim=1)
    learned = first.adapter[key]
    assert learned.shape == norm.shape and not torch.equal(learned, norm)
    torch.testing.assert_close(learned, norm, rtol=0.1, atol=0.05)  # two small steps from where it starts
    state = ModelState({plan.stages[0].adapter: first.adapter}, first.head)
    frozen = {n: t.clone() for n, t in first.adapter.items()}
    train_node(base, Task(plan.stages, state, rows, [list(range(6))], RECIPE, Seeds(4, 5, 6), 3))
    assert all(torch.equal(frozen[n], t) for n, t in first.adapter.items())


def test_the_fast_engine_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the fast engine has no DoRA, dora=True; use engine=reference"):
        S3T(tmp_path / "run", Layout(1, 2, 1), classes=("a", "b"), model="tiny", recipe=RECIPE, engine="fast")
