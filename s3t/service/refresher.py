"""A refresh beside the service: a thread that looks whether one is due, and a process of its own that does it.

The process does what ``s3t refresh`` does, at a low priority, under the run's build lock; it ends with the service, however
that ends. Predictions follow the ledger, so what it finishes is served without being told of.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from s3t import runs
from s3t.damage import Damage
from s3t.errors import S3TError, ServiceError
from s3t.facts import Facts
from s3t.plan import Plan
from s3t.refreshing import NEVER, Policy, Standing, due, standing
from s3t.requests import sweep
from s3t.system import System

NICE = 10
"""How far the process steps back behind others, where the platform has that."""
LOOK = 0.25
"""Seconds between two looks at the ledger's head."""
DONE = "done"


def build(run: Path) -> None:
    """Do what ``s3t refresh`` does."""
    with closing(System.open(run)) as system:
        system.refresh()


@dataclass(frozen=True)
class Refreshing:
    """When and how. ``rest``: seconds between two starts, at least. ``threads``: of the process; None: as many as the run was
    trained on. ``log`` gets a line for each failure. ``work``: what the process does, given the run; a module's function.

    ServiceError for what is not positive.
    """

    policy: Policy = NEVER
    rest: float = 60.0
    threads: int | None = None
    log: Callable[[str], None] = lambda line: None
    work: Callable[[Path], None] = build

    def __post_init__(self) -> None:
        if not 0 < self.rest < float("inf"):
            raise ServiceError(f"refresh_rest={self.rest:g} is not possible; give seconds above 0")
        if self.threads is not None and self.threads < 1:
            raise ServiceError(f"refresh_threads={self.threads} is not possible; give a number of at least 1")


class Doing(Protocol):
    """A refresh under way."""

    def ended(self) -> str | None:
        """Return how it ended (``done``, or why not, without any content), or None while it runs."""

    def stop(self) -> None:
        """End it, and return when it has ended."""


Begin = Callable[[Refreshing, Path, int], Doing]


class Child:
    """A refresh in a process of its own."""

    def __init__(self, how: Refreshing, run: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._told, telling = context.Pipe(duplex=False)
        self._process = context.Process(target=_begin, args=(how.work, run, threads, telling), daemon=True)
        self._process.start()
        telling.close()

    def ended(self) -> str | None:
        """As in :class:`Doing`."""
        if self._process.is_alive():
            return None
        with closing(self._told):
            try:
                return str(self._told.recv())
            except EOFError:
                return f"failed: it died (exit code {self._process.exitcode})"

    def stop(self) -> None:
        """As in :class:`Doing`. What it was training is lost, what it had finished is kept."""
        self._process.terminate()
        self._process.join()
        self._told.close()


def _begin(work: Callable[[Path], None], run: Path, threads: int, telling: Connection) -> None:
    """Be the process: what it would print goes nowhere, for it may have contents in it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(NICE)
    try:
        import torch

        torch.set_num_threads(threads)
        work(run)
        outcome = DONE
    except BaseException as error:
        outcome = f"failed: {type(error).__name__}"
    telling.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class Told:
    """What the status says: the policy, whether a refresh runs, how many have ended, when and how the last one did."""

    policy: str
    running: bool = False
    ended: int = 0
    last_ended: str | None = None
    last_outcome: str | None = None


class Refresher:
    """Keeps one run refreshed. :meth:`open`, :meth:`look` and :meth:`stop` are for one thread; :meth:`start` has one for them.

    ``damage``: what those who serve know of damaged nodes, which count as missing here as well.
    ServiceError for an eager method, which trains within each deletion, or a policy that the run cannot meet.
    """

    def __init__(
        self,
        run: Path,
        plan: Plan,
        how: Refreshing,
        begin: Begin = Child,
        clock: Callable[[], float] = time.monotonic,
        damage: Damage | None = None,
    ) -> None:
        self._policy = Policy.of(how.policy.name, plan.layout.slices)
        if plan.eager and self._policy != NEVER:
            raise ServiceError(f"{plan.method} trains within each deletion; leave out refresh={how.policy.name!r}")
        self._path, self._how, self._begin, self._clock = run, how, begin, clock
        self._stopping = threading.Event()
        self._damage = damage
        self._looking = ThreadPoolExecutor(1, "refresh")
        self._doing: Doing | None = None
        self._failed, self._stale = False, True
        self._rested = clock()
        self._told = Told(self._policy.name)

    def status(self) -> dict[str, Any]:
        """Return what the service's status says of refreshes, from any thread."""
        return asdict(self._told)

    def start(self) -> None:
        """Look from now on, in a thread, unless the policy is never to refresh."""
        if self._policy != NEVER:
            self._looking.submit(self.open).result()
            self._looking.submit(self._look_on)

    def close(self) -> None:
        """End what runs, and wait for it; what it had finished is kept, and the next refresh goes on there."""
        self._stopping.set()
        self._looking.shutdown()

    def _look_on(self) -> None:
        # a terminal's interrupt is for the service; processes begun here are ended by it, and inherit this
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with closing(self._run):
            while not self._stopping.wait(LOOK):
                try:
                    self.look()
                except Exception as error:  # the ledger is busy or damaged, or no process can be begun
                    self._note(f"failed: {type(error).__name__}")
            self.stop()

    def open(self) -> None:
        """Open the run in the calling thread. Raises what :func:`s3t.runs.open_run` raises."""
        self._run = runs.open_run(self._path, self._damage)
        self._facts = Facts(self._run.ledger, self._run.config.plan)
        self._stands, self._lost, self._headless = Standing((), 0, False, 0.0), frozenset[int](), False
        self._seq = self._last_trained()
        self._refreshed = self._clock() - self._age()

    def look(self) -> None:
        """Note the end of a refresh; begin one if it is due, none runs, and the last one began long enough ago."""
        if self._doing is not None:
            outcome = self._doing.ended()
            if outcome is None:
                return
            self._doing = None
            self._note(outcome)
            self._survey()
        changed, lost = self._facts.update(), self._run.damage.lost(self._facts)
        headless = not self._facts.has_head or bool(self._run.damage.features(self._facts))
        if changed or self._stale or (lost, headless) != (self._lost, self._headless):
            self._stands = standing(self._facts, lost, headless=headless)
            self._stale, self._lost, self._headless = False, lost, headless
            if self._last_trained() != self._seq:  # by the refresh that ended, or by `s3t refresh` beside the service
                self._seq, self._refreshed = self._last_trained(), self._clock()
        now = self._clock()
        stands = replace(self._stands, since=now - self._refreshed)
        if now >= self._rested and (due(self._policy, stands) or (self._failed and stands.missing)):
            self._rested = now + self._how.rest
            self._doing = self._begin(self._how, self._path, self._how.threads or trained_on(self._run))
            self._told = replace(self._told, running=True)

    def stop(self) -> None:
        """End the refresh that runs, if any, and erase what it left half done."""
        if self._doing is not None:
            self._doing.stop()
            self._doing = None
            self._note("stopped")

    def _note(self, outcome: str) -> None:
        self._failed = outcome != DONE
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._told = Told(self._policy.name, self._doing is not None, self._told.ended + 1, ended, outcome)
        if self._failed:
            self._tidy()
            if not self._stopping.is_set():
                self._rested = max(self._rested, self._clock() + self._how.rest)
                self._how.log(f"refresh {outcome}; tried again after {self._how.rest:g} s")

    def _tidy(self) -> None:
        """Erase what a process that was cut short left: nodes half written, activations of rows."""
        self._stale = True
        with suppress(S3TError, OSError, sqlite3.Error), self._run.building():
            sweep(self._run, self._facts)

    def _survey(self) -> None:
        """Read again what is known to be damaged and was not trained anew, for it may have been out of reach for a while."""
        self._facts.update()
        self._stale, lost = True, self._run.damage.lost(self._facts)
        self._run.damage.survey(self._facts, [fact for fact in self._facts.alive.values() if fact.seq in lost])

    def _last_trained(self) -> int:
        last = self._run.ledger.last("train")
        return last.seq if last else 0

    def _age(self) -> float:
        """Return how long ago the newest node was written, in seconds: what is known of refreshes before this service."""
        written = [0.0]
        for path in self._run.nodes.root.iterdir():
            with suppress(FileNotFoundError):  # a deletion by another process
                written.append(path.stat().st_mtime)
        return max(0.0, time.time() - max(written))


def trained_on(run: runs.Run) -> int:
    """Return the number of threads that a run's first node was trained on; 1 where none is on record."""
    first = next(run.ledger.entries("train"), None)
    threads = first.body["environment"].get("threads") if first else None
    return threads if isinstance(threads, int) and threads > 0 else 1
