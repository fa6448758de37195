"""In which order, and where, missing nodes are trained: one after the other, in groups, or by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any

from s3t.building import Builder, Job
from s3t.contract import Cost, Progress
from s3t.errors import DivergedError, IsolationError, RunError
from s3t.graph import Node
from s3t.ledger import Superseded
from s3t.runs import ACTIVATIONS
from s3t.training import Trained
from s3t.workers import Workers, outcome

AHEAD = 2
"""Tasks that a worker has at most: the one it works on and the next."""


def train_missing(builder: Builder, lost: set[Node], progress: Progress | None, *, down: bool) -> Cost:
    """Train all nodes that the plan misses, and those in ``lost``, parents first; return what it cost.

    ``down`` books the seconds as down time too. Engines that train groups get nodes of one stage, as many as are ready and they
    take. With several workers, chains that share no node are trained at the same
    time, by as many processes as there are such chains.
    """
    if builder.numerics.together > 1:
        return _in_groups(builder, lost, progress, down)
    roots = sorted({(node.shard, node.prefix[0]) for node in builder.facts.missing(lost)})
    shards = sorted({shard for shard, _ in roots})
    number = min(builder.resources.workers, len(roots))
    if number < 2:
        return _in_turn(builder, lost, progress, down)
    return _together(builder, lost, progress, down, Homes(number, by_shard=len(shards) >= number))


class Homes:
    """Which worker trains a chain: whole shards together, for a worker takes a slice's rows through the frozen prefix once.

    ``by_shard`` false, where there are fewer shards than workers: chains with the same first slice together.
    """

    def __init__(self, number: int, *, by_shard: bool) -> None:
        self.number = number
        self._by_shard = by_shard
        self._of: dict[tuple[int, ...], int] = {}

    def of(self, node: Node) -> int:
        """Return the worker of a node, also of one that a deletion made missing while the build ran."""
        chain = (node.shard,) if self._by_shard else (node.shard, node.prefix[0])
        return self._of.setdefault(chain, len(self._of) % self.number)


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
        ready = _ready(missing, set())
        stage = min(len(node.prefix) for node in ready)
        jobs: list[Job] = []
        for node in [node for node in ready if len(node.prefix) == stage][: builder.numerics.together]:
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
    running: dict[Future[Any], Job] = {}
    cache = round(builder.resources.cache_gb * 1e9)
    with Workers(homes.number, builder.backbone, cache, builder.run.path / ACTIVATIONS) as workers:
        builder.environment = builder.environment | {"threads": workers.threads}
        try:
            while True:
                missing = builder.facts.missing(lost)
                for node in _ready(missing, {job.node for job in running.values()}):
                    worker = homes.of(node)
                    if sum(homes.of(job.node) == worker for job in running.values()) < AHEAD:
                        with _overtaken(builder):
                            job, given = builder.prepare(node)
                            running[workers.submit(worker, given)] = job
                if not missing:
                    break
                if running and progress:
                    progress(done, done + len(missing), next(iter(running.values())).node.name)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    trained = outcome(future)
                    with _overtaken(builder) as attempt:
                        total += builder.finish(job, trained, down=down)
                        done += 1
                        lost.discard(job.node)
                    _check(builder, job.node, attempt["requests"])
        finally:
            builder.environment = builder.environment | {"threads": builder.threads}
    if progress:
        progress(done, done, "done")
    return total


def _ready(missing: list[Node], busy: set[Node]) -> list[Node]:
    """Return the missing nodes whose parent is there and that no worker has yet."""
    waiting = set(missing)
    return [node for node in missing if node not in busy and node.parent not in waiting]


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
