"""Refreshes beside the service: when they start, what they leave, and what a stop, a failure or a deletion does to them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import planted_work
import pytest
from command_line import refused
from planted_work import mark, wait_for
from serving_http import BEARER, KEY, LAYOUT, PROBE, RECIPE, RECORDS, Served, placed, spoil

from baselines.methods import make_plan
from benchmarks.services import Listening
from s3t import runs
from s3t.analytic.head import AnalyticHead
from s3t.analytic.store import FEATURES, HEADER
from s3t.backbone import Backbone
from s3t.building import Builder
from s3t.errors import DamageError, ServiceError
from s3t.records import Layout, Record
from s3t.refreshing import Policy, Standing, standing
from s3t.service.refresher import Refresher, Refreshing, trained_on
from s3t.store import NodeStore
from s3t.system import System
from verify.machine import on_threads

Serve = Callable[..., Served]
Fitted = Callable[[Path, Sequence[Record]], Path]
HELD = """
import planted_work
from s3t import cli
from s3t.service import refresher
real = refresher.Refreshing
refresher.Refreshing = lambda *given: real(*given, work=planted_work.hold)
cli.main()
"""
DEAD = Policy.of("when-dead")
KILL = [placed(0, piece)[0] for piece in range(3)]
"""One record of each slice of shard 0: with three orders it is dead then."""


def _status(served: Served) -> dict[str, Any]:
    answer = served.ask("GET", "/status", headers=BEARER)
    assert answer.status == 200, (answer.error, served.log)
    return dict(answer.json)


def _told(served: Served) -> dict[str, Any]:
    return dict(_status(served)["refresh"])


def _until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def _from_scratch(serve: Serve, fitted: Fitted, path: Path, victims: Sequence[str]) -> bytes:
    """Return the answer of a run that was trained on the retained records alone."""
    fitted(path, [record for record in RECORDS if record.id not in victims])
    return serve(path).predict(*PROBE).body


# ---- when: with a clock of our own, and no process ----


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
    _until(lambda: log)
    refresher.look = real
    assert set(log) == {"refresh failed: OperationalError; tried again after 0.2 s"}
    served.delete(*KILL)
    _until(lambda: _told(served)["last_outcome"] == "done")


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
    _until(lambda: _told(served)["last_outcome"] == "done")
    assert served.predict(*PROBE).body == whole
    status = _status(served)
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
    _until(lambda: _told(served)["last_outcome"] == "done")
    assert served.predict(*PROBE).body == whole
    assert _status(served)["damaged"] == {}


def test_threads_are_those_of_the_run(fitted: Fitted, tmp_path: Path, tiny: Backbone) -> None:
    with on_threads(2):
        run = fitted(tmp_path / "run", RECORDS)
    with on_threads(1):
        for given, wanted in ((None, 2), (3, 3)):
            with closing(Bench(run, tiny, "when-dead", threads=given)) as one:
                one.system.delete(KILL)
                assert (one.at(0), one.threads) == (1, wanted)


# ---- what: with processes ----


@pytest.mark.parametrize(
    ("policy", "victims"),
    [
        ("when-dead", KILL),
        pytest.param("below:3", KILL[:1], marks=pytest.mark.slow),
        pytest.param("every:1s", KILL[:1], marks=pytest.mark.slow),
    ],
)
def test_what_died_comes_back_without_a_restart(
    serve: Serve, fitted: Fitted, tmp_path: Path, policy: str, victims: list[str]
) -> None:
    served = serve(refreshing=Refreshing(Policy.of(policy), rest=0.5, work=planted_work.describe))
    ended, answers = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            answers.append(served.predict(*PROBE).status)
            ended.wait(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for victim in victims:
            assert served.delete(victim).status == 200
        _until(lambda: _status(served)["missing_nodes"] == 0)
        _until(lambda: not _told(served)["running"])
    finally:
        ended.set()
        thread.join()
    assert set(answers) == {200}
    status = _status(served)
    assert (status["offline"], status["chain_lengths"]) == ([], {"0": 3, "1": 3})
    told = status["refresh"]
    assert (told["policy"], told["last_outcome"]) == (policy, "done")
    assert told["ended"] >= 1
    assert told["last_ended"].startswith("20")
    assert served.predict(*PROBE).body == _from_scratch(serve, fitted, tmp_path / "scratch", victims)
    assert {line.split()[0] for line in served.log} <= {"POST", "GET"}, "requests, and no failure"
    with closing(runs.open_run(served.run)) as run:
        recorded = {entry.body["environment"]["threads"] for entry in run.ledger.entries("train")}
    priority, threads, pid = json.loads(mark(served.run, "about").read_text())
    assert recorded == {threads}, "all nodes of the run can be compared"
    assert priority >= min(19, os.nice(0) + 10)
    assert pid != os.getpid()


def test_never_is_never(serve: Serve) -> None:
    served = serve()
    served.delete(*KILL)
    time.sleep(1.0)
    status = _status(served)
    assert status["offline"] == [0]
    assert status["refresh"]["ended"] == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("refresh")]


def test_a_deletion_during_a_refresh_wins(serve: Serve, fitted: Fitted, tmp_path: Path) -> None:
    served = serve(refreshing=Refreshing(DEAD, rest=0.2, work=planted_work.hold))
    served.delete(*KILL)
    wait_for(mark(served.run, "held"))
    shard, *prefix = json.loads(mark(served.run, "held").read_text())
    victim = next(name for name in placed(shard, prefix[0]) if name not in KILL)
    before = _held(served.run)
    assert served.delete(victim).json["deleted"] == [victim], "not waited for the refresh"
    assert served.predict(*PROBE).status == 200
    mark(served.run, "go").touch()
    _until(lambda: _told(served)["last_outcome"] == "done")
    _until(lambda: _status(served)["missing_nodes"] == 0)
    with closing(runs.open_run(served.run)) as run:
        (last,) = [entry.seq for entry in run.ledger.entries("request", before)]
        late = [e.body for e in run.ledger.entries("train") if [e.body["shard"], *e.body["prefix"]] == [shard, *prefix]]
        assert len(late) == 2, "at the beginning and after the deletion; what was held was thrown away"
        assert last > before
    assert served.predict(*PROBE).body == _from_scratch(serve, fitted, tmp_path / "scratch", [*KILL, victim])


def _held(path: Path) -> int:
    with closing(runs.open_run(path)) as run:
        return run.ledger.head()


def test_a_stop_during_a_refresh_keeps_what_is_finished(
    serve: Serve, fitted: Fitted, tmp_path: Path, tiny: Backbone
) -> None:
    served = serve(refreshing=Refreshing(DEAD, work=planted_work.hold))
    served.delete(*KILL)
    wait_for(mark(served.run, "held"))
    (child,) = _children(os.getpid(), served)
    (served.run / runs.ACTIVATIONS / "0").mkdir(parents=True)
    (served.run / "nodes" / ".partial-left").mkdir()
    served.service.close()
    assert not Path(f"/proc/{child}").exists()
    assert not (served.run / runs.ACTIVATIONS).exists()
    assert not list((served.run / "nodes").glob(".partial-*"))
    told = served.service._refresher.status() if served.service._refresher else {}
    assert (told["running"], told["last_outcome"]) == (False, "stopped")
    with closing(System.open(served.run, tiny)) as system:
        missing = system.status().missing_nodes
        assert missing == 9 - 2, "two nodes of the dead shard had been finished"
        assert system.refresh().nodes == missing
    assert serve(served.run).predict(*PROBE).body == _from_scratch(serve, fitted, tmp_path / "scratch", KILL)


def _children(pid: int, served: Served) -> list[int]:
    """The processes of refreshes below a process; served is asked that none has ended."""
    assert _told(served)["running"]
    return _below(pid)


def _below(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
    return found


@pytest.mark.parametrize(
    ("work", "said"),
    [(planted_work.fail, "failed: DataError"), (planted_work.die, "failed: it died (exit code -9)")],
)
def test_a_refresh_that_fails_is_told_without_content_and_tried_again(
    serve: Serve, capfd: pytest.CaptureFixture[str], work: Any, said: str
) -> None:
    log: list[str] = []
    served = serve(refreshing=Refreshing(DEAD, rest=0.3, log=log.append, work=work))
    served.delete(*KILL)
    _until(lambda: _told(served)["ended"] >= 2)
    told = _told(served)
    assert told["last_outcome"] == said
    assert set(log) == {f"refresh {said}; tried again after 0.3 s"}
    assert served.predict(*PROBE).status == 200, "the other shard lives"
    assert planted_work.SECRET not in json.dumps(told) + "".join(log) + "".join(capfd.readouterr())


@pytest.mark.slow
def test_after_a_failure_the_next_one_succeeds(serve: Serve, fitted: Fitted, tmp_path: Path) -> None:
    log: list[str] = []
    served = serve(refreshing=Refreshing(DEAD, rest=0.3, log=log.append, work=planted_work.recover))
    served.delete(*KILL)
    _until(lambda: _told(served)["last_outcome"] == "done")
    assert (_told(served)["ended"], len(log)) == (2, 1)
    assert served.predict(*PROBE).body == _from_scratch(serve, fitted, tmp_path / "scratch", KILL)


@pytest.mark.slow
def test_another_build_is_waited_for(serve: Serve, tiny: Backbone) -> None:
    log: list[str] = []
    served = serve(refreshing=Refreshing(DEAD, rest=0.3, log=log.append, work=planted_work.describe))
    with closing(System.open(served.run, tiny)) as other, other._opened()[0].building():
        served.delete(*KILL)
        _until(lambda: log)
    assert set(log) == {"refresh failed: BusyError; tried again after 0.3 s"}
    _until(lambda: _told(served)["last_outcome"] == "done")
    assert _status(served)["missing_nodes"] == 0


@pytest.mark.slow
def test_a_number_of_threads_can_be_given(serve: Serve) -> None:
    served = serve(refreshing=Refreshing(DEAD, threads=2, work=planted_work.describe))
    with closing(runs.open_run(served.run)) as run:
        own = trained_on(run)
    served.delete(*KILL)
    _until(lambda: _told(served)["last_outcome"] == "done")
    assert json.loads(mark(served.run, "about").read_text())[1] == 2
    with closing(runs.open_run(served.run)) as run:
        assert trained_on(run) == own
        assert [entry.body["environment"]["threads"] for entry in run.ledger.entries("train")][-9:] == [2] * 9


# ---- the command ----


@pytest.mark.parametrize("number", ["SIGTERM", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_the_process_of_a_refresh_ends_with_the_service(copied: Callable[[], Path], number: str) -> None:
    run = copied()
    service = Listening(run, ("--refresh", "when-dead", "--refresh-rest", "0.01"), ("-c", HELD))
    try:
        with closing(service.client()) as client:
            assert client.need("/delete", {"ids": KILL}, service.token)["offline"] == [0]
        wait_for(mark(run, "held"))
        (child,) = _below(service.process.pid)
        with closing(service.client()) as client:
            told = client.ask("GET", "/status", token=service.token)[1]["refresh"]
            assert (told["policy"], told["running"]) == ("when-dead", True)
        getattr(service.process, "terminate" if number == "SIGTERM" else "kill")()
        out, err = service.process.communicate(timeout=60)
        assert (service.process.returncode, out + err) == (0 if number == "SIGTERM" else -9, "")
        _until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child), 30)
    finally:
        service.process.kill()
        service.process.communicate()


def _is_zombie(pid: int) -> bool:
    """Say whether a process has ended and nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_what_cannot_be_is_refused(copied: Callable[[], Path], tmp_path: Path, tiny: Backbone) -> None:
    run = copied()
    for value in ("sometimes", "below:0", "every:1w"):
        assert f"refresh={value!r} is no policy" in refused("serve", run, "--port", "0", "--refresh", value)
    line = refused("serve", run, "--port", "0", "--refresh", "below:4")
    assert "the run has 3 slices; give below:1..3" in line
    for value in ("0", "-1", "inf", "nan"):
        assert "give seconds above 0" in refused("serve", run, "--port", "0", "--refresh-rest", value)
    assert "refresh_threads=0 is not possible" in refused("serve", run, "--port", "0", "--refresh-threads", "0")
    eager = make_plan("sisa-lora", LAYOUT, RECIPE, tiny.layers)
    with pytest.raises(ServiceError, match="sisa-lora trains within each deletion; leave out refresh='when-dead'"):
        Refresher(run, eager, Refreshing(DEAD))
    Refresher(run, eager, Refreshing())


def test_a_run_that_is_not_trained_yet_counts_one_thread(copied: Callable[[], Path], monkeypatch: Any) -> None:
    with closing(runs.open_run(copied())) as run:
        assert trained_on(run) >= 1
        monkeypatch.setattr(type(run.ledger), "entries", lambda *_: iter(()))
        assert trained_on(run) == 1
    assert Builder.finish.__module__ == "s3t.building", "what is planted in a process stays there"
