"""What a simulated loss of power leaves: no more than was synchronised, and what is possible of the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from s3t.errors import S3TError
from verify import power
from verify.power import Cut, Folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "said").write_bytes(b"")
    return tmp_path / "root"


def _cuts(root: Path, work: Callable[[], object]) -> list[Cut]:
    return power.recorded(work, root, root.parent / "said")


def _kept(cut: Cut) -> dict[str, bytes | None]:
    return {name: content for name, (_, content) in power.disk(cut).items()}


def _possible(cut: Cut, tries: int = 200) -> set[tuple[tuple[str, bytes | None], ...]]:
    disks = (power.disk(cut, Random(seed)) for seed in range(tries))
    return {tuple(sorted((name, content) for name, (_, content) in disk.items())) for disk in disks}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_a_disk_as_it_was_is_kept(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").write_bytes(b"1")
    assert _kept(_cuts(root, lambda: None)[-1]) == {"a": None, "a/b": b"1"}


def test_content_and_name_are_synchronised_apart(root: Path) -> None:
    def work() -> None:
        (root / "a").write_bytes(b"one")  # neither
        (root / "b").write_bytes(b"two")
        _sync(root / "b")  # its content alone
        _sync(root)  # all names
        (root / "c").write_bytes(b"three")
        _sync(root / "c")

    last = _cuts(root, work)[-1]
    assert _kept(last) == {"a": b"", "b": b"two"}
    found = [dict(disk) for disk in _possible(last)]
    assert {disk["a"] for disk in found} >= {b"", b"one"} and {disk["b"] for disk in found} == {b"two"}
    assert {disk.get("c") for disk in found} == {None, b"three"}


def test_writes_are_torn_at_sectors_and_out_of_order(root: Path) -> None:
    (root / "a").write_bytes(b"o" * 1024)

    def work() -> None:
        handle = os.open(root / "a", os.O_RDWR)
        os.pwrite(handle, b"n" * 512, 0)
        os.pwrite(handle, b"n" * 512, 512)
        os.mkdir(root / "b")  # a point
        os.fsync(handle)

    cuts = _cuts(root, work)
    before = next(cut for cut in cuts if len(cut.items) == 2 and cut.items[1].now == b"n" * 1024)  # type: ignore[comparison-overlap]
    sectors = {(dict(disk)["a"] or b"")[::512] for disk in _possible(before)}
    assert {b"oo", b"nn", b"on", b"no"} <= sectors
    assert _kept(before)["a"] == b"o" * 1024 and _kept(cuts[-1])["a"] == b"n" * 1024


def test_a_rename_is_there_or_not(root: Path) -> None:
    (root / "a").write_bytes(b"1")
    (root / "b").write_bytes(b"2")
    last = _cuts(root, lambda: os.replace(root / "a", root / "b"))[-1]
    assert _kept(last) == {"a": b"1", "b": b"2"}
    assert _possible(last) == {(("a", b"1"), ("b", b"2")), (("b", b"1"),)}


def test_removals_come_back_in_parts_until_the_folder_is_synchronised(root: Path) -> None:
    (root / "a").mkdir()
    for name in "xyz":
        (root / "a" / name).write_bytes(name.encode())

    def work() -> None:
        shutil.rmtree(root / "a")
        os.mkdir(root / "new")  # may well have the same number on the disk
        _sync(root)

    cuts = _cuts(root, work)
    assert _kept(cuts[-2]) == {"a": None, "a/x": b"x", "a/y": b"y", "a/z": b"z"}
    parts = {tuple(name for name, _ in disk if name.startswith("a/")) for disk in _possible(cuts[-2])}
    assert len(parts) == 8
    assert _kept(cuts[-1]) == {"new": None}


def test_a_link_has_two_names(root: Path) -> None:
    (root / "a").write_bytes(b"1")
    assert _possible(_cuts(root, lambda: os.link(root / "a", root / "b"))[-1]) == {
        (("a", b"1"),),
        (("a", b"1"), ("b", b"1")),
    }


@pytest.mark.parametrize(("setting", "kept"), [("EXTRA", True), ("FULL", False), ("NORMAL", False), ("OFF", False)])
def test_sqlite_is_believed_only_what_it_promises(root: Path, setting: str, kept: bool) -> None:
    path = root / "a.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t(x)")
    empty = path.read_bytes()

    def work() -> None:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute(f"PRAGMA synchronous = {setting}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("COMMIT")
        db.execute("PRAGMA user_version")

    cuts = _cuts(root, work)
    contents = [_kept(cut)["a.sqlite"] for cut in cuts]
    assert contents[:4] == [empty] * 4, "nothing before COMMIT"
    assert (contents[-1] != empty) is kept
    assert not any(name.endswith("journal") for cut in cuts for name in power.disk(cut))


def test_what_was_said_and_modes_are_on_record(root: Path) -> None:
    said = root.parent / "said"

    def work() -> None:
        handle = os.open(root / "key", os.O_CREAT | os.O_WRONLY, 0o600)
        os.fsync(handle)
        _sync(root)
        with said.open("ab") as file:
            file.write(b"\n")
        os.mkdir(root / "a")

    cuts = _cuts(root, work)
    assert [cut.said for cut in cuts][-1] == 1 and cuts[0].said == 0
    power.lay(power.disk(cuts[-1]), root / "a")
    assert (root / "a" / "key").stat().st_mode & 0o777 == 0o600


def test_work_that_fails_by_itself_is_told(root: Path) -> None:
    def work() -> None:
        raise ValueError("no such thing")

    with pytest.raises(S3TError, match=r"to be recorded failed by itself .ValueError: no such thing"):
        _cuts(root, work)


def test_names_that_change_places() -> None:
    folder = Folder(0o755, {"a": 1, "b": 2})
    assert folder.seen({"a": 1, "b": 2}) is folder
    assert folder.seen({"b": 1}).since == ({"b": 1, "a": None},)
    assert folder.seen({"a": 1, "b": 2, "c": 3, "d": 4}).since == ({"c": 3}, {"d": 4})
    assert folder.seen({}).now == {} and len(folder.seen({}).since) == 2
