"""What all executors have in common: places with a worker each, assignments handed over, workers lost and replaced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Self

from s3t.assignments import Assignment
from s3t.errors import RunError
from s3t.executors.station import VERSION, Kit, pack, received
from s3t.training import Trained


class WorkerLost(RunError):
    """A worker died, or its machine did, with all that was handed to it: nothing of that was stored."""


class Executor(ABC):
    """``number`` places where nodes are trained at the same time, each with a worker that keeps the base model.

    A place does one assignment after another, in the order they were handed over. Use as a context manager. Raises RunError
    at the start if a worker cannot load the base model or computes otherwise than the first: bits depend on the machine, so
    one build's workers must be alike.
    """

    losses: tuple[type[Exception], ...]
    """What is raised when a worker is gone."""

    def __init__(self, kits: Sequence[Kit]) -> None:
        self._kits = kits
        self.number = len(kits)
        self._alike: dict[str, Any] = {}

    @property
    def environment(self) -> dict[str, Any]:
        """What every worker computes with, as it goes into the keys of the nodes that they train."""
        return {name: value for name, value in self._alike.items() if name != VERSION}

    def __enter__(self) -> Self:
        try:
            self._open()
            for place in range(self.number):
                self._hire(place)
            self._admit(range(self.number))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, place: int, given: Assignment) -> Future[Any]:
        """Hand an assignment to the worker at ``place``; its result goes through :meth:`outcome`. WorkerLost if it is gone."""
        with self._told():
            return self._call(place, "work", pack(given))

    def outcome(self, future: Future[Any]) -> Trained:
        """Return a finished assignment's outcome, or raise what it raised. WorkerLost if its worker is gone."""
        with self._told():
            done = future.result()
        return received(done)

    def replace(self, place: int) -> None:
        """Put a new worker in the place of one that is gone. RunError if it is another kind of machine."""
        self._dismiss(place)
        with self._told():
            self._hire(place)
        self._admit([place])

    def _admit(self, places: Sequence[int]) -> None:
        with self._told():
            told = [future.result() for future in [self._call(place, "introduce") for place in places]]
        for place, found in zip(places, told, strict=True):
            known = self._alike or found
            if differing := [f"{k}: {known.get(k)!r} and {v!r}" for k, v in found.items() if known.get(k) != v]:
                raise RunError(
                    f"worker {place} computes otherwise than the others ({'; '.join(differing)}), and bits depend on that; "
                    "use machines of one kind, with the same versions"
                )
            self._alike = known

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self.losses as error:
            raise WorkerLost(
                "a worker process died (out of memory?); what is finished is kept: try fewer workers"
            ) from error

    @abstractmethod
    def close(self) -> None:
        """Let all workers go."""

    def _open(self) -> None:  # noqa: B027
        """Prepare for workers; most executors need nothing."""

    @abstractmethod
    def _hire(self, place: int) -> None:
        """Start a worker, a :class:`Station`, at ``place``, without waiting for it to be ready."""

    @abstractmethod
    def _dismiss(self, place: int) -> None:
        """Make sure that the worker at ``place`` no longer runs."""

    @abstractmethod
    def _call(self, place: int, method: str, *given: Any) -> Future[Any]:
        """Call a method of the station at ``place``."""
