"""Where the bytes of a pinned package come from: the installed package, an archive carried here by hand, or pip.

Every origin is an :data:`Opener`: the exact path of a file inside the package -> its open content. Archives are never
unpacked as a whole, and only regular files are opened, so that nothing an archive names can reach outside the cache.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from s3t.data.pack import Pack, Package

Opener = Callable[[str], IO[bytes]]
"""Opens one file by its exact path; KeyError if there is no such regular file."""


@contextmanager
def archive(path: Path) -> Iterator[Opener]:
    """Open a zip (wheels are zips) or a tar file for reading. Raises BadZipFile or TarError if it is neither."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            yield zipped.open
    else:
        with tarfile.open(path) as tarred:

            def open_regular(name: str) -> IO[bytes]:
                info = tarred.getmember(name)
                content = tarred.extractfile(info) if info.isreg() else None  # extractfile would follow links
                if content is None:
                    raise KeyError(f"{name!r} is not a regular file")
                return content

            yield open_regular


def installed(package: Package) -> Opener | None:
    """Return an opener of the installed package, or None unless the pinned version is there with all its files.

    The package is not imported. A source distribution's files are not installed with it, so that it has no such opener.
    """
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
    ending = r"\.(tar\.gz|zip)" if package.sdist else r"-.+\.whl"
    pattern = re.compile(f"{stem}-{re.escape(package.version)}{ending}")
    found = (path for path in sorted(folder.iterdir()) if pattern.fullmatch(path.name.lower().replace("_", "-")))
    return next(found, None)


def download(pack: Pack, package: Package, into: Path, carry_to: Path) -> Path:
    """Have pip put the package's archive into the new folder ``into`` and return its path. Nothing is installed.

    Raises the pack's error with pip's own reason and the way to carry the archive to ``carry_to`` by hand, and OSError
    (ENOSPC) if the disk is full.
    """
    into.mkdir()
    pinned = f"{package.name}=={package.version}"
    requirement = into.with_suffix(".txt")
    requirement.write_text(f"{pinned} --hash=sha256:{package.sdist}\n" if package.sdist else f"{pinned}\n")
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--retries=2")
    options = (*package.pip_options, "--dest", str(into), "--requirement", str(requirement))
    run = subprocess.run(
        [sys.executable, "-m", "pip", "download", *quiet, *options],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "TMPDIR": str(into.parent)},
    )
    archives = sorted(into.iterdir())
    if run.returncode == 0 and len(archives) == 1:
        return archives[0]
    if "No space left on device" in run.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or [f"exit status {run.returncode}, {len(archives)} archives"])[-1]
    raise pack.fault(
        f"pip could not bring {pinned} for pack {pack.name!r} ({reason}). On a connected machine run "
        f"`python -m pip download {' '.join(package.pip_options)} {pinned}` and copy the archive into {carry_to}"
    )
