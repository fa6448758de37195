"""A run of images, end to end by the command line: train, predict, delete, audit, in both engines."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from peft import AutoPeftModelForFeatureExtraction
from PIL import Image
from safetensors.torch import load_file

from s3t.backbone import load
from s3t.system import System
from verify.cli import main as verify

CPU = torch.device("cpu")
COLOURS = {"blue": (30, 40, 200), "green": (20, 200, 40), "red": (210, 30, 20)}
HOW = ("--model", "tiny-vit", "--shards", "2", "--slices", "2", "--budget", "2", "--epochs", "3", "--batch-size", "8")


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    """Ninety images of one colour each, with noise, in folders by colour."""
    draw = np.random.default_rng(0)
    for number in range(90):
        name, colour = list(COLOURS.items())[number % 3]
        noisy = np.clip(np.array(colour) + draw.normal(0, 20, (10, 12, 3)), 0, 255).astype(np.uint8)
        (tmp_path / "flags" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(tmp_path / "flags" / name / f"{number:03d}.png")
    return tmp_path / "flags"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT 0.21 with transformers 5.23
def test_an_export_is_loaded_by_stock_peft(flags: Path, tmp_path: Path) -> None:
    """By what its model card says; the base model is a checkpoint without a pooler."""
    load("tiny-dinov2", CPU).model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    how = ("--model", tmp_path / "base", *HOW[2:], "--shards", "1")
    call("train", tmp_path / "run", "--data", flags, *how)
    call("export", tmp_path / "run", "--shard", "0", "--out", tmp_path / "out", "--base", tmp_path / "base")
    inputs = [{"image": path.read_bytes()} for path in sorted(flags.rglob("*.png"))[:5]]
    base = load(str(tmp_path / "base"), CPU)
    body = AutoPeftModelForFeatureExtraction.from_pretrained(str(tmp_path / "out"))
    head = load_file(tmp_path / "out" / "head.safetensors")
    with torch.no_grad():
        hidden = body(**base.collate(base.encode(inputs, 1))).last_hidden_state
    with closing(System.open(tmp_path / "run")) as system:
        served = torch.from_numpy(system.predict(inputs))
    assert torch.equal(torch.nn.functional.linear(hidden[:, 0], head["weight"], head["bias"]), served.float())
    assert "pixel_values: RGB of 16 x 16, bilinear" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("engine", ["reference", "fast", "graphs", "grouped"])
def test_the_life_of_a_run(flags: Path, tmp_path: Path, engine: str) -> None:
    run = tmp_path / "run"
    call("train", run, "--data", flags, "--engine", engine, "--precision", "float32", *HOW)
    tested = json.loads(call("predict", run, "--json"))
    assert tested["accuracy"] > 0.8, "three colours are easy"
    shown = json.loads(call("predict", run, "--input", flags / "red", "--json"))
    assert {row["id"] for row in shown["rows"]} == {path.name for path in (flags / "red").iterdir()}
    gone = sorted(json.loads(call("delete", run, "--any", "3", "--json"))["deleted"])
    assert all(name.count("/") == 1 for name in gone)
    for level in ("E0", "E1a", "E1b", "E1c"):
        assert verify([str(run), "--level", level]) == 0, level
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any((flags / name).read_bytes() in content for name in gone), path
