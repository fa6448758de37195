"""Simulated builds: bounds that no schedule can beat, and the same course as the real scheduling's under a made-up clock."""

from __future__ import annotations

import heapq
import math
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.methods import make_plan
from s3t import scheduling
from s3t.contract import Cost
from s3t.errors import LayoutError
from s3t.graph import Node, nodes
from s3t.placing import Homes
from s3t.plan import Plan
from s3t.planner.spreading import node_times, spread
from s3t.records import Layout, Recipe
from s3t.resources import Resources


def _plan(shards: int, slices: int, budget: int) -> Plan:
    return make_plan("s3t", Layout(shards, slices, budget), Recipe(epochs=2), 6)


@st.composite
def _builds(draw: st.DrawFn) -> tuple[dict[Node, float], int]:
    slices = draw(st.integers(1, 4))
    plan = _plan(draw(st.integers(1, 5)), slices, draw(st.integers(1, min(6, math.factorial(slices)))))
    seconds = st.integers(1, 40).map(float)
    return {node: draw(seconds) for node in nodes(plan)}, draw(st.integers(1, 12))


@given(_builds())
def test_no_build_beats_its_bounds(build: tuple[dict[Node, float], int]) -> None:
    times, workers = build
    found = spread(times, workers)
    assert found.work == sum(times.values()) and found.nodes == len(times) and 1 <= found.used <= workers
    assert max(found.critical, found.work / found.used) <= found.seconds <= found.work
    assert found.speedup <= found.limit + 1e-9 and found.limit <= workers + 1e-9
    longest = max(sum(times[Node(n.shard, n.prefix[: i + 1])] for i in range(len(n.prefix))) for n in times)
    assert found.critical == longest
    assert spread(times, 1).seconds == found.work
    slower = spread(times, workers, handing=1.0, start=5.0)
    assert found.seconds + 5.0 <= slower.seconds <= found.seconds + 5.0 + len(times) + found.work


def test_a_chain_is_not_sped_up_and_shards_are() -> None:
    chain = node_times(_plan(1, 4, 1), 80, dict.fromkeys(range(1, 5), 0.1))
    assert spread(chain, 8).speedup == 1.0 == spread(chain, 8).limit and spread(chain, 8).used == 1
    shards = node_times(_plan(8, 4, 1), 640, dict.fromkeys(range(1, 5), 0.1))
    assert math.isclose(spread(shards, 8).speedup, 8.0) and math.isclose(spread(shards, 512).limit, 8.0)


def test_the_next_node_is_handed_over_while_one_is_trained() -> None:
    """Four nodes that need none of each other, a second each, half a second to hand over: only the first is waited for."""
    times = {Node(shard, (0,)): 1.0 for shard in range(4)}
    assert spread(times, 1, handing=0.5).seconds == 0.5 + 4 * 1.0
    assert spread(times, 1, handing=2.0).seconds == 4 * 2.0 + 1.0
    assert spread(times, 4, handing=0.5, start=1.0).seconds == 4 * 0.5 + 1.0


def test_seconds_of_a_node_are_its_passes_times_those_of_its_stage() -> None:
    """80 records over 8 slots, 2 epochs: stage s reads s slots."""
    times = node_times(_plan(2, 4, 1), 80, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    assert sorted(set(times.values())) == [1 * 10 * 2 * 1.0, 2 * 10 * 2 * 2.0, 3 * 10 * 2 * 3.0, 4 * 10 * 2 * 4.0]


class _Clockwork:
    """An executor whose workers take as long as they are told, by a clock of its own."""

    def __init__(self, times: dict[Node, float], number: int) -> None:
        self.times, self.number, self.environment = times, number, {"made": "up"}
        self.clock = 0.0
        self._queues: dict[int, list[tuple[Node, Future[Any]]]] = {}
        self._ends: list[tuple[float, int]] = []

    def __enter__(self) -> _Clockwork:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, place: int, node: Node) -> Future[Any]:
        future: Future[Any] = Future()
        queue = self._queues.setdefault(place, [])
        queue.append((node, future))
        if len(queue) == 1:
            self._begin(place)
        return future

    def _begin(self, place: int) -> None:
        heapq.heappush(self._ends, (self.clock + self.times[self._queues[place][0][0]], place))

    def outcome(self, future: Future[Any]) -> Node:
        return future.result()  # type: ignore[no-any-return]

    def step(self, *_: object, **__: object) -> Any:
        """Stand in for ``wait``: let the next worker be done."""
        self.clock, place = heapq.heappop(self._ends)
        node, future = self._queues[place].pop(0)
        if self._queues[place]:
            self._begin(place)
        future.set_result(node)
        return SimpleNamespace(done=[future])


@given(_builds())
def test_the_real_scheduling_takes_the_same_course(build: tuple[dict[Node, float], int]) -> None:
    times, workers = build
    done: list[Node] = []

    class _Facts:
        def __init__(self) -> None:
            self.alive: dict[Node, Any] = {}

        def missing(self, lost: set[Node]) -> list[Node]:
            return [node for node in times if node not in self.alive]

        def update(self) -> None: ...

    facts = _Facts()

    def finish(job: Any, trained: Node, down: bool) -> Cost:
        assert trained == job.node and (job.node.parent is None or job.node.parent in facts.alive)
        facts.alive[job.node] = True
        done.append(job.node)
        return Cost(nodes=1)

    ledger = SimpleNamespace(count=lambda kind: 0)
    builder: Any = SimpleNamespace(
        facts=facts,
        finish=finish,
        prepare=lambda node: (SimpleNamespace(node=node, started=0.0), node),
        run=SimpleNamespace(path=Path("nowhere"), config=SimpleNamespace(kernel="2"), ledger=ledger),
        environment={},
        backbone=None,
        resources=Resources(workers=workers),
    )
    homes = Homes.among(list(times), workers)
    clockwork = _Clockwork(times, homes.number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling, "hire", lambda *_: clockwork)
        patch.setattr(scheduling, "wait", clockwork.step)
        cost = scheduling._together(builder, set(), None, False, homes)
    assert cost.nodes == len(times) == len(set(done)) == len(done)
    assert math.isclose(clockwork.clock, spread(times, workers).seconds)


@pytest.mark.parametrize(
    ("times", "workers", "how", "message"),
    [
        ({}, 1, {}, "0 nodes on 1 workers are no build"),
        ({Node(0, (0,)): 1.0}, 0, {}, "1 nodes on 0 workers"),
        ({Node(0, (0,)): -1.0}, 1, {}, "shard-00/0 takes -1.0 s"),
        ({Node(0, (0,)): math.nan}, 1, {}, "shard-00/0 takes nan s"),
        ({Node(0, (0,)): 1.0}, 1, {"start": math.inf}, "start takes inf s"),
    ],
)
def test_what_is_no_build(times: dict[Node, float], workers: int, how: dict[str, float], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        spread(times, workers, **how)
