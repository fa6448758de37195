"""Where and of what a result was measured: commit, dirty flag, machine. No host name, no path; loads no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What ran the benchmark. ``gpu``: the one torch saw, None without; versions are None where not installed."""

    cpu: str
    cores: int
    gpu: str | None
    os: str
    python: str
    torch: str | None
    transformers: str | None
    peft: str | None
    threads: int | None
    dtype: str


@dataclass(frozen=True)
class Header:
    """When, of which commit and on what. ``dirty``: changed or new files outside results/, or no commit known.

    ``commit_source``: "git", "environment" (S3T_COMMIT, for copies without .git) or "none".
    """

    date: str
    commit: str
    dirty: bool
    commit_source: str
    machine: Machine


def machine(dtype: str = "float32") -> Machine:
    """Describe this machine. Never imports torch: threads and GPU are known only if the benchmark has loaded it."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        cpu=_cpu(),
        cores=cores,
        gpu=gpu,
        os=" ".join(filter(None, (platform.system(), platform.machine(), *platform.libc_ver()))),
        python=platform.python_version(),
        torch=str(torch.__version__) if torch is not None else _version("torch"),
        transformers=_version("transformers"),
        peft=_version("peft"),
        threads=torch.get_num_threads() if torch is not None else None,
        dtype=dtype,
    )


def header(dtype: str = "float32", root: Path | None = None) -> Header:
    """Return the header of a run that happens now, from the git checkout at ``root`` (the working directory)."""
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    commit, dirty, source = _commit(root or Path.cwd())
    return Header(date, commit, dirty, source, machine(dtype))


def _commit(root: Path) -> tuple[str, bool, str]:
    """Return (commit, dirty, source). A checkout counts only if it tracks this very module."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        git("ls-files", "--error-unmatch", ":/benchmarks/rows.py")
        changes = git("status", "--porcelain", "--", ":/", ":(exclude,top)results")
        return git("rev-parse", "HEAD").strip(), bool(changes.strip()), "git"
    except (OSError, subprocess.CalledProcessError):
        match = re.fullmatch(r"([0-9a-f]{40})(-dirty)?", os.environ.get("S3T_COMMIT", ""))
        return (match[1], match[2] is not None, "environment") if match else ("unknown", True, "none")


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
