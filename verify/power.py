"""Losing power at a chosen write: what a disk may hold then, where nothing is kept but what was synchronised.

A forked child does the work once, with the write points of :mod:`verify.crash`, and looks at every file and folder below a root
before and after each. From what it saw and from the calls of ``fsync`` and ``fdatasync`` follows, for every point, what is
certainly on the disk and what may be:

- a file holds what it held when it was last synchronised; of what was written since, any sector (512 or 4096 bytes) may be
  there in any version that it had at a point, and the file may have any length that it had. A file that was never synchronised
  may be empty, and so is one whose name alone is on the disk;
- a folder holds the names that it held when it was last synchronised; of what was created, renamed and removed in it since, any
  part may be there, in any order. A rename is there or not, as file systems with a journal keep it; to synchronise a file does
  not keep its name.

:func:`disk` gives one such disk: only what was synchronised, or with a part of the rest that random numbers draw.

What SQLite does is not seen, for it happens in C. Its databases are taken by what its documentation promises
(sqlite.org/pragma.html, "synchronous"): with EXTRA and a rollback journal a transaction is on the disk when COMMIT returns, and
one that did not come so far never was; the journal itself is left out. With any weaker setting its file is one like others,
which is less than SQLite promises. Not simulated, therefore: a loss of power inside of SQLite; a disk that lies about
synchronising, a sector that is half old and half new, or one that cannot be read any more; a process that is killed and a loss
of power before anything is synchronised after that. The order in which threads remove files is the one that occurred.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from s3t.errors import S3TError
from verify.crash import FINISHED, Points, in_child

ROOT = 0
EXTRA = 3
"""The setting of ``PRAGMA synchronous`` with which a commit is on the disk, the removal of its journal included."""

SECTORS = (512, 4096)
JOURNAL = "-journal"


@dataclass(frozen=True)
class File:
    """What a file holds for certain, and what it has held at points since then."""

    mode: int
    durable: bytes = b""
    since: tuple[bytes, ...] = ()

    @property
    def now(self) -> bytes:
        """What a process reads of it."""
        return self.since[-1] if self.since else self.durable

    def seen(self, content: bytes) -> File:
        """Return the file with another content, not yet synchronised."""
        return self if content == self.now else replace(self, since=(*self.since, content))

    def synchronised(self) -> File:
        """Return the file with what it holds now for certain."""
        return replace(self, durable=self.now, since=())

    def drawn(self, rng: Random) -> bytes:
        """Return what may be on the disk: some version, or a mixture of their sectors; what is beyond a version is zero."""
        versions = (self.durable, *self.since)
        whole = rng.choice(versions)
        if len(versions) == 1 or rng.random() < 0.5:
            return whole
        size, sector = len(whole), rng.choice(SECTORS)
        starts = range(0, size, sector)
        return b"".join(rng.choice(versions)[at : at + sector].ljust(sector, b"\0") for at in starts)[:size]


@dataclass(frozen=True)
class Folder:
    """The names that a folder holds for certain, with what they name, and the changes since then; None: no such name."""

    mode: int
    durable: Mapping[str, int] = field(default_factory=dict)
    since: tuple[Mapping[str, int | None], ...] = ()

    @property
    def now(self) -> dict[str, int]:
        """What a process reads of it."""
        return _changed(self.durable, self.since)

    def seen(self, names: Mapping[str, int]) -> Folder:
        """Return the folder with other names, not yet synchronised; both ends of a rename are one change."""
        before = self.now
        lost = {item: name for name, item in before.items() if name not in names}
        changes: list[dict[str, int | None]] = []
        for name, item in names.items():
            if before.get(name) != item:
                changes.append({name: item} | ({lost.pop(item): None} if item in lost else {}))
        changes += [{name: None} for name in lost.values()]
        return replace(self, since=(*self.since, *changes)) if changes else self

    def synchronised(self) -> Folder:
        """Return the folder with the names it holds now for certain."""
        return replace(self, durable=self.now, since=())

    def drawn(self, rng: Random) -> dict[str, int]:
        """Return names that may be on the disk."""
        return _changed(self.durable, [change for change in self.since if rng.random() < 0.5])


@dataclass(frozen=True)
class Cut:
    """A write point: the disk just before it, and how many bytes the work had said by then."""

    items: Mapping[int, File | Folder]
    said: int


def _changed(names: Mapping[str, int], changes: Any) -> dict[str, int]:
    found: dict[str, int | None] = dict(names)
    for change in changes:
        found |= change
    return {name: item for name, item in found.items() if item is not None}


class Recorder(Points):
    """Notes at every write point what a loss of power would leave below ``root``; ``said``: the file of what the work says."""

    def __init__(self, root: Path, said: Path) -> None:
        super().__init__()
        self._root, self._said = root, said
        self._numbers: dict[int, int] = {os.stat(root).st_ino: ROOT}
        self._count = 1
        self._items: dict[int, File | Folder] = {ROOT: Folder(os.stat(root).st_mode)}
        self.cuts: list[Cut] = []
        self._look()
        self._items = {number: item.synchronised() for number, item in self._items.items()}

    def point(self) -> None:
        """Note a write point."""
        with self._passing:
            self._look()
            self.cuts.append(Cut(dict(self._items), os.stat(self._said).st_size))

    def passed(self, name: str, given: Any) -> None:
        """Look at what a call did, and note what is synchronised by it."""
        self._look()
        if name in ("fsync", "fdatasync"):
            self._synchronise(os.fstat(given).st_ino)
        elif name == "sqlite" and _committed(given):
            for _, _, path in sqlite3.Connection.execute(given, "PRAGMA database_list"):
                self._synchronise(os.stat(path).st_ino)

    def _synchronise(self, inode: int) -> None:
        number = self._numbers.get(inode)
        if number is not None:
            self._items[number] = self._items[number].synchronised()

    def _look(self) -> None:
        """Note the content of every file and folder below the root, and forget the inodes of those that are gone."""
        alive = {os.stat(self._root).st_ino: ROOT}
        folders = [(self._root, ROOT)]
        for path, number in folders:
            names: dict[str, int] = {}
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                if entry.name.endswith(JOURNAL):
                    continue
                about = entry.stat(follow_symlinks=False)
                names[entry.name] = here = alive[about.st_ino] = self._number(about)
                if isinstance(self._items[here], Folder):
                    folders.append((Path(entry.path), here))
                else:
                    self._items[here] = self._items[here].seen(Path(entry.path).read_bytes())  # type: ignore[arg-type]
            self._items[number] = self._items[number].seen(names)  # type: ignore[arg-type]
        self._numbers = alive

    def _number(self, about: os.stat_result) -> int:
        if about.st_ino in self._numbers:
            return self._numbers[about.st_ino]
        number = self._numbers[about.st_ino] = self._count
        self._count += 1
        kind = Folder if stat.S_ISDIR(about.st_mode) else File
        self._items[number] = kind(stat.S_IMODE(about.st_mode))
        return number


def _committed(db: Any) -> bool:
    """Say whether ``db`` has just ended a transaction that SQLite promises to be on the disk."""
    if db.in_transaction or db.total_changes == getattr(db, "kept", 0):
        return False
    db.kept = db.total_changes
    ask: Callable[[str], Any] = lambda name: sqlite3.Connection.execute(db, f"PRAGMA {name}").fetchone()[0]  # noqa: E731
    return bool(ask("synchronous") == EXTRA and ask("journal_mode") in ("delete", "truncate", "persist"))


def recorded(work: Callable[[], object], root: Path, said: Path) -> list[Cut]:
    """Run ``work`` in a child and return its write points with the disk at each, and at last after its end.

    Raises S3TError with the child's message if ``work`` raised.
    """
    out = said.with_name(f"{said.name}.cuts")
    recorder = Recorder(root, said)

    def working() -> None:
        work()
        recorder.point()
        out.write_bytes(pickle.dumps(recorder.cuts))

    code, told = in_child(working, recorder)
    if code != FINISHED:
        raise S3TError(f"the work whose writes were to be recorded failed by itself ({told or code})")
    cuts: list[Cut] = pickle.loads(out.read_bytes())
    out.unlink()
    return cuts


def disk(cut: Cut, rng: Random | None = None) -> dict[str, tuple[int, bytes | None]]:
    """Return a disk that a loss of power at ``cut`` may leave: mode and content by path, a folder's content being None.

    Without ``rng`` it has what was synchronised and nothing else, otherwise a random part of the rest too.
    """
    found: dict[str, tuple[int, bytes | None]] = {}

    def visit(number: int, place: str) -> None:
        item = cut.items[number]
        if isinstance(item, File):
            found[place] = (item.mode, item.durable if rng is None else item.drawn(rng))
            return
        names = item.durable if rng is None else item.drawn(rng)
        if place:
            found[place] = (item.mode, None)
        for name, inner in sorted(names.items()):
            visit(inner, f"{place}/{name}" if place else name)

    visit(ROOT, "")
    return found


def lay(state: Mapping[str, tuple[int, bytes | None]], root: Path) -> None:
    """Write a disk of :func:`disk` into the folder ``root``, which is there and empty."""
    for name, (mode, content) in state.items():
        path = root / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        path.chmod(mode)
