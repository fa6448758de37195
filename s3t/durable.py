"""Files and folders that are on the disk when a call returns, whatever happens to the power next. No torch.

To synchronise a file keeps its content; its name is kept by synchronising the folder that holds it, and that folder's name by
the folder above.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed and removed in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make ``folder``, if it is not there, with the folders above it, all durable; ``mode`` is that of ``folder`` alone."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for path in made:
        sync_folder(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and have its content on disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def put(path: Path, content: bytes) -> None:
    """Write a file, or replace it, durably: at ``path`` there is at any time what was there before, or all of ``content``."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_synced(part, content)
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)
