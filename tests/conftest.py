"""Fixtures for all tests. They run offline, on the CPU, and write below ``tmp_path`` alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from s3t.backbone import Backbone
    from s3t.records import Record
    from s3t.system import System

ROOT = Path(__file__).resolve().parent.parent
Finished = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """The tiny encoder on the CPU; frozen, so all tests may share it."""
    import torch

    from s3t.backbone import load

    return load("tiny", torch.device("cpu"))


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with an output layer of its own and a word tokenizer that begins every text, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    said = ["red", "blue", "green", "dog", "cat", "sun", "moon", "tree", "rock", "river"]
    words = {
        word: i
        for i, word in enumerate(["<s>", "</s>", "?", "###", "Instruction:", "Response:", "repeat", "done", *said])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = LlamaConfig(
        **size, vocab_size=len(words), intermediate_size=48, tie_word_embeddings=False, initializer_range=0.2
    )
    path = tmp_path_factory.mktemp("models") / "llama"
    LlamaForCausalLM(config).save_pretrained(path)
    fast.save_pretrained(path)
    return path


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Finished]:
    """Runs the interpreter with the given arguments in an empty folder, on the same packages as this process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    def run(*args: str, cwd: Path | None = None, **extra: str) -> Finished:
        command = [sys.executable, *args]
        return subprocess.run(
            command, cwd=cwd or tmp_path, env={**env, **extra}, capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.fixture
def rebuilt() -> Callable[[System, Sequence[Record]], None]:
    """Retrains what a run serves in a clean room, by the system's kernel and by the oracle's own: every bit must be there."""
    from verify.audit import audit
    from verify.evidence import read_evidence
    from verify.laboratory import RunLab
    from verify.report import Verdict

    def check(system: System, records: Sequence[Record]) -> None:
        for kernel in ("shared", "oracle"):
            how: dict[str, Any] = {"isolate": False, "lab": RunLab(read_evidence(system.path)), "kernel": kernel}
            report = audit(system, system.path, levels=("E1a",), records=records, **how)
            assert report.verdict is Verdict.HOLDS, report.dumps()

    return check
