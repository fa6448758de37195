"""What a refresh's process does in tests; the functions are found by name in a fresh interpreter."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3t.errors import DataError
from s3t.service.refresher import build

SECRET = "r-00 wrote this"


def wait_for(path: Path, seconds: float = 120.0) -> None:
    """Wait until a file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)


def until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def mark(run: Path, name: str) -> Path:
    """Return the path of a mark beside a run."""
    return run.parent / f"{run.name}.{name}"


def fail(run: Path) -> None:
    """Raise what names a record, and print it."""
    print(SECRET)
    raise DataError(SECRET)


def die(run: Path) -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def recover(run: Path) -> None:
    """Fail the first time, then refresh."""
    if not mark(run, "failed").exists():
        mark(run, "failed").touch()
        fail(run)
    build(run)


def describe(run: Path) -> None:
    """Note the process's priority and threads, then refresh."""
    import torch

    mark(run, "about").write_text(json.dumps([os.nice(0), torch.get_num_threads(), os.getpid()]))
    build(run)


def hold(run: Path) -> None:
    """Refresh; hold the third node that was trained, before it is recorded, until the mark ``go`` is there."""
    from s3t.building import Builder, Job
    from s3t.contract import Cost
    from s3t.training import Trained

    real, seen = Builder.finish, [0]

    def finish(self: Builder, job: Job, trained: Trained, *, down: bool) -> Cost:
        seen[0] += 1
        if seen[0] == 3:
            mark(run, "held").write_text(json.dumps([job.node.shard, *job.node.prefix]))
            wait_for(mark(run, "go"), 600)
        return real(self, job, trained, down=down)

    Builder.finish = finish  # type: ignore[method-assign]
    build(run)
