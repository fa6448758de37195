"""A build on many workers, simulated: how long it takes when its nodes take so long, by the rules of :mod:`s3t.placing`.

No build can be shorter than its graph's critical path, the longest chain of nodes of which each needs the one before, nor than
its work shared out evenly (Graham 1969, Bounds on multiprocessing timing anomalies). No torch.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from s3t.errors import LayoutError
from s3t.graph import Node, nodes
from s3t.placing import AHEAD, Homes, ready
from s3t.plan import Plan


@dataclass(frozen=True)
class Spread:
    """A build of ``nodes`` nodes on ``workers`` workers, of which ``used`` had work. All times in seconds.

    ``seconds``: from the start to the last node; ``work``: of all nodes one after another; ``critical``: of the longest chain.
    """

    workers: int
    used: int
    nodes: int
    seconds: float
    work: float
    critical: float

    @property
    def speedup(self) -> float:
        """How many times shorter than one worker without overhead takes."""
        return self.work / self.seconds

    @property
    def limit(self) -> float:
        """The largest speed-up that this graph allows on so many workers, whatever the rules."""
        return self.work / max(self.critical, self.work / self.workers)


def spread(times: Mapping[Node, float], workers: int, *, handing: float = 0.0, start: float = 0.0) -> Spread:
    """Simulate a build of the nodes in ``times`` (seconds each, parents before children) on ``workers`` workers.

    ``handing``: seconds that each node costs the one process that hands out nodes and stores what comes back, one at a time;
    ``start``: seconds until a worker takes its first. Raises LayoutError for no nodes, a time below 0, or no worker.
    """
    if not times or workers < 1:
        raise LayoutError(f"{len(times)} nodes on {workers} workers are no build; give at least one of each")
    for what, value in (*times.items(), ("handing", handing), ("start", start)):
        if not 0 <= value < math.inf:
            raise LayoutError(
                f"{what.name if isinstance(what, Node) else what} takes {value} s; give a time of 0 or more"
            )
    missing = list(times)
    homes = Homes.among(missing, workers)
    handed: dict[Node, float] = {}
    queues: list[deque[Node]] = [deque() for _ in range(homes.number)]
    ends: list[tuple[float, int]] = []
    clock = busy_until = 0.0

    def begin(place: int) -> None:
        node = queues[place][0]
        heapq.heappush(ends, (max(clock, handed[node], start) + times[node], place))

    while missing:
        for node in ready(missing, handed):
            place = homes.of(node)
            if len(queues[place]) < AHEAD:
                handed[node] = busy_until = max(busy_until, clock) + handing
                queues[place].append(node)
                if len(queues[place]) == 1:
                    begin(place)
        clock, place = heapq.heappop(ends)
        node = queues[place].popleft()
        missing.remove(node)
        del handed[node]
        if queues[place]:
            begin(place)
    paths: dict[Node, float] = {}
    for node, seconds in times.items():
        paths[node] = seconds + (paths.get(node.parent, 0.0) if node.parent else 0.0)
    return Spread(workers, homes.number, len(times), clock, sum(times.values()), max(paths.values()))


def node_times(plan: Plan, records: int, seconds: Mapping[int, float]) -> dict[Node, float]:
    """Return the seconds of each node of ``plan`` with ``records`` equally over its slots.

    ``seconds``: of a record pass by a stage's number from 1, as :func:`s3t.planner.lives.measured` takes them from a ledger.
    """
    per_slot = records / (plan.layout.shards * plan.layout.slices)
    out = {}
    for node in nodes(plan):
        stage = len(node.prefix)
        passes = per_slot * len(plan.pieces(node.prefix)) * plan.stages[stage - 1].epochs
        out[node] = passes * seconds[stage]
    return out
