"""When a refresh beside the service is due, and what damage counts for: with a clock of our own, and hardly a process."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import planted_work
import pytest
from planted_work import until
from serving_http import KEY, LAYOUT, PROBE, RECIPE, RECORDS, Served, placed, spoil

from baselines.methods import make_plan
from s3t.analytic.head import AnalyticHead
from s3t.analytic.store import FEATURES, HEADER
from s3t.backbone import Backbone
from s3t.errors import DamageError
from s3t.records import Layout, Record
from s3t.refreshing import Policy, Standing, standing
from s3t.service.refresher import Refresher, Refreshing
from s3t.store import NodeStore
from s3t.system import System
from verify.machine import on_threads

Serve = Callable[..., Served]
Fitted = Callable[[Path, Sequence[Record]], Path]
DEAD = Policy.of("when-dead")
KILL = [placed(0, piece)[0] for piece in range(3)]
"""One record of each slice of shard 0: with three orders it is dead then."""


class Planted:
    """A refresh that ends when it is told to."""

    def __init__(self) -> None:
        self.outcome: str | None = None
        self.stopped = False

    def ended(self) -> str | None:
        return self.outcome

    def stop(self) -> None:
        self.stopped = True


class Bench:
    """A refresher over a real run, by a clock that is set, beginning nothing real."""

    def __init__(self, run: Path, tiny: Backbone, policy: str, **how: Any) -> None:
        self.now, self.log, self.begun = 0.0, [], []
        self.system = System.open(run, tiny)
        how = {"policy": Policy.of(policy), "log": self.log.append, **how}
        plan, damage = self.system.config.plan, self.system.damage
        self.refresher = Refresher(run, plan, Refreshing(**how), self._begin, lambda: self.now, damage)
        self.refresher.open()

    def _begin(self, *given: Any) -> Planted:
        assert all(one.outcome or one.stopped for one in self.begun), "two at once"
        self.threads = given[2]
        self.begun.append(Planted())
        return self.begun[-1]

    def at(self, now: float) -> int:
        """Look at a time; return how many refreshes have begun so far."""
        self.now = now
        self.refresher.look()
        return len(self.begun)

    def close(self) -> None:
        self.refresher._run.close()
        self.system.close()


@pytest.fixture
def bench(copied: Callable[[], Path], tiny: Backbone) -> Iterator[Callable[..., Bench]]:
    """Makes benches, each on a copy of the run."""
    made: list[Bench] = []

    def make(policy: str, **how: Any) -> Bench:
        made.append(Bench(copied(), tiny, policy, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_starts_keep_their_distance(bench: Callable[..., Bench]) -> None:
    one = bench("when-dead", rest=60.0)
    assert one.at(0) == 0
    one.system.delete(KILL[:2])
    assert one.at(1) == 0, "a shard that serves less is not dead"
    one.system.delete(KILL[2:])
    assert one.at(2) == 1
    assert one.refresher.status()["running"]
    assert one.at(500) == 1, "never two at once"
    one.begun[0].outcome = "done"
    assert one.at(501) == 2, "the shard is still dead, and the first began long ago"
    one.begun[1].outcome = "done"
    for number, victim in enumerate(placed(1, 0)[:5]):  # a flood
        one.system.delete([victim])
        assert one.at(510 + number) == 2
    assert one.at(560.9) == 2
    assert one.at(561) == 3
    assert one.log == []


def test_a_failure_is_logged_once_and_tried_again_after_the_rest(bench: Callable[..., Bench]) -> None:
    one = bench("every:1h", rest=60.0)
    one.system.delete(KILL[:1])
    assert one.at(3599 - one.refresher._age()) == 0
    assert one.at(3600) == 1
    one.begun[0].outcome = "failed: DataError"
    assert one.at(4000) == 1
    assert one.log == ["refresh failed: DataError; tried again after 60 s"]
    assert one.at(4059) == 1
    assert one.at(4060) == 2, "counted from the end, and an hour has not passed"
    told = one.refresher.status()
    assert (told["running"], told["ended"], told["last_outcome"]) == (True, 1, "failed: DataError")
    one.begun[1].outcome = "done"
    with closing(System.open(one.system.path, one.system._backbone)) as other:
        other.refresh()
    assert one.at(4070) == 2
    assert one.refresher.status()["last_outcome"] == "done"
    assert len(one.log) == 1


def test_time_runs_from_the_last_training_whoever_did_it(bench: Callable[..., Bench], tiny: Backbone) -> None:
    one = bench("every:1h")
    one.system.delete(KILL[:1])
    assert one.at(3000) == 0
    with closing(System.open(one.system.path, tiny)) as other:
        other.refresh()
    assert one.at(3001) == 0
    one.system.delete(KILL[1:2])
    assert one.at(3600 + 1000) == 0
    assert one.at(3600 + 3000) == 0
    assert one.at(3600 + 3001) == 1


def test_time_runs_on_while_no_service_does(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("every:1h")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1800)
    one.refresher.open()
    one.system.delete(KILL[:1])
    assert one.at(1700) == 0
    assert one.at(1801) == 1


def test_a_ledger_that_cannot_be_read_ends_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, copied: Callable[[], Path]
) -> None:
    log: list[str] = []
    served = serve(refreshing=Refreshing(DEAD, rest=0.2, log=log.append, work=planted_work.describe))
    refresher: Any = served.service._refresher
    real = refresher.look

    def broken() -> None:
        raise sqlite3.OperationalError("secret")

    refresher.look = broken
    until(lambda: log)
    refresher.look = real
    assert set(log) == {"refresh failed: OperationalError; tried again after 0.2 s"}
    served.delete(*KILL)
    until(lambda: served.refreshes()["last_outcome"] == "done")


def test_a_shard_without_records_is_not_waited_for(bench: Callable[..., Bench], tiny: Backbone) -> None:
    one = bench("when-dead", rest=1.0)
    one.system.delete([name for piece in range(3) for name in placed(0, piece)])
    assert one.at(0) == 1
    with closing(System.open(one.system.path, tiny)) as other:
        other.refresh()
        assert other.status().offline == (0,)
        assert standing(other._opened()[1]) == Standing((3,), 0, False, 0.0)
    one.begun[0].outcome = "done"
    assert one.at(100) == 1
    one.system.delete([placed(1, 0)[0]])
    assert one.at(200) == 1, "it never comes back, so nothing is due for it"


@pytest.mark.parametrize(
    ("policy", "spoiled", "wanted"),
    [
        ("never", ["shard-*"], 0),
        ("when-dead", ["shard-00/*"], 1),
        ("when-dead", ["shard-00/0", "shard-00/1"], 0),
        ("when-dead", ["shard-00/0", "shard-00/1", "shard-00/2"], 1),
        ("below:3", ["shard-01/0-*", "shard-01/1-*", "shard-01/2-*"], 1),
        ("below:3", ["shard-01/0-*", "shard-01/1-*"], 0),
        ("below:1", ["shard-01/0-*", "shard-01/1-*", "shard-01/2-*"], 0),
        ("every:1h", ["shard-00/0-1-2"], 1),
    ],
)
def test_a_damaged_node_counts_as_missing(
    bench: Callable[..., Bench], tiny: Backbone, policy: str, spoiled: list[str], wanted: int
) -> None:
    one = bench(policy, rest=1.0)
    spoil(one.system.path, *spoiled)
    assert one.at(4000) == 0, "nobody has met it"
    one.system.served()
    assert one.at(4001) == wanted
    if wanted:
        with closing(System.open(one.system.path, tiny)) as other:
            other.refresh()
        one.begun[0].outcome = "done"
    assert one.at(4100) == wanted
    assert one.system.status().damaged == {} or not wanted


def test_what_was_out_of_reach_for_a_while_is_read_again_after_a_refresh(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bench("when-dead", rest=1.0)

    def unreadable(*_: Any) -> Any:
        raise DamageError("it cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(NodeStore, "_opened", unreadable)
        one.system.served()
        assert one.at(1) == 1
    one.begun[0].outcome = "done"
    assert one.at(100) == 1, "it had nothing to mend, and nothing is due any more"
    assert one.system.status().damaged == {}
    assert len(one.system.served().models) == LAYOUT.shards


def test_a_service_mends_what_it_finds_damaged(serve: Serve, copied: Callable[[], Path]) -> None:
    run = copied()
    whole = serve().predict(*PROBE).body
    spoil(run, "shard-00/*")
    served = serve(run, refreshing=Refreshing(DEAD, rest=0.2))
    until(lambda: served.refreshes()["last_outcome"] == "done")
    assert served.predict(*PROBE).body == whole
    status = served.status()
    assert (status["damaged"], status["missing_nodes"], status["offline"]) == ({}, 0, [])


@pytest.fixture(params=["analytic", "s3t"])
def headed(request: pytest.FixtureRequest, tiny: Backbone, tmp_path: Path) -> Path:
    """A run with an analytic head, alone or beside chains."""
    alone = request.param == "analytic"
    layout, share = (Layout(1, 1, 1), None) if alone else (LAYOUT, 0.25)
    plan = make_plan(request.param, layout, RECIPE, tiny.layers, head=AnalyticHead(), share=share)
    run = tmp_path / "headed"
    with closing(System.create(run, plan, RECIPE, model=tiny, classes=("a", "b", "c"), key=KEY)) as system:
        system.fit(RECORDS)
    return run


def flip(run: Path) -> None:
    """Flip a bit of a record's features."""
    with (run / FEATURES).open("r+b") as file:
        file.seek(HEADER + 5)
        (byte,) = file.read(1)
        file.seek(HEADER + 5)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(("policy", "wanted"), [("never", 0), ("when-dead", 1), ("below:1", 1), ("every:1h", 1)])
def test_a_head_with_damaged_features_counts_as_a_dead_shard(
    headed: Path, tiny: Backbone, policy: str, wanted: int
) -> None:
    with closing(Bench(headed, tiny, policy, rest=1.0)) as one:
        assert one.at(4000) == 0
        flip(headed)
        assert one.at(4001) == 0, "nobody has met it"
        one.system._serving = None  # what a service that starts now meets
        one.system.served()
        assert one.at(4002) == wanted
        if wanted:
            with closing(System.open(headed, tiny)) as other:
                other.refresh()
            one.begun[0].outcome = "done"
        assert one.at(8100) == wanted
        one.system.served()
        assert one.at(8200) == wanted


def test_a_service_mends_a_head_that_it_finds_damaged(serve: Serve, headed: Path, tmp_path: Path) -> None:
    whole = serve(Path(shutil.copytree(headed, tmp_path / "whole"))).predict(*PROBE).body
    flip(headed)
    served = serve(headed, refreshing=Refreshing(DEAD, rest=0.2))
    served.predict(*PROBE)
    until(lambda: served.refreshes()["last_outcome"] == "done")
    assert served.predict(*PROBE).body == whole
    assert served.status()["damaged"] == {}


def test_threads_are_those_of_the_run(fitted: Fitted, tmp_path: Path, tiny: Backbone) -> None:
    with on_threads(2):
        run = fitted(tmp_path / "run", RECORDS)
    with on_threads(1):
        for given, wanted in ((None, 2), (3, 3)):
            with closing(Bench(run, tiny, "when-dead", threads=given)) as one:
                one.system.delete(KILL)
                assert (one.at(0), one.threads) == (1, wanted)
