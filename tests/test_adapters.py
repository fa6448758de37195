"""Every kind of adapter: a run with a deletion is exact, by both kernels, and its export gives its bits under stock PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from s3t import S3T
from s3t.backbone import load, pooled
from s3t.exporting import export
from s3t.records import Layout, Recipe, Record
from s3t.system import System

CPU = torch.device("cpu")
RECORDS = [Record(f"row-{i:03d}", {"text": f"the cat {'sat ' * (i % 4)}on number {i}"}, i % 3) for i in range(40)]
INPUTS = [record.inputs for record in RECORDS[:3]]
SHORT = {"rank": 2, "epochs": 1.0, "batch_size": 6, "lr": 1e-2}
KINDS = {
    "LoRA": Recipe(**SHORT, dropout=0.1),  # type: ignore[arg-type]
    "rsLoRA": Recipe(**SHORT, rslora=True),  # type: ignore[arg-type]
    "DoRA": Recipe(**SHORT, dropout=0.1, dora=True),  # type: ignore[arg-type]
    "(IA)3": Recipe(**SHORT, adapter="ia3"),  # type: ignore[arg-type]
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT 0.21 with transformers 5.23
@pytest.mark.parametrize(("kind", "name"), [*((kind, "tiny") for kind in KINDS), ("(IA)3", "tiny-gpt2")])
def test_a_run_is_exact_and_its_export_is_stock_peft(
    kind: str, name: str, tmp_path: Path, rebuilt: Callable[..., None]
) -> None:
    recipe, evaluation = KINDS[kind], ((), RECORDS[:4])
    how = {"classes": ("a", "b", "c"), "model": name, "recipe": recipe, "key": bytes(32), "evaluation": evaluation}
    with closing(S3T(tmp_path / "run", Layout(1, 2, 2), **how)) as system:  # type: ignore[arg-type]
        system.fit(RECORDS[4:])
        system.delete([RECORDS[9].id])
        rebuilt(system, RECORDS[4:])
    export(tmp_path / "run", 0, tmp_path / "out")
    said = "An (IA)3 adapter" if kind == "(IA)3" else "A LoRA adapter"
    assert said in (tmp_path / "out" / "README.md").read_text()
    base = load(name, CPU)
    body = PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "out"))  # type: ignore[arg-type]
    head = load_file(tmp_path / "out" / "head.safetensors")
    batch = base.collate(base.encode(INPUTS, recipe.max_length))
    with torch.no_grad():
        scores = torch.nn.functional.linear(pooled(body, batch, base.family.pooling), head["weight"], head["bias"])
    with closing(System.open(tmp_path / "run")) as served:
        assert torch.equal(scores, torch.from_numpy(served.predict(INPUTS)).float())
