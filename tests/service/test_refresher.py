"""Refreshes beside the service, in processes: what they leave, and what a stop, a failure or a deletion does to them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import planted_work
import pytest
from command_line import refused
from planted_work import mark, until, wait_for
from serving_http import LAYOUT, PROBE, RECIPE, RECORDS, Served, placed

from baselines.methods import make_plan
from benchmarks.services import Listening
from s3t import runs
from s3t.backbone import Backbone
from s3t.building import Builder
from s3t.errors import ServiceError
from s3t.records import Record
from s3t.refreshing import Policy
from s3t.service.refresher import Refresher, Refreshing, trained_on
from s3t.system import System

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


def _from_scratch(serve: Serve, fitted: Fitted, path: Path, victims: Sequence[str]) -> bytes:
    """Return the answer of a run that was trained on the retained records alone."""
    fitted(path, [record for record in RECORDS if record.id not in victims])
    return serve(path).predict(*PROBE).body


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
        until(lambda: served.status()["missing_nodes"] == 0)
        until(lambda: not served.refreshes()["running"])
    finally:
        ended.set()
        thread.join()
    assert set(answers) == {200}
    status = served.status()
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
    status = served.status()
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
    until(lambda: served.refreshes()["last_outcome"] == "done")
    until(lambda: served.status()["missing_nodes"] == 0)
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
    assert served.refreshes()["running"]
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
    until(lambda: served.refreshes()["ended"] >= 2)
    told = served.refreshes()
    assert told["last_outcome"] == said
    assert set(log) == {f"refresh {said}; tried again after 0.3 s"}
    assert served.predict(*PROBE).status == 200, "the other shard lives"
    assert planted_work.SECRET not in json.dumps(told) + "".join(log) + "".join(capfd.readouterr())


@pytest.mark.slow
def test_after_a_failure_the_next_one_succeeds(serve: Serve, fitted: Fitted, tmp_path: Path) -> None:
    log: list[str] = []
    served = serve(refreshing=Refreshing(DEAD, rest=0.3, log=log.append, work=planted_work.recover))
    served.delete(*KILL)
    until(lambda: served.refreshes()["last_outcome"] == "done")
    assert (served.refreshes()["ended"], len(log)) == (2, 1)
    assert served.predict(*PROBE).body == _from_scratch(serve, fitted, tmp_path / "scratch", KILL)


@pytest.mark.slow
def test_another_build_is_waited_for(serve: Serve, tiny: Backbone) -> None:
    log: list[str] = []
    served = serve(refreshing=Refreshing(DEAD, rest=0.3, log=log.append, work=planted_work.describe))
    with closing(System.open(served.run, tiny)) as other, other._opened()[0].building():
        served.delete(*KILL)
        until(lambda: log)
    assert set(log) == {"refresh failed: BusyError; tried again after 0.3 s"}
    until(lambda: served.refreshes()["last_outcome"] == "done")
    assert served.status()["missing_nodes"] == 0


@pytest.mark.slow
def test_a_number_of_threads_can_be_given(serve: Serve) -> None:
    served = serve(refreshing=Refreshing(DEAD, threads=2, work=planted_work.describe))
    with closing(runs.open_run(served.run)) as run:
        own = trained_on(run)
    served.delete(*KILL)
    until(lambda: served.refreshes()["last_outcome"] == "done")
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
        until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child), 30)
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
