"""Runs of every kind are answered over HTTP as by the command line: images, candidate answers, texts, numbers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from PIL import Image
from serving_http import Served

from s3t.service.app import application
from s3t.service.tokens import Token
from s3t.service.working import Service

HOW = ("--shards", "1", "--slices", "2", "--budget", "2", "--epochs", "1", "--batch-size", "8", "--no-duplicates")


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _answer(run: Path, inputs: list[Any]) -> Any:
    """Ask a service whose base model is that of the run, not the tests' own."""
    service = Service(run)
    try:
        return Served(run, service, application(service, Token("x" * 20)), []).predict(*inputs)
    finally:
        service.close()


def test_images(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(40):
        (tmp_path / "flags" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "flags" / "ab"[number % 2] / f"{number:02d}.png")
    run, folder = tmp_path / "run", tmp_path / "flags" / "a"
    call("train", run, "--data", tmp_path / "flags", "--model", "tiny-vit", *HOW)
    said = json.loads(call("predict", run, "--input", folder, "--json"))
    files = [(folder / row["id"]).read_bytes() for row in said["rows"]]
    answer = _answer(run, [{"image": base64.b64encode(data).decode()} for data in files])
    assert [row["scores"] for row in answer.json["rows"]] == [row["scores"] for row in said["rows"]]
    assert [row["class"] for row in answer.json["rows"]] == [row["class"] for row in said["rows"]]
    for wrong, line in (
        ({"image": base64.b64encode(b"no image").decode()}, "input 0: 8 bytes are no image that can be read"),
        ("a text", "input 0 has no image; this model reads a field 'image'"),
    ):
        refused = _answer(run, [wrong])
        assert refused.status == 400
        assert line in refused.error


def test_candidate_answers(tmp_path: Path) -> None:
    rows = [{"question": f"why {i}", "x": f"one {i}", "y": f"two {i}", "right": i % 2} for i in range(40)]
    table, run = _write(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    form = ("--text", "question", "--choices", "x,y")
    call("train", run, "--data", table, *form, "--label", "right", "--model", "tiny", *HOW)
    said = json.loads(call("predict", run, "--input", table, *form, "--json"))
    inputs = [{"text": row["question"], "choices": {name: row[name] for name in ("x", "y")}} for row in rows]
    assert _answer(run, inputs).json == said
    assert len(said["questions"]) == 40


def test_texts(tmp_path: Path) -> None:
    rows = [{"text": f"say {i}", "answer": f"word {i % 3}"} for i in range(40)]
    table, run = _write(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    call("train", run, "--data", table, "--text", "text", "--answer", "answer", "--model", "tiny-llama", *HOW)
    said = json.loads(call("predict", run, "--input", table, "--answer", "answer", "--json"))
    answer = _answer(run, rows)
    assert answer.json == said
    assert "log_likelihood" in said["rows"][0]
    refused = _answer(run, [{"text": "say", "answer": " "}])
    assert (refused.status, "empty field 'answer'" in refused.error) == (400, True)


def test_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"how many {i}", "label": i / 10} for i in range(40)]
    table, run = _write(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    call("train", run, "--data", table, "--number", "0:5", "--model", "tiny", *HOW)
    said = json.loads(call("predict", run, "--input", table, "--json"))
    assert _answer(run, [row["text"] for row in rows]).json == said
    assert "number" in said["rows"][0]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused(served: Served, text: str) -> None:
    answer = served.predict("word", text)
    assert answer.status == 400
    assert answer.error == "input 1 has no text; this model reads a non-empty field 'text'"
