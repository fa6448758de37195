"""Workers: the same bits as alone on as many threads, a deletion that overtakes them, and errors that come through."""

from __future__ import annotations

import dataclasses
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from s3t import S3T
from s3t.backbone import Backbone
from s3t.blocks import ModelState
from s3t.building import Builder
from s3t.engine.mode import Resources
from s3t.errors import RunError, S3TError
from s3t.graph import Node
from s3t.ledger import Superseded
from s3t.partition import slot
from s3t.records import Layout, Recipe, Record
from s3t.scheduling import Homes
from s3t.system import System
from s3t.workers import Workers

RECORDS = [Record(f"r{i:02d}", {"text": f"the cat {'sat ' * (i % 3)}on {i}"}, i % 2) for i in range(24)]
KEY = b"k" * 32
TWO = Resources(workers=2)


def _system(folder: Path, backbone: Backbone, **how: Any) -> S3T:
    recipe = Recipe(rank=2, epochs=1, batch_size=4)
    common: Any = {"classes": ("a", "b"), "model": backbone, "recipe": recipe, "key": KEY, "allow_empty": True}
    return S3T(folder, Layout(2, 2, 2), **common | how)


def _files(system: System) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the digests of each surviving node's files, by the node's name."""
    facts = system._opened()[1]
    facts.update()
    return {node.name: tuple(sorted(fact.files.items())) for node, fact in facts.alive.items()}


@pytest.mark.parametrize("engine", [pytest.param("reference", marks=pytest.mark.slow), "fast"])
def test_the_same_nodes_as_alone(tmp_path: Path, tiny: Backbone, engine: str) -> None:
    alone = _system(tmp_path / "alone", tiny, engine=engine)
    together = _system(tmp_path / "together", tiny, engine=engine, resources=TWO)
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
    with pytest.raises(RunError, match=r"'no-such-model' cannot be loaded by a worker.*one worker"):
        _system(tmp_path / "a", nameless, resources=TWO).fit(RECORDS)
    changed = dataclasses.replace(tiny, digest="0" * 64)
    with pytest.raises(RunError, match="is another one when it is loaded again"):
        _system(tmp_path / "b", changed, resources=TWO).fit(RECORDS)


@pytest.mark.slow
def test_a_worker_that_dies(tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Workers.submit

    def killed(self: Workers, worker: int, task: Any) -> Any:
        future = real(self, worker, task)
        for process in self._pools[worker]._processes.values():
            with suppress(ProcessLookupError):  # the task before may have ended it already
                os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        return future

    monkeypatch.setattr(Workers, "submit", killed)
    system = _system(tmp_path / "run", tiny, resources=TWO)
    with pytest.raises(RunError, match="a worker process died"):
        system.fit(RECORDS)
    monkeypatch.undo()
    assert system.fit(RECORDS).nodes == len(_files(system))
