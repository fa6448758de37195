"""On what and by which code a result was reached: part of every result file of the verifier; and on how many threads."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Return processor, threads, versions, and the commit (None outside a repository; ``dirty``: changed since)."""
    import torch

    from s3t.backbone import environment

    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        **environment(torch.device("cpu")),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


@contextmanager
def on_threads(number: int | None) -> Iterator[None]:
    """Run the body with torch on ``number`` threads (None: as it is); bits depend on it, and a fork wants one."""
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git(*command: str) -> str | None:
    folder = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
