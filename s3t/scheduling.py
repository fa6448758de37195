"""In which order, and where, the missing nodes of a build are trained: one after the other, or by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any

from s3t.building import Builder, Job
from s3t.contract import Cost, Progress
from s3t.errors import IsolationError, RunError
from s3t.graph import Node
from s3t.ledger import Superseded
from s3t.workers import Workers, outcome

AHEAD = 2
"""Tasks that a worker has at most: the one it works on and the next."""


def train_missing(builder: Builder, lost: set[Node], progress: Progress | None, *, down: bool) -> Cost:
    """Train all nodes that the plan misses, and those in ``lost``, parents first; return what it cost.

    ``down`` books the seconds as down time too. With several workers, chains that share no node are trained at the same
    time, by as many processes as there are such chains.
    """
    roots = sorted({(node.shard, node.prefix[0]) for node in builder.facts.missing(lost)})
    shards = sorted({shard for shard, _ in roots})
    number = min(builder.resources.workers, len(roots))
    if number < 2:
        return _in_turn(builder, lost, progress, down)
    # A shard's slices pass the frozen prefix once per worker that trains on them: keep shards together where that suffices.
    by_shard = len(shards) >= number
    home = {root: (shards.index(root[0]) if by_shard else i) % number for i, root in enumerate(roots)}
    return _together(builder, lost, progress, down, home, number)


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


def _together(
    builder: Builder,
    lost: set[Node],
    progress: Progress | None,
    down: bool,
    home: dict[tuple[int, int], int],
    number: int,
) -> Cost:
    total, done = Cost(), 0
    running: dict[Future[Any], Job] = {}
    cache = round(builder.resources.cache_gb * 1e9)
    with Workers(number, builder.backbone, cache, builder.run.path) as workers:
        builder.environment = builder.environment | {"threads": workers.threads}
        try:
            while True:
                missing = builder.facts.missing(lost)
                for node in _ready(missing, {job.node for job in running.values()}):
                    worker = home[node.shard, node.prefix[0]]
                    if sum(home[job.node.shard, job.node.prefix[0]] == worker for job in running.values()) < AHEAD:
                        with _overtaken(builder):
                            job, task = builder.prepare(node)
                            running[workers.submit(worker, task)] = job
                if not running:
                    break
                if progress:
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
