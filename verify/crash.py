"""Ending a process at a chosen write: a forked child dies with ``os._exit``, so that no handler and no clean-up runs.

Write points are: before each ``fsync``, ``fdatasync``, ``rename``, ``replace``, ``link``, ``mkdir``, ``unlink`` and ``rmdir``,
before each statement of SQLite that is no SELECT and each end of its transactions, and before and in the middle of each
``pwrite`` and each write to a binary file. What the kernel had in memory is kept; a loss of power, which takes that too, is in
:mod:`verify.power`, at the same points.
"""

from __future__ import annotations

import builtins
import io
import os
import sqlite3
import threading
import warnings
from collections.abc import Callable
from typing import Any

from s3t.errors import S3TError

CRASHED, FINISHED, FAILED = 77, 78, 79
CALLS = ("rename", "replace", "link", "mkdir", "fsync", "fdatasync", "unlink", "rmdir")


class Points:
    """The write points of this process, once :meth:`arm` was called; threads pass one after the other, and what they do too."""

    def __init__(self) -> None:
        self._passing = threading.RLock()

    def point(self) -> None:
        """Come to a write point: nothing of it has happened yet."""
        raise NotImplementedError

    def passed(self, name: str, given: Any) -> None:
        """Leave the call ``name`` of ``os``, whose first argument was ``given``, or "sqlite" with the connection."""

    def around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``real`` with a point before it."""

        def step(*args: Any, **options: Any) -> Any:
            with self._passing:
                self.point()
                done = real(*args, **options)
                self.passed(name, args[0] if args else None)
                return done

        return step

    def arm(self) -> None:
        """Put a point before every write of this process, for good: only ever called in a child."""
        for name in CALLS:
            setattr(os, name, self.around(name, getattr(os, name)))
        os.pwrite = _halving(self, os.pwrite)
        connect, connection = sqlite3.connect, _connection(self)
        sqlite3.connect = lambda *args, **options: connect(*args, **{"factory": connection} | options)
        io.open = builtins.open = _opener(self, io.open)


class Kill(Points):
    """Ends this process at its ``at``-th write point (0: never); ``points`` counts them."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.points = at, 0

    def point(self) -> None:
        """Pass one write point, or end here."""
        with self._passing:
            self.points += 1
            if self.points == self.at:
                os._exit(CRASHED)


def _halving(points: Points, real: Callable[[int, Any, int], int]) -> Callable[[int, Any, int], int]:
    def step(file: int, content: Any, offset: int) -> int:
        points.point()
        half = real(file, content[: len(content) // 2], offset)
        points.point()
        return half + real(file, content[half:], offset + half)

    return step


def _connection(points: Points) -> type[sqlite3.Connection]:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> Any:
            real = super().execute
            return real(sql, *values) if sql.startswith("SELECT") else self._pass(real, sql, *values)

        def executemany(self, *args: Any) -> Any:
            return self._pass(super().executemany, *args)

        def executescript(self, *args: Any) -> Any:
            return self._pass(super().executescript, *args)

        def __exit__(self, *args: Any) -> Any:
            return self._pass(super().__exit__, *args)

        def _pass(self, real: Callable[..., Any], *args: Any) -> Any:
            return points.around("sqlite", lambda _, *args: real(*args))(self, *args)

    return Connection


def _opener(points: Points, real: Callable[..., Any]) -> Callable[..., Any]:
    class Halved(io.BufferedWriter):
        def write(self, content: Any) -> int:
            points.point()
            half = len(content) // 2
            super().write(content[:half])
            self.flush()
            points.point()
            return half + super().write(content[half:])

    def step(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode in ("wb", "bw", "xb", "bx"):
            return Halved(io.FileIO(file, mode.replace("b", "")))
        return real(file, mode, *args, **options)

    return step


def why_not() -> str:
    """Return why no process can be killed here, or nothing: a fork takes neither a pool of threads nor CUDA along."""
    import torch

    if not hasattr(os, "fork"):
        return "this platform has no fork"
    if torch.get_num_threads() != 1:
        return f"torch runs on {torch.get_num_threads()} threads, which a fork does not take along"
    return "CUDA is in use, which a fork does not survive" if torch.cuda.is_initialized() else ""  # type: ignore[no-untyped-call]


def killed(work: Callable[[], object], at: int) -> bool:
    """Run ``work`` in a child that dies at write ``at``; return whether it died (it may have come to its end before).

    Raises S3TError with the child's message if ``work`` raised.
    """
    code, said = in_child(work, Kill(at))
    if code not in (CRASHED, FINISHED):
        raise S3TError(f"the process that was to be killed at write {at} failed by itself ({said or code})")
    return code == CRASHED


def in_child(work: Callable[[], object], points: Points) -> tuple[int, str]:
    """Run ``work`` in a forked child with ``points`` armed; return its exit code and what went wrong, if it raised."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # pragma: no cover
        code = FAILED
        try:
            points.arm()
            work()
            code = FINISHED
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode()[:4096])
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said
