"""A pack of our own: a tiny wheel with its own pins, so that fetching is tested without an index."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from s3t.data import packs
from s3t.data.pack import Member, Pack, Package


class Tiny:
    """The package ``s3t-tiny-pack`` 1.0 with two files, and the pack ``tiny`` that pins them."""

    package = "s3t-tiny-pack"
    content: Mapping[str, bytes] = {"tiny/data/rows.txt": b"some rows\n", "tiny/data/words.txt": b"some words\n"}

    @staticmethod
    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    def pins(self, content: Mapping[str, bytes] | None = None) -> tuple[Member, ...]:
        chosen = self.content if content is None else content
        return tuple(Member(path, self.digest(data)) for path, data in chosen.items())

    def pack(self, **changes: Any) -> Pack:
        fields: dict[str, Any] = {
            "name": "tiny",
            "kind": "data",
            "version": "1.0",
            "packages": (Package(self.package, "1.0", self.pins()),),
            "source": "made up",
            "licence": "none",
            "classes": ("no", "yes"),
        }
        return Pack(**{**fields, **changes})

    @staticmethod
    def tar(content: Mapping[str, bytes], links: Mapping[str, str] | None = None, mode: str = "w:gz") -> bytes:
        """Return a tar archive of these files, and of links by name and target."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as archive:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            for name, target in (links or {}).items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                archive.addfile(info)
        return out.getvalue()

    def wheel(self, folder: Path, content: Mapping[str, bytes] | None = None, name: str = package) -> Path:
        """Write a valid wheel with these files into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = name.replace("-", "_")
        path = folder / f"{stem}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for file, data in (self.content if content is None else content).items():
                wheel.writestr(file, data)
            wheel.writestr(f"{stem}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(
                f"{stem}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{stem}-1.0.dist-info/RECORD", "")
        return path


@pytest.fixture
def tiny() -> Tiny:
    """Makes the tiny pack and its wheel."""
    return Tiny()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pack], Pack]:
    """Makes a pack known beside the real ones."""

    def add(pack: Pack) -> Pack:
        monkeypatch.setattr(packs, "PACKS", {**packs.PACKS, pack.name: pack})
        return pack

    return add


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder that does not exist yet; archives are carried to ``packages`` in it."""
    return tmp_path / "cache"
