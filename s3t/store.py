"""Content-addressed store of trained nodes: one folder per key, in PEFT's adapter format, safetensors only.

A node appears whole or not at all: it is written under a temporary name, synchronised, then renamed. Every file is
checked against the digest in the ledger before it is used; nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.durable import sync_folder, write_synced
from s3t.errors import BusyError, DamageError, RunError

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
"""File of a stage's trained tensors by the stage's kind."""
HEAD = "head.safetensors"
CONFIG = "adapter_config.json"
READS = "reads.json"
_PARTIAL = ".partial-"
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What this process lacks when a file cannot be opened; that says nothing of the file."""
_REMOVERS = 8
"""Most folders that are removed at the same time."""


class NodeStore:
    """Folders of trained nodes below ``root``, by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, key: str, files: Mapping[str, bytes], before_commit: Callable[[], None]) -> None:
        """Store ``files`` of node ``key``, then call ``before_commit``; whatever it raises undoes the write.

        Raises RunError if the disk is full; nothing is left behind then.
        """
        partial, final = self.root / f"{_PARTIAL}{key}", self.root / key
        _remove(partial)
        try:
            with no_space(self.root):
                partial.mkdir()
                for name, content in files.items():
                    write_synced(partial / name, content)
                sync_folder(partial)
                _remove(final)
                partial.rename(final)
                sync_folder(self.root)
            before_commit()
        except BaseException:
            _remove(partial)
            _remove(final)
            raise

    def read(self, key: str, name: str, digest: str) -> bytes:
        """Return file ``name`` of node ``key``. DamageError if it is missing or does not have the SHA-256 ``digest``."""
        with self._opened(key, name) as file:
            content = file.read()
        _compare(key, name, hashlib.sha256(content).hexdigest(), digest)
        return content

    def check(self, key: str, digests: Mapping[str, str]) -> None:
        """Check the files of node ``key`` that ``digests`` names as :meth:`read` does; no file is in memory as a whole."""
        for name, digest in digests.items():
            with self._opened(key, name) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            _compare(key, name, found, digest)

    @contextmanager
    def _opened(self, key: str, name: str) -> Iterator[BufferedReader]:
        try:
            with (self.root / key / name).open("rb") as file:
                yield file
        except OSError as error:
            if error.errno in _SHORT:
                raise RunError(f"node {key[:12]}: {name} cannot be read now ({error.strerror}); try again") from error
            message = f"node {key[:12]} has lost its file {name} ({error.strerror}); run `s3t refresh`"
            raise DamageError(message) from error

    def tensors(self, key: str, name: str, digest: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file, checked as in :meth:`read`. RunError if it is none."""
        return tensors(self.read(key, name, digest))

    def keys(self) -> set[str]:
        """Return the names of all folders, half-written ones included."""
        return {path.name for path in self.root.iterdir()}

    def erase(self, keys: set[str]) -> None:
        """Erase the folders of ``keys``; those already gone are fine.

        Several at a time: to remove a file is to wait for the file system, and on a busy machine for one's turn after that.
        """
        if not keys:
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(_REMOVERS, len(keys))) as pool:
            list(pool.map(_remove, [self.root / key for key in keys]))
        sync_folder(self.root)

    def bytes(self) -> int:
        """Return the bytes of all stored files; one that is removed meanwhile counts or does not."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with suppress(FileNotFoundError):
                    total += (Path(folder) / name).stat().st_size
        return total


def _compare(key: str, name: str, found: str, digest: str) -> None:
    if found != digest:
        raise DamageError(
            f"node {key[:12]}: {name} has sha256 {found[:12]}, the ledger says {digest[:12]}; "
            "it is damaged, run `s3t refresh`"
        )


def tensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. RunError if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise RunError(f"a node's file is no safetensors file ({error}); run `s3t refresh`") from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return ``tensors`` as the bytes of a safetensors file with PEFT's metadata."""
    from safetensors.torch import save

    return save(dict(tensors), metadata={"format": "pt"})


@contextmanager
def no_space(where: Path) -> Iterator[None]:
    """Turn a full disk, met by a file or by SQLite, into one RunError that says how much is free."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        codes = (getattr(error, "errno", None), getattr(error, "sqlite_errorcode", None))
        if codes[0] not in (errno.ENOSPC, errno.EDQUOT) and codes[1] != sqlite3.SQLITE_FULL:
            raise
        free = shutil.disk_usage(where).free
        raise RunError(
            f"no space left for the run ({free} bytes free); free some and give the same command again: "
            "what is finished is kept"
        ) from error


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn what SQLite finds wrong with ``what`` into one error: BusyError if it had to wait too long, else RunError.

    A broken constraint stays what it is, and so does a wrong use, as by another thread than the one that connected.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            raise BusyError(f"another process is writing to this run ({error}); try again") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
            raise RunError(f"{what} out of reach ({error}); check the folder's permissions and its disk") from error
        raise RunError(f"{what} damaged ({error}); restore from a copy, nothing may be served") from error


def _remove(path: Path) -> None:
    while path.exists():
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except FileNotFoundError:  # another process removes it too: see whether anything is left
            continue
