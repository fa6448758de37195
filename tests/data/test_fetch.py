"""Fetching: what lies in the cache is whole and verified, or absent; every fault says what to do."""

from __future__ import annotations

import errno
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.data import load, origins
from s3t.data.fetch import available, cache_folder, fetch
from s3t.data.pack import Pack, Package
from s3t.data.packs import PACKS
from s3t.errors import DataError, ModelError

Register = Callable[[Pack], Pack]


def entries(cache: Path) -> set[str]:
    """Names in the cache, but for what was carried there."""
    return {path.name for path in cache.iterdir()} - {"packages"} if cache.exists() else set()


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any call of pip an error."""
    monkeypatch.setattr(origins, "download", lambda *_: pytest.fail("pip was called"))


@pytest.mark.usefixtures("no_pip")
def test_a_carried_wheel_fills_the_cache_and_later_calls_read_the_cache_alone(
    tiny: Any, register: Register, cache: Path
) -> None:
    register(tiny.pack())
    wheel = tiny.wheel(cache / "packages")
    folder = fetch("tiny", cache)
    assert folder == cache / "tiny-1.0"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "rows.txt": b"some rows\n",
        "words.txt": b"some words\n",
    }
    assert entries(cache) == {"tiny-1.0"}, "nothing else may stay"
    wheel.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fetch("tiny", cache) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_cache_is_where_the_environment_says(
    tiny: Any, register: Register, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tiny.pack())
    tiny.wheel(cache / "packages")
    monkeypatch.setenv("S3T_CACHE", str(cache))
    assert fetch("tiny") == cache / "tiny-1.0"
    monkeypatch.delenv("S3T_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/.cache/s3t")


def test_available_names_the_packs_and_an_unknown_one_is_refused(cache: Path) -> None:
    assert available() == list(PACKS)
    with pytest.raises(DataError, match=r"no pack is called 'minlm' \(did you mean 'minilm'\?\)"):
        fetch("minlm", cache)
    assert not cache.exists()


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize(("kind", "error"), [("data", DataError), ("model", ModelError)])
def test_other_bytes_in_the_archive_are_refused_and_nothing_stays(
    tiny: Any, register: Register, cache: Path, kind: str, error: type[Exception]
) -> None:
    register(tiny.pack(kind=kind))
    wheel = tiny.wheel(cache / "packages", {**tiny.content, "tiny/data/words.txt": b"other words\n"})
    with pytest.raises(error) as caught:
        fetch("tiny", cache)
    message = str(caught.value)
    assert "tiny/data/words.txt" in message
    assert f"expected SHA-256 {tiny.digest(b'some words' + bytes([10]))}" in message
    assert f"found {tiny.digest(b'other words' + bytes([10]))}" in message
    assert f"delete {wheel}" in message
    assert entries(cache) == set()


@pytest.mark.usefixtures("no_pip")
def test_a_missing_member_is_named(tiny: Any, register: Register, cache: Path) -> None:
    register(tiny.pack())
    tiny.wheel(cache / "packages", {"tiny/data/rows.txt": b"some rows\n"})
    with pytest.raises(DataError, match=r"holds no regular file tiny/data/words\.txt, part of pack 'tiny'"):
        fetch("tiny", cache)
    assert entries(cache) == set()


def test_a_changed_file_in_the_cache_is_found_on_the_next_call(tiny: Any, register: Register, cache: Path) -> None:
    register(tiny.pack())
    tiny.wheel(cache / "packages")
    folder = fetch("tiny", cache)
    (folder / "rows.txt").write_bytes(b"some row\n")
    with pytest.raises(DataError, match=r"rows\.txt is not the file that pack 'tiny' pins.*delete the folder"):
        fetch("tiny", cache)
    (folder / "rows.txt").unlink()
    with pytest.raises(DataError, match=r"rows\.txt of pack 'tiny' is missing: delete the folder .*tiny-1\.0"):
        fetch("tiny", cache)
    shutil.rmtree(folder)
    assert (fetch("tiny", cache) / "rows.txt").read_bytes() == b"some rows\n"


def test_names_in_an_archive_cannot_reach_outside_the_cache(
    tiny: Any, register: Register, cache: Path, tmp_path: Path
) -> None:
    register(tiny.pack())
    tiny.wheel(cache / "packages", {**tiny.content, "../../evil.txt": b"x", "/tmp/s3t-evil.txt": b"x"})
    fetch("tiny", cache)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"rows.txt", "words.txt", "s3t_tiny_pack-1.0-py3-none-any.whl"}


def inner_pack(
    tiny: Any, inner: bytes, files: dict[str, bytes], pieces: int = 1
) -> tuple[Pack, list[dict[str, bytes]]]:
    """Return a pack whose ``files`` lie in the archive ``inner``, cut into as many packages, and those packages' files."""
    size = -(-len(inner) // pieces)
    contents = [{f"p{i}/all.{i:03}": inner[i * size : (i + 1) * size]} for i in range(pieces)]
    packages = tuple(Package(f"s3t-tiny-{i}", "1.0", tiny.pins(content)) for i, content in enumerate(contents))
    return tiny.pack(packages=packages, inner=tiny.pins(files)), contents


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("pieces", [1, 3])
def test_an_archive_in_pieces_is_joined_and_opened(tiny: Any, register: Register, cache: Path, pieces: int) -> None:
    files = {"top/a.txt": b"a" * 1000, "top/b.txt": b"b"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for number, inner in enumerate((zipped.getvalue(), tiny.tar(files))):
        pack, contents = inner_pack(tiny, inner, files, pieces)
        for i, content in enumerate(contents):
            tiny.wheel(cache / str(number) / "packages", content, f"s3t-tiny-{i}")
        register(pack)
        folder = fetch("tiny", cache / str(number))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.txt": b"a" * 1000, "b.txt": b"b"}


@pytest.mark.usefixtures("no_pip")
def test_a_link_in_an_archive_is_not_followed(tiny: Any, register: Register, cache: Path) -> None:
    secret = b"secret"
    inner = tiny.tar({"top/real.txt": secret}, {"top/a.txt": "real.txt"})
    pack, contents = inner_pack(tiny, inner, {"top/a.txt": secret})
    register(pack)
    tiny.wheel(cache / "packages", contents[0], "s3t-tiny-0")
    with pytest.raises(DataError, match=r"holds no regular file top/a\.txt"):
        fetch("tiny", cache)
    assert entries(cache) == set()


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("damage", ["cut", "noise", "body"])
def test_a_damaged_archive_is_one_clear_error(tiny: Any, register: Register, cache: Path, damage: str) -> None:
    register(tiny.pack())
    wheel = tiny.wheel(cache / "packages")
    raw = wheel.read_bytes()
    changed = {"cut": raw[:100], "noise": b"no archive at all", "body": raw.replace(b"some words", b"same words")}
    wheel.write_bytes(changed[damage])
    with pytest.raises(DataError, match=r"an archive of pack 'tiny' is damaged \(.+\): fetch it again"):
        fetch("tiny", cache)
    assert entries(cache) == set()


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_nothing_stays(
    tiny: Any, register: Register, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    register(tiny.pack())
    tiny.wheel(cache / "packages")

    def full(source: Any, sink: Any, length: int = 0) -> None:
        sink.write(source.read(3))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"no space left in .*cache for pack 'tiny': free some, or set S3T_CACHE"):
        fetch("tiny", cache)
    assert entries(cache) == set()


def test_a_cache_that_cannot_be_used_is_said(tiny: Any, register: Register, tmp_path: Path) -> None:
    register(tiny.pack(kind="model"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"cannot use .*file as the cache for pack 'tiny' \(.+\): set S3T_CACHE"):
        fetch("tiny", tmp_path / "file")


def test_whoever_comes_second_takes_what_the_first_made(
    tiny: Any, register: Register, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tiny.pack())
    tiny.wheel(cache / "packages")
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        shutil.copytree(self, target)  # another process finished a moment ago
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert (fetch("tiny", cache) / "rows.txt").read_bytes() == b"some rows\n"
    assert entries(cache) == {"tiny-1.0"}


def test_a_pack_with_a_notice_is_brought_only_where_someone_is_told(
    tiny: Any, register: Register, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = register(tiny.pack(notice="Keep it to yourself."))
    tiny.wheel(cache / "packages")
    with pytest.raises(DataError, match=r"fetched on request alone, by `s3t fetch tiny`\. Keep it to yourself\."):
        fetch("tiny", cache)
    assert entries(cache) == set()
    lines: list[str] = []
    folder = fetch("tiny", cache, lines.append)
    assert lines == ["Keep it to yourself."]
    assert fetch("tiny", cache) == folder == cache / pack.folder
    fetch("tiny", cache, lines.append)
    assert len(lines) == 1, "what lies in the cache was agreed to"


def test_naming_a_pack_with_a_notice_as_data_downloads_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "download", lambda *_: pytest.fail("something was downloaded"))
    monkeypatch.setenv("S3T_CACHE", str(cache))
    with pytest.raises(
        DataError, match=r"by `s3t fetch cifar10-test`\. .* no figure on them compares to published ones"
    ):
        load("cifar10-test")
    assert not cache.exists()


def test_progress_is_told_before_a_download(
    tiny: Any, register: Register, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register(tiny.pack())
    wheel = tiny.wheel(tmp_path)
    lines: list[str] = []

    def download(pack: Pack, package: Package, into: Path, carry_to: Path) -> Path:
        assert lines == ["downloading s3t-tiny-pack==1.0"]
        into.mkdir()
        return shutil.copy(wheel, into / wheel.name)

    monkeypatch.setattr(origins, "download", download)
    fetch("tiny", cache, lines.append)
    assert entries(cache) == {"tiny-1.0"}
