"""In which order, and where, missing nodes are trained: one after the other, in groups, or by an executor's workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any

from s3t.assignments import Assignment
from s3t.building import Builder, Job
from s3t.contract import Cost, Progress
from s3t.errors import DivergedError, IsolationError, RunError
from s3t.executors import Executor, WorkerLost, hire
from s3t.graph import Node
from s3t.ledger import Superseded
from s3t.placing import AHEAD, Homes, ready
from s3t.runs import ACTIVATIONS
from s3t.training import Trained


def train_missing(builder: Builder, lost: set[Node], progress: Progress | None, *, down: bool) -> Cost:
    """Train all nodes that the plan misses, and those in ``lost``, parents first; return what it cost.

    ``down`` books the seconds as down time too. Engines that train groups get nodes of one stage, as many as are ready and they
    take. With workers, chains that share no node are trained at the same time, by as many workers as there are such chains.
    """
    if builder.numerics.together > 1:
        return _in_groups(builder, lost, progress, down)
    homes = Homes.among(builder.facts.missing(lost), builder.resources.workers)
    if homes.number < 2 and not (homes.number and builder.resources.executor == "ray"):
        return _in_turn(builder, lost, progress, down)
    return _together(builder, lost, progress, down, homes)


def _in_turn(builder: Builder, lost: set[Node], progress: Progress | None, down: bool) -> Cost:
    total, done = Cost(), 0
    while missing := builder.facts.missing(lost):
        node = missing[0]
        if progress:
            progress(done, done + len(missing), node.name)
        with _overtaken(builder) as attempt:
            total += builder.train(node, down=down)
            done += 1
            lost.discard(node)
        _check(builder, node, attempt["requests"])
    if progress:
        progress(done, done, "done")
    return total


def _in_groups(builder: Builder, lost: set[Node], progress: Progress | None, down: bool) -> Cost:
    total, done, failure = Cost(), 0, None
    while missing := builder.facts.missing(lost):
        there = ready(missing, ())
        stage = min(len(node.prefix) for node in there)
        jobs: list[Job] = []
        for node in [node for node in there if len(node.prefix) == stage][: builder.numerics.together]:
            with _overtaken(builder):
                jobs.append(builder.take(node))
        results: list[Trained | DivergedError] = []
        if progress and jobs:
            progress(done, done + len(missing), ", ".join(job.node.name for job in jobs))
        with _overtaken(builder):
            results = builder.train_group(jobs) if jobs else []
        for job, result in zip(jobs, results, strict=False):  # no results at all where a parent's files went away
            if isinstance(result, DivergedError):
                failure = failure or result
                continue
            with _overtaken(builder) as attempt:
                total += builder.finish(job, result, down=down)
                done += 1
                lost.discard(job.node)
            _check(builder, job.node, attempt["requests"])
        if failure:
            raise failure
    if progress:
        progress(done, done, "done")
    return total


def _together(
    builder: Builder,
    lost: set[Node],
    progress: Progress | None,
    down: bool,
    homes: Homes,
) -> Cost:
    total, done = Cost(), 0
    own, resources = builder.environment, builder.resources
    where = builder.run.path / ACTIVATIONS
    with hire(resources, builder.backbone, builder.run.config.kernel, homes.number, where) as workers:
        builder.environment = workers.environment
        handed = _Handed(workers, homes, resources.retries)
        try:
            while True:
                missing = builder.facts.missing(lost)
                for node in ready(missing, handed.nodes()):
                    if handed.waiting(node) < AHEAD:
                        with _overtaken(builder):
                            handed.over(*builder.prepare(node))
                if not missing:
                    break
                if handed.running and progress:
                    progress(done, done + len(missing), next(iter(handed.running.values())).node.name)
                for job, trained in handed.back():
                    with _overtaken(builder) as attempt:
                        total += builder.finish(job, trained, down=down)
                        done += 1
                        lost.discard(job.node)
                    _check(builder, job.node, attempt["requests"])
        finally:
            builder.environment = own
    if progress:
        progress(done, done, "done")
    return total


class _Handed:
    """What workers have been handed, and have not given back. A worker that dies costs the node that it had in hand."""

    def __init__(self, workers: Executor, homes: Homes, retries: int) -> None:
        self.running: dict[Future[Any], Job] = {}
        self._workers = workers
        self._homes = homes
        self._retries = retries
        self._losses: Counter[Node] = Counter()

    def nodes(self) -> set[Node]:
        return {job.node for job in self.running.values()}

    def waiting(self, node: Node) -> int:
        """Return how many assignments this node's worker has."""
        return sum(self._homes.of(job.node) == self._homes.of(node) for job in self.running.values())

    def over(self, job: Job, given: Assignment) -> None:
        """Hand a node to its worker. One that is gone is replaced, and the node is handed out again by the next round."""
        try:
            self.running[self._workers.submit(self._homes.of(job.node), given)] = job
        except WorkerLost as error:
            self._replace(job, error)

    def back(self) -> Iterator[tuple[Job, Trained]]:
        """Wait for some to be done, and give them. Whatever went with a worker is missing again, as the plan says."""
        for future in wait(self.running, return_when=FIRST_COMPLETED).done if self.running else ():
            if job := self.running.pop(future, None):
                try:
                    trained = self._workers.outcome(future)
                except WorkerLost as error:
                    self._replace(job, error)
                else:
                    yield job, trained

    def _replace(self, job: Job, error: WorkerLost) -> None:
        place = self._homes.of(job.node)
        theirs = {f: other for f, other in self.running.items() if self._homes.of(other.node) == place}
        gone = {f: other for f, other in theirs.items() if not f.done() or f.exception()}
        for future in gone:
            del self.running[future]
        # In the order of handing over, the first that did not come back was in hand: a deeper node waits for its parent.
        first = min([job, *gone.values()], key=lambda one: one.started)
        self._losses[first.node] += 1
        if self._losses[first.node] > self._retries:
            raise RunError(
                f"{first.node.name} was lost with its worker {self._losses[first.node]} times (out of memory?); what is "
                "finished is kept: try fewer workers"
            ) from error
        self._workers.replace(place)


@contextmanager
def _overtaken(builder: Builder) -> Iterator[dict[str, int]]:
    """Let the body fail if a deletion by another process overtook it: the node is then trained again without the record."""
    before = builder.run.ledger.count("request")
    try:
        yield {"requests": before}
    except Superseded:
        pass
    except RunError:
        if builder.run.ledger.count("request") == before:
            raise  # no deletion by another process took the parent's files away
    builder.facts.update()


def _check(builder: Builder, node: Node, before: int) -> None:
    if node not in builder.facts.alive and builder.run.ledger.count("request") == before:
        raise IsolationError(f"{node.name} was trained, yet the ledger does not have it; nothing can follow it")
