"""Fixtures for all tests. They run offline, on the CPU, and write below ``tmp_path`` alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from s3t.backbone import Backbone

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


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Finished]:
    """Runs the interpreter with the given arguments in an empty folder, on the same packages as this process."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def run(*args: str, cwd: Path | None = None, **extra: str) -> Finished:
        command = [sys.executable, *args]
        return subprocess.run(
            command, cwd=cwd or tmp_path, env={**env, **extra}, capture_output=True, text=True, timeout=300, check=False
        )

    return run
