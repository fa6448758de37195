"""Killing a process at a chosen write."""

from __future__ import annotations

import builtins
import io
import itertools
import os
import sqlite3
from pathlib import Path

import pytest

from s3t.errors import S3TError
from verify import crash


def _writes(folder: Path) -> None:
    (folder / "a").write_bytes(b"0123456789")
    (folder / "b").mkdir()
    with sqlite3.connect(folder / "c.sqlite") as db:
        db.execute("CREATE TABLE t(x)")
        db.execute("INSERT INTO t VALUES (1)")
    os.rename(folder / "b", folder / "d")


def test_a_process_dies_at_every_write(tmp_path: Path) -> None:
    ends = []
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        died = crash.killed(lambda folder=folder: _writes(folder), at)
        held = (folder / "a").read_bytes() if (folder / "a").exists() else None
        ends.append((held, sorted(path.name for path in folder.iterdir() if path.suffix != ".sqlite-journal")))
        if not died:
            break
    assert at == 8, "two in a file, mkdir, two statements, the end of the transaction, rename; then none"
    assert [held for held, _ in ends[:3]] == [b"", b"01234", b"0123456789"]
    assert ends[-1][1] == ["a", "c.sqlite", "d"] and ends[-2][1] == ["a", "b", "c.sqlite"]


def test_an_overwriting_in_place_is_cut_in_half_too(tmp_path: Path) -> None:
    def overwrite(path: Path) -> None:
        handle = os.open(path, os.O_RDWR)
        assert os.pwrite(handle, b"9876", 2) == 4
        os.fdatasync(handle)
        os.close(handle)

    held = []
    for at in itertools.count(1):
        path = tmp_path / str(at)
        path.write_bytes(b"01234567")
        died = crash.killed(lambda path=path: overwrite(path), at)
        held.append(path.read_bytes())
        if not died:
            break
    assert held == [b"01234567", b"01984567", b"01987667", b"01987667"]


def test_write_points_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in (
        (os, (*crash.CALLS, "pwrite")),
        (sqlite3, ("connect",)),
        (io, ("open",)),
        (builtins, ("open",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    counting = crash.Kill(0)
    counting.arm()
    _writes(tmp_path)
    with sqlite3.connect(tmp_path / "c.sqlite") as db:
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]
        assert counting.points == 7
        db.executemany("INSERT INTO t VALUES (?)", [(2,), (3,)])
        db.executescript("DROP TABLE t")
        assert counting.points == 9
    db.close()
    (tmp_path / "text").write_text("text is written whole")
    assert counting.points == 10, "the end of the transaction"
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    last = crash.Kill(2)
    last.point()
    assert not ended
    last.point()
    assert ended == [crash.CRASHED]


def test_a_process_that_fails_by_itself_is_no_crash() -> None:
    def work() -> None:
        raise ValueError("no such thing")

    with pytest.raises(S3TError, match=r"at write 3 failed by itself .ValueError: no such thing"):
        crash.killed(work, 3)
