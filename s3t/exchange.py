"""A shared store in which a build and its workers leave tensors for one another: any path that fsspec knows. No torch.

What lies there was trained on records, so it is as personal as they are: it lies below a folder of the build's own, which is
noted in the run before anything is put there, and is erased when the build ends, or by the next work on the run after a crash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3t.durable import put, sync_folder
from s3t.errors import RunError

NOTE = "exchange"
"""File that says where a build's exchange is."""


class Exchange:
    """Contents by their SHA-256 below ``url``. RunError if the store cannot be used; what has another digest is not taken."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._known: set[str] = set()
        with self._told("reached"):
            from fsspec.core import url_to_fs

            self._files: Any
            self._files, self._root = url_to_fs(url)

    @classmethod
    def begin(cls, place: str, folder: Path) -> Exchange:
        """Open an exchange of this build's own below ``place`` and note it in ``folder``, durably."""
        exchange = cls(f"{place.rstrip('/')}/s3t-{secrets.token_hex(8)}")
        put(folder / NOTE, exchange.url.encode())
        with exchange._told("written"):
            exchange._files.makedirs(exchange._root, exist_ok=True)
        return exchange

    def put(self, content: bytes) -> str:
        """Leave ``content`` there and return its SHA-256. What this process has left or taken before is not sent again."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._known:
            with self._told("written"):
                self._files.pipe_file(f"{self._root}/{digest}", content)
            self._known.add(digest)
        return digest

    def get(self, digest: str) -> bytes:
        """Return what was left there under ``digest``. RunError if it is not there, or not what it was."""
        with self._told("read"):
            content: bytes = self._files.cat_file(f"{self._root}/{digest}")
        if hashlib.sha256(content).hexdigest() != digest:
            raise RunError(f"{self.url}: {digest[:12]} has other bytes than were left there; nothing of it was used")
        self._known.add(digest)
        return content

    def erase(self) -> None:
        """Erase all that lies there."""
        self._known.clear()
        with self._told("erased"):
            self._files.invalidate_cache()
            if self._files.exists(self._root):
                self._files.rm(self._root, recursive=True)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every kind of store raises its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunError(
                f"the exchange at {self.url} cannot be {what} ({reason}); check it, and give the command again"
            ) from error


def noted(folder: Path) -> tuple[str, ...]:
    """Return where the exchange is that a note in ``folder`` tells of, if there is one."""
    try:
        url = (folder / NOTE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    return (url,) if url else ()


def erase_noted(folder: Path) -> None:
    """Erase the exchange that a note in ``folder`` tells of, then the note. RunError, and it stays, if that cannot be done."""
    for url in noted(folder):
        Exchange(url).erase()
    (folder / NOTE).unlink(missing_ok=True)
    sync_folder(folder)
