"""Executors: the same bits as alone on as many threads, a deletion that overtakes workers, workers that die, and errors that
come through.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from s3t import S3T
from s3t.backbone import Backbone
from s3t.blocks import ModelState
from s3t.building import Builder
from s3t.errors import RunError, S3TError
from s3t.exchange import NOTE
from s3t.executors import Executor
from s3t.executors.channels import Direct
from s3t.executors.processes import Processes
from s3t.executors.station import Kit
from s3t.graph import Node
from s3t.ledger import Superseded
from s3t.partition import slot
from s3t.placing import Homes
from s3t.records import Layout, Recipe, Record
from s3t.resources import Resources
from s3t.system import System

RECORDS = [Record(f"r{i:02d}", {"text": f"the cat {'sat ' * (i % 3)}on {i}"}, i % 2) for i in range(24)]
KEY = b"k" * 32
TWO = Resources(workers=2)
RAY = Resources(workers=2, executor="ray")


def _system(folder: Path, backbone: Backbone, **how: Any) -> S3T:
    recipe = Recipe(rank=2, epochs=1, batch_size=4)
    common: Any = {"classes": ("a", "b"), "model": backbone, "recipe": recipe, "key": KEY, "allow_empty": True}
    return S3T(folder, Layout(2, 2, 2), **common | how)


def _files(system: System) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the digests of each surviving node's files, by the node's name."""
    facts = system._opened()[1]
    facts.update()
    return {node.name: tuple(sorted(fact.files.items())) for node, fact in facts.alive.items()}


@pytest.mark.parametrize(
    ("engine", "resources"),
    [
        pytest.param("reference", TWO, marks=pytest.mark.slow),
        ("fast", TWO),
        pytest.param("reference", RAY, marks=pytest.mark.slow),
        pytest.param("fast", RAY, marks=pytest.mark.slow),
        pytest.param("fast", Resources(executor="ray"), marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{value.executor}-{value.workers}" if isinstance(value, Resources) else value,
)
def test_the_same_nodes_as_alone(tmp_path: Path, tiny: Backbone, engine: str, resources: Resources) -> None:
    """In the process, by processes, and by a local Ray cluster: the same nodes, bit for bit, under the same keys."""
    alone = _system(tmp_path / "alone", tiny, engine=engine)
    together = _system(tmp_path / "together", tiny, engine=engine, resources=resources)
    one, two = alone.fit(RECORDS), together.fit(RECORDS)
    assert _files(alone) == _files(together)
    assert (one.nodes, one.record_passes, one.optimizer_steps) == (two.nodes, two.record_passes, two.optimizer_steps)
    dropped = together.delete([RECORDS[0].id]).nodes_dropped
    alone.delete([RECORDS[0].id])
    assert together.refresh().nodes == alone.refresh().nodes == len(dropped)
    assert _files(alone) == _files(together)
    assert not (tmp_path / "together" / "activations").exists()


@pytest.mark.slow
def test_a_deletion_that_overtakes_a_worker_wins(
    tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _system(tmp_path / "run", tiny, engine="fast", resources=TWO)
    real, done = Builder.finish, []

    def overtaken(self: Builder, job: Any, *rest: Any, **more: Any) -> Any:
        if not done:
            done.append(job.stored[0].record.id)
            other = System.open(tmp_path / "run", tiny)
            other.delete(done)
            other.close()
        return real(self, job, *rest, **more)

    monkeypatch.setattr(Builder, "finish", overtaken)
    system.fit(RECORDS)
    assert done[0] not in system.ids()
    assert not any(done[0] in node.reads for chain in system.provenance().chains for node in chain.nodes)
    scratch = _system(tmp_path / "scratch", tiny, engine="fast")
    scratch.fit([record for record in RECORDS if record.id != done[0]])
    assert {n: dict(f)["head.safetensors"] for n, f in _files(system).items()} == {
        n: dict(f)["head.safetensors"] for n, f in _files(scratch).items()
    }


@pytest.mark.slow
def test_a_deletion_elsewhere_during_a_refresh_is_made_good_too(
    tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it drops was not missing when the refresh began."""
    system = _system(tmp_path / "run", tiny, engine="fast", resources=TWO)
    system.fit(RECORDS)
    by_shard = {slot(KEY, record.id, system.config.plan.layout)[0]: record.id for record in RECORDS}
    system.delete([by_shard[0]])
    real, done = Builder.finish, []

    def overtaken(self: Builder, job: Any, *rest: Any, **more: Any) -> Any:
        if not done:
            done.append(job.node.shard)
            other = System.open(tmp_path / "run", tiny)
            other.delete([by_shard[1]])
            other.close()
        return real(self, job, *rest, **more)

    monkeypatch.setattr(Builder, "finish", overtaken)
    system.refresh()
    assert done == [0]
    monkeypatch.undo()
    scratch = _system(tmp_path / "scratch", tiny, engine="fast", resources=TWO)
    scratch.fit([record for record in RECORDS if record.id not in by_shard.values()])
    heads = [{n: dict(f)["head.safetensors"] for n, f in _files(s).items()} for s in (system, scratch)]
    assert heads[0] == heads[1]


def test_chains_stay_with_a_worker_and_spread_over_all() -> None:
    """Also shards that all have the same remainder, and chains that were not missing at first."""
    whole = Homes(2, by_shard=True)
    assert [whole.of(Node(shard, (0, 1))) for shard in (0, 2, 4, 2, 7)] == [0, 1, 0, 1, 1]
    assert whole.of(Node(2, (1,))) == 1
    parts = Homes(3, by_shard=False)
    assert [parts.of(Node(0, prefix)) for prefix in ((0,), (1,), (2, 0), (1, 2), (0, 1))] == [0, 1, 2, 1, 0]


def test_a_parent_that_went_meanwhile(tmp_path: Path, tiny: Backbone) -> None:
    system = _system(tmp_path / "run", tiny)
    system.fit(RECORDS)
    builder = system._builder(*system._opened())
    child = next(node for node in builder.facts.alive if node.parent)
    builder.facts.alive = {node: fact for node, fact in builder.facts.alive.items() if node != child.parent}
    for attempt in (builder.prepare, lambda node: builder.train(node, down=False)):
        with pytest.raises(Superseded):
            attempt(child)


@pytest.mark.slow
def test_what_a_worker_raises_is_raised(tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Builder.parent_state

    def poisoned(self: Builder, *given: Any) -> ModelState | None:
        state = real(self, *given)
        return state and ModelState(state.adapters, {name: t * float("nan") for name, t in state.head.items()})

    monkeypatch.setattr(Builder, "parent_state", poisoned)
    with pytest.raises(S3TError, match="diverged at step 0"):
        _system(tmp_path / "run", tiny, resources=TWO).fit(RECORDS)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_again(tmp_path: Path, tiny: Backbone) -> None:
    nameless = dataclasses.replace(tiny, name="no-such-model")
    with pytest.raises(RunError, match=r"'no-such-model' cannot be loaded by a worker.*without workers"):
        _system(tmp_path / "a", nameless, resources=TWO).fit(RECORDS)
    changed = dataclasses.replace(tiny, digest="0" * 64)
    with pytest.raises(RunError, match="is another one when a worker loads it"):
        _system(tmp_path / "b", changed, resources=TWO).fit(RECORDS)


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Let the worker die that is handed a node, so many times in all; return the nodes that were lost and trained."""

    def plan(times: int) -> list[str]:
        told: list[str] = []
        real, finish = Executor.submit, Builder.finish

        def killed(self: Executor, place: int, given: Any) -> Any:
            if sum(name.startswith("died") for name in told) < times and given.task.parent is not None:
                told.append("died")
                if isinstance(self, Processes):
                    for process in list(self._pools[place]._processes.values()):
                        with suppress(ProcessLookupError):
                            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
                else:
                    self._ray.kill(self._actors[place])  # type: ignore[attr-defined]
            return real(self, place, given)

        def finished(self: Builder, job: Any, *rest: Any, **more: Any) -> Any:
            told.append(job.node.name)
            return finish(self, job, *rest, **more)

        monkeypatch.setattr(Executor, "submit", killed)
        monkeypatch.setattr(Builder, "finish", finished)
        return told

    return plan


@pytest.mark.parametrize("resources", [TWO, pytest.param(RAY, marks=pytest.mark.slow)], ids=["processes", "ray"])
def test_a_worker_that_dies_costs_one_node(
    tmp_path: Path,
    tiny: Backbone,
    deaths: Callable[[int], list[str]],
    resources: Resources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, replaced, real = deaths(1), list[int](), Executor.replace
    monkeypatch.setattr(Executor, "replace", lambda self, place: (replaced.append(place), real(self, place)))
    system = _system(tmp_path / "run", tiny, engine="fast", resources=resources)
    cost = system.fit(RECORDS)
    assert len(replaced) == 1, "what waited behind the node went with the same worker"
    assert told.count("died") == 1 and sorted(set(told) - {"died"}) == sorted(_files(system))
    assert len(told) - 1 == cost.nodes == len(_files(system)), "each node was trained to its end exactly once"
    alone = _system(tmp_path / "alone", tiny, engine="fast")
    alone.fit(RECORDS)
    assert _files(alone) == _files(system)


@pytest.mark.slow
def test_a_node_that_always_takes_its_worker_along(
    tmp_path: Path, tiny: Backbone, deaths: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = deaths(100)
    system = _system(tmp_path / "run", tiny, resources=Resources(workers=2, retries=1))
    with pytest.raises(RunError, match=r"shard-0./.-. was lost with its worker 2 times.*try fewer workers"):
        system.fit(RECORDS)
    kept = len(_files(system))
    assert told.count("died") >= 2 and kept == len(told) - told.count("died") > 0
    monkeypatch.undo()
    assert system.fit(RECORDS).nodes == len(_files(system)) - kept


def test_workers_that_are_not_alike(tiny: Backbone) -> None:
    """Bits depend on the machine: a build's workers compute alike or it does not begin."""
    kit = Kit(tiny.name, tiny.digest, "2", "cpu", 1, 0, None)
    with pytest.raises(RunError, match=r"worker 1 computes otherwise than the others \(threads: 1 and 3\)"):
        Processes([kit, dataclasses.replace(kit, threads=3)], Direct()).__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_an_exchange_changes_nothing_and_is_empty_afterwards(tmp_path: Path, tiny: Backbone, executor: str) -> None:
    place = tmp_path / "place"
    resources = Resources(workers=2, executor=executor, exchange=place.as_uri())
    alone = _system(tmp_path / "alone", tiny, engine="fast")
    together = _system(tmp_path / "together", tiny, engine="fast", resources=resources)
    left: list[int] = []

    def watch(*at: Any) -> None:
        if at[-1] != "done":
            left.append(sum(path.is_file() for path in place.rglob("*")))
            assert together.status().stores[-1].startswith(place.as_uri())

    together.fit(RECORDS, watch)
    alone.fit(RECORDS)
    assert _files(alone) == _files(together)
    assert max(left) > 2 and not any(place.rglob("*"))
    assert place.as_uri() not in str(together.status().stores) and not (tmp_path / "together" / NOTE).exists()


@pytest.mark.slow
def test_an_exchange_that_went_away(tmp_path: Path, tiny: Backbone) -> None:
    """Its contents, while workers train: one clear error, and nothing of the run is lost."""
    place = tmp_path / "place"
    system = _system(tmp_path / "run", tiny, resources=dataclasses.replace(TWO, exchange=place.as_uri()))

    def gone(*_: Any) -> None:
        for file in place.rglob("*"):
            file.is_file() and file.unlink()

    with pytest.raises(RunError, match=r"the exchange at file:.*cannot be read .*check it"):
        system.fit(RECORDS, gone)
    assert _system(tmp_path / "run", tiny).fit(RECORDS).nodes > 0


def test_ray_that_is_not_there(tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"executor=ray needs Ray .*pip install 's3t\[ray\]'"):
        _system(tmp_path / "run", tiny, resources=RAY).fit(RECORDS)


@pytest.mark.parametrize(
    ("address", "message"), [("127.0.0.1:1", "Ray cannot be reached at 127.0.0.1:1"), ("ray://x:1", "is none of a Ray")]
)
def test_a_cluster_that_cannot_be_reached(tmp_path: Path, tiny: Backbone, address: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        _system(tmp_path / "run", tiny, resources=dataclasses.replace(RAY, address=address)).fit(RECORDS)


@pytest.mark.slow
def test_a_cluster_that_is_too_small(tmp_path: Path, tiny: Backbone) -> None:
    with pytest.raises(RunError, match=r"the cluster has 0 GPU, 2 workers ask for 1; give fewer workers"):
        _system(tmp_path / "run", tiny, resources=dataclasses.replace(RAY, gpus=0.5)).fit(RECORDS)
