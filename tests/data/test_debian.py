"""Packages of Debian's: an installed one, one carried here, one by apt-get, which is played here by a script of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from s3t.data import origins
from s3t.data.fetch import fetch
from s3t.data.pack import Pack, Package
from s3t.errors import DataError, ModelError

from .conftest import Tiny

CONTENT = {"usr/share/tiny/rows.txt": b"some rows\n", "usr/share/tiny/words.txt": b"some words\n"}
FILE = "tiny-data_1.0~git1-1_all.deb"
CONTROL = (
    "Package: tiny-data\nVersion: 1.0~git1-1\nArchitecture: all\nMaintainer: Nobody <no@body>\nDescription: none\n"
)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this machine: it reads a .deb")


def deb(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """Return a ``.deb`` made by hand (deb(5)), so that its names can be such as dpkg-deb would not write."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": Tiny.tar({"./control": CONTROL.encode()}, mode="w:xz"),
        "data.tar.xz": Tiny.tar(files, links, mode="w:xz"),
    }
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


DEB = deb({f"./{name}": data for name, data in CONTENT.items()})


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that stands for the machine's root; it is empty."""
    monkeypatch.setattr(origins, "ROOT", tmp_path / "machine")
    return tmp_path / "machine"


@pytest.fixture
def pinned(tiny: Any, register: Callable[[Pack], Pack]) -> Callable[..., Pack]:
    """Makes the pack ``tiny`` of the Debian package whose ``.deb`` has these bytes."""

    def pin(archive: bytes, **changes: Any) -> Pack:
        package = Package("tiny-data", "1.0~git1-1", tiny.pins(CONTENT), deb=tiny.digest(archive))
        return register(tiny.pack(packages=(package,), version="1.0~git1-1", **changes))

    return pin


def carry(cache: Path, archive: bytes) -> Path:
    (cache / "packages").mkdir(parents=True)
    (cache / "packages" / FILE).write_bytes(archive)
    return cache / "packages" / FILE


def only_tools(monkeypatch: pytest.MonkeyPatch, folder: Path, **scripts: str) -> None:
    """Let the machine have these tools alone, beside dpkg-deb and the shell's."""
    folder.mkdir()
    for name, script in scripts.items():
        tool = folder / name.replace("_", "-")
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    real = shutil.which
    known = {path.name: str(path) for path in folder.iterdir()}
    monkeypatch.setattr(shutil, "which", lambda name: known.get(name) or (real(name) if name == "dpkg-deb" else None))


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"packages"} if cache.exists() else set()


def unexpected(*_: object, **__: object) -> None:
    pytest.fail("a tool was called")


BOTH = {"rows.txt": b"some rows\n", "words.txt": b"some words\n"}


@needs_dpkg
def test_apt_get_brings_the_pinned_version_into_a_folder_of_its_own(
    pinned: Callable[..., Pack], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = pinned(DEB)
    (tmp_path / "mirror.deb").write_bytes(DEB)
    script = f'echo "$@" $LC_ALL > {tmp_path}/asked; pwd >> {tmp_path}/asked; cp {tmp_path}/mirror.deb {FILE}'
    only_tools(monkeypatch, tmp_path / "tools", apt_get=script)
    lines: list[str] = []
    folder = fetch("tiny", cache, lines.append)
    assert folder == cache / pack.folder
    assert held(folder) == BOTH
    assert lines == ["downloading tiny-data=1.0~git1-1"]
    asked, where = (tmp_path / "asked").read_text().splitlines()
    assert asked == "-qq download tiny-data=1.0~git1-1 C"
    assert Path(where).is_relative_to(cache), "nothing may lie where the user works"
    assert entries(cache) == {pack.folder}
    monkeypatch.setattr(subprocess, "run", unexpected)
    assert fetch("tiny", cache) == folder


@needs_dpkg
def test_lists_of_our_own_are_made_where_the_machines_do_not_have_the_package(
    pinned: Callable[..., Pack], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = pinned(DEB)
    (tmp_path / "mirror.deb").write_bytes(DEB)
    script = f"""
    lists=/nowhere
    for word in "$@"; do case "$word" in Dir::State::Lists=*) lists="${{word#*=}}";; esac; done
    case "$*" in
        *update) touch "$lists/fresh" left-by-update ;;
        *) if [ -e "$lists/fresh" ]; then cp {tmp_path}/mirror.deb {FILE} && rm left-by-update
           else touch {FILE}.partial; echo "E: Unable to locate package" >&2; exit 100; fi ;;
    esac"""
    only_tools(monkeypatch, tmp_path / "tools", apt_get=script)
    assert held(fetch("tiny", cache)) == BOTH
    assert entries(cache) == {pack.folder}


@needs_dpkg
def test_what_dpkg_deb_builds_is_read(
    tiny: Any, pinned: Callable[..., Pack], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    for name, data in {**CONTENT, "DEBIAN/control": CONTROL.encode()}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, tmp_path / FILE], check=True)
    pinned((tmp_path / FILE).read_bytes())
    carry(cache, (tmp_path / FILE).read_bytes())
    only_tools(monkeypatch, tmp_path / "tools")
    assert held(fetch("tiny", cache)) == BOTH


def test_installed_files_with_the_pinned_digests_are_read(
    pinned: Callable[..., Pack], cache: Path, nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(DEB)
    for name, data in CONTENT.items():
        (nothing_installed / name).parent.mkdir(parents=True, exist_ok=True)
        (nothing_installed / name).write_bytes(data)
    monkeypatch.setattr(subprocess, "run", unexpected)
    assert held(fetch("tiny", cache)) == BOTH


@needs_dpkg
@pytest.mark.parametrize("change", ["other", "absent"])
def test_other_installed_files_are_passed_over(
    pinned: Callable[..., Pack], cache: Path, nothing_installed: Path, change: str
) -> None:
    pinned(DEB)
    carry(cache, DEB)
    for name, data in CONTENT.items():
        (nothing_installed / name).parent.mkdir(parents=True, exist_ok=True)
        (nothing_installed / name).write_bytes(data)
    last = nothing_installed / "usr/share/tiny/words.txt"
    last.unlink()
    if change == "other":
        last.write_bytes(b"other words\n")
    assert held(fetch("tiny", cache)) == BOTH


@pytest.mark.parametrize(("kind", "error"), [("data", DataError), ("model", ModelError)])
@pytest.mark.parametrize("origin", ["carried", "downloaded"])
def test_another_archive_is_refused_before_it_is_opened(
    tiny: Any,
    pinned: Callable[..., Pack],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: type[Exception],
    origin: str,
) -> None:
    """Though all its members are the pinned ones."""
    other = deb({**{f"./{name}": data for name, data in CONTENT.items()}, "./more": b""})
    pinned(DEB, kind=kind)
    monkeypatch.setattr(origins, "archive", unexpected)
    if origin == "carried":
        remedy = f"delete {carry(cache, other)} and bring tiny-data=1.0~git1-1 from Debian"
    else:
        (tmp_path / "mirror.deb").write_bytes(other)
        only_tools(monkeypatch, tmp_path / "tools", apt_get=f"cp {tmp_path}/mirror.deb {FILE}")
        remedy = "apt-get took it from a mirror that serves other bytes (see `apt-cache policy tiny-data`)"
    with pytest.raises(error) as caught:
        fetch("tiny", cache)
    message = str(caught.value)
    assert f"{FILE} is not the file that pack 'tiny' pins: expected SHA-256 {tiny.digest(DEB)}, found" in message
    assert tiny.digest(other) in message
    assert remedy in message
    assert entries(cache) == set()


ROWS, WORDS = "./usr/share/tiny/rows.txt", "./usr/share/tiny/words.txt"


@needs_dpkg
@pytest.mark.parametrize(
    ("files", "links", "fault"),
    [
        ({WORDS: b"other words\n"}, {}, rf"usr/share/tiny/words\.txt of {FILE} is not the file that pack 'tiny' pins"),
        ({}, {}, rf"{FILE} holds no regular file usr/share/tiny/words\.txt"),
        ({f"{WORDS}2": b"some words\n"}, {WORDS: "words.txt2"}, rf"{FILE} holds no regular file usr/share/tiny/words"),
        ({}, {WORDS: "/etc/hostname"}, rf"{FILE} holds no regular file usr/share/tiny/words"),
    ],
    ids=["other", "absent", "link", "link outside"],
)
def test_a_member_that_is_not_the_pinned_file_is_refused(
    pinned: Callable[..., Pack], cache: Path, files: dict[str, bytes], links: dict[str, str], fault: str
) -> None:
    """The archive is the pinned one, and the pins of what is in it were a slip. A link is not followed."""
    archive = deb({ROWS: b"some rows\n", **files}, links)
    pinned(archive)
    carry(cache, archive)
    with pytest.raises(DataError, match=fault):
        fetch("tiny", cache)
    assert entries(cache) == set()


@needs_dpkg
def test_names_in_a_package_cannot_reach_outside_the_cache(
    pinned: Callable[..., Pack], cache: Path, tmp_path: Path
) -> None:
    evil = {"./../../evil.txt": b"x", "../evil.txt": b"x", str(tmp_path / "evil.txt"): b"x"}
    archive = deb({**evil, **{f"./{name}": data for name, data in CONTENT.items()}})
    pinned(archive)
    carry(cache, archive)
    assert held(fetch("tiny", cache)) == BOTH
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {*BOTH, FILE}


@needs_dpkg
@pytest.mark.parametrize("archive", [b"no archive at all", DEB[:100], DEB[:-60]], ids=["noise", "head", "cut"])
def test_a_damaged_package_is_one_clear_error(pinned: Callable[..., Pack], cache: Path, archive: bytes) -> None:
    pinned(archive)
    carry(cache, archive)
    with pytest.raises(DataError, match=r"an archive of pack 'tiny' is damaged \(dpkg-deb.+\): fetch it again"):
        fetch("tiny", cache)
    assert entries(cache) == set()


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_a_machine_without_debians_tools_is_told_the_way_round(
    pinned: Callable[..., Pack], cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    pinned(DEB)
    if missing == "dpkg-deb":
        carry(cache, DEB)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "run", unexpected)
    told = (
        rf"pack 'tiny' comes in a Debian package, and {missing} is not on this machine: run `s3t fetch tiny` on a machine with "
        r"Debian and copy the folder tiny-1\.0~git1-1 from the cache there into the cache here"
    )
    with pytest.raises(DataError, match=told):
        fetch("tiny", cache)
    assert entries(cache) == set()


def test_the_way_round_works(
    tiny: Any, pinned: Callable[..., Pack], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache / pinned(DEB).folder
    folder.mkdir(parents=True)
    for name, data in BOTH.items():
        (folder / name).write_bytes(data)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fetch("tiny", cache) == folder
    (folder / "rows.txt").write_bytes(b"other rows\n")
    with pytest.raises(DataError, match=r"rows\.txt is not the file that pack 'tiny' pins"):
        fetch("tiny", cache)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'W: slow' >&2; echo 'E: Unable to locate package' >&2; echo note >&2; exit 100",
            "E: Unable to locate package",
        ),
        ("case $2 in download) echo 'E: first' >&2;; *) echo 'E: second' >&2;; esac; exit 100", "E: first"),
        ("exit 3", "exit status 3, 0 archives"),
        ("exit 0", "exit status 0, 0 archives"),
    ],
)
def test_a_failing_apt_get_is_quoted(
    pinned: Callable[..., Pack], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    pinned(DEB)
    only_tools(monkeypatch, tmp_path / "tools", apt_get=script)
    with pytest.raises(DataError) as caught:
        fetch("tiny", cache)
    message = str(caught.value)
    assert (
        f"apt-get could not bring tiny-data=1.0~git1-1 for pack 'tiny' ({reason}). On a connected machine run "
        in message
    )
    assert "`apt-get update && apt-get download tiny-data=1.0~git1-1` and copy the archive into" in message
    assert str(cache / "packages") in message
    assert list(cache.iterdir()) == []


def test_a_disk_that_is_full_for_apt_get_is_said(
    pinned: Callable[..., Pack], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(DEB)
    only_tools(monkeypatch, tmp_path / "tools", apt_get=f"echo 'E: write (28: {os.strerror(28)})' >&2; exit 100")
    with pytest.raises(DataError, match=r"no space left in .*cache for pack 'tiny'"):
        fetch("tiny", cache)


@pytest.mark.parametrize(
    "name", ["tiny-data_1.0_all.deb", "tiny-data-more_1.0~git1-1_all.deb", "tiny-data_1.0~git1-1.whl"]
)
def test_another_package_is_not_taken_for_it(pinned: Callable[..., Pack], cache: Path, name: str) -> None:
    (package,) = pinned(DEB).packages
    carry(cache, DEB).rename(cache / "packages" / name)
    assert origins.carried(package, cache / "packages") is None
