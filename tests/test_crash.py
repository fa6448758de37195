"""A process killed at any point loses nothing acknowledged and never serves, or leaves behind, what was dropped.

A forked child ends at its k-th write (:mod:`verify.crash`), for every k there is.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3t import S3T
from s3t.backbone import Backbone
from s3t.digests import tensors_digest
from s3t.partition import tag
from s3t.records import Layout, Recipe, Record
from s3t.system import System
from verify import crash

KEY = bytes(range(32))
LAYOUT = Layout(1, 2, 2)
RECIPE = Recipe(rank=1, epochs=1.0, batch_size=8, dropout=0.1)
RECORDS = [Record(f"row-{i:02d}", {"text": f"secret{i:02d} cat {i % 3}"}, i % 2) for i in range(12)]
PROBE = [{"text": "the cat"}, {"text": "number 7"}]


def _system(path: Path, tiny: Backbone) -> S3T:
    return S3T(path, LAYOUT, classes=("a", "b"), model=tiny, recipe=RECIPE, key=KEY)


def _killed(at: int, work: Callable[[Callable[[str], None]], None], acks: Path) -> list[str] | None:
    """Run ``work`` in a child that dies at write ``at``: what it had acknowledged, or None if it came to its end."""
    acks.write_text("")

    def acknowledging() -> None:
        handle = os.open(acks, os.O_WRONLY | os.O_APPEND)
        work(lambda said: os.write(handle, (said + "\n").encode()) and None)

    return acks.read_text().split() if crash.killed(acknowledging, at) else None


def _served(system: System) -> dict[str, str]:
    return {name: tensors_digest(tensors) for name, tensors in system.weights().items()}


def _nodes(system: System) -> dict[str, tuple[str, str]]:
    """Digests of adapter and head of every surviving node."""
    run, facts = system._opened()
    facts.update()
    return {
        node.name: (run.ledger.entry(fact.seq).body["tensors"], run.ledger.entry(fact.seq).body["head"])
        for node, fact in facts.alive.items()
    }


def _trained(path: Path) -> list[str]:
    with sqlite3.connect(path / "ledger.sqlite") as db:
        return [key for (key,) in db.execute("SELECT json_extract(body, '$.key') FROM entries WHERE kind = 'train'")]


def _check_folder(system: System) -> None:
    """Only surviving nodes are on disk, each whole, and no trace of a deleted record is anywhere in the folder."""
    run, facts = system._opened()
    facts.update()
    for fact in facts.alive.values():
        for name, digest in fact.files.items():
            run.nodes.read(fact.key, name, digest)
    assert not run.nodes.keys() & facts.dropped_keys()
    everything = b"".join(path.read_bytes() for path in system.path.rglob("*") if path.is_file())
    for record in RECORDS:
        if record.id not in system.ids():
            assert record.id.encode() not in everything
            assert record.inputs["text"].split()[0].encode() not in everything  # type: ignore[union-attr, arg-type]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Path:
    system = _system(tmp_path_factory.mktemp("crash") / "run", tiny)
    system.fit(RECORDS)
    system.close()
    return system.path


@pytest.fixture(scope="module")
def deleted(fitted: Path, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crash") / "run"
    shutil.copytree(fitted, path)
    system = System.open(path, tiny)
    system.delete(["row-03"])
    system.close()
    return path


def _every(first: int = 1, step: int = 1) -> Iterator[int]:
    return itertools.count(first, step)


def _fit_killed_at(points: Iterator[int], tmp_path: Path, fitted: Path, tiny: Backbone) -> int:
    whole = System.open(fitted, tiny)
    wanted, nodes, served = _nodes(whole), len(_trained(fitted)), _served(whole)
    whole.close()
    count = 0
    for at in points:
        path = tmp_path / f"run-{at}"
        if _killed(at, lambda _, path=path: _system(path, tiny).fit(RECORDS) and None, tmp_path / "acks") is None:
            break
        count += 1
        before = _trained(path) if path.exists() else []
        system = _system(path, tiny)
        cost = system.fit(RECORDS)
        assert cost.nodes == nodes - len(before), "a finished node was trained again"
        assert _trained(path)[: len(before)] == before
        assert len(set(_trained(path))) == nodes
        assert _nodes(system) == wanted
        assert _served(system) == served
        assert system._opened()[0].nodes.keys() == set(_trained(path))
        _check_folder(system)
        system.close()
        assert not (tmp_path / f".run-{at}.partial").exists()
        shutil.rmtree(path)
    return count


def test_killed_at_points_of_fit(tmp_path: Path, fitted: Path, tiny: Backbone) -> None:
    assert _fit_killed_at(iter(range(3, 90, 12)), tmp_path, fitted, tiny) >= 5


@pytest.mark.slow
def test_killed_at_every_point_of_fit(tmp_path: Path, fitted: Path, tiny: Backbone) -> None:
    assert _fit_killed_at(_every(), tmp_path, fitted, tiny) > 60


def _delete(path: Path, tiny: Backbone, say: Callable[[str], None]) -> None:
    system = System.open(path, tiny)
    for name in ("row-03", "row-08"):
        say(system.delete([name]).deleted[0])


def test_killed_at_every_point_of_deletions(tmp_path: Path, fitted: Path, tiny: Backbone) -> None:
    outcomes = set()
    for at in _every():
        path = tmp_path / f"run-{at}"
        shutil.copytree(fitted, path)
        acks = _killed(at, lambda say, path=path: _delete(path, tiny, say), tmp_path / "acks")
        if acks is None:
            break
        system = System.open(path, tiny)
        gone = [record.id for record in RECORDS if record.id not in system.ids()]
        assert set(acks) <= set(gone), "an acknowledged deletion was lost"
        assert len(gone) <= len(acks) + 1
        assert system.status().deleted == len(gone)
        outcomes.add((tuple(acks), tuple(gone)))
        _check_folder(system)
        hit = set(system._opened()[1].hits)
        assert not [c for c in system.provenance().chains for n in c.nodes for p in n.prefix if (n.shard, p) in hit]
        if system.status().live:
            system.predict(PROBE)
        system.delete(gone[-1:])  # given again: a no-op that says so
        system.close()
        shutil.rmtree(path)
    assert at > 20
    assert outcomes == {((), ()), ((), ("row-03",)), (("row-03",), ("row-03",)), (("row-03",), ("row-03", "row-08"))}


def test_killed_at_every_point_of_recovery(tmp_path: Path, fitted: Path, tiny: Backbone) -> None:
    """The request is in the ledger and nothing else was done; the process that completes it dies too."""
    pending = tmp_path / "pending"
    shutil.copytree(fitted, pending)
    system = System.open(pending, tiny)
    run, place = system._opened()[0], system._opened()[0].records.place(tag(KEY, "row-03"))
    assert place is not None and place[1] is not None
    run.ledger.append_request({"tags": [tag(KEY, "row-03")], "slots": [place[1]]}, [tag(KEY, "row-03")], [place[1]])
    system.close()
    for at in _every():
        path = tmp_path / f"run-{at}"
        shutil.copytree(pending, path)
        ended = _killed(at, lambda _, path=path: System.open(path, tiny) and None, tmp_path / "acks") is None
        system = System.open(path, tiny)
        assert "row-03" not in system.ids()
        _check_folder(system)
        system.close()
        shutil.rmtree(path)
        if ended:
            break
    assert at > 10


def _refresh_killed_at(points: Iterator[int], tmp_path: Path, deleted: Path, tiny: Backbone) -> int:
    whole = tmp_path / "whole"
    shutil.copytree(deleted, whole)
    system = System.open(whole, tiny)
    system.refresh()
    wanted, served, total = _nodes(system), _served(system), len(_trained(whole))
    system.close()
    scratch = _system(tmp_path / "scratch", tiny)
    scratch.fit([record for record in RECORDS if record.id != "row-03"])
    assert _nodes(scratch) == wanted
    scratch.close()
    count = 0
    for at in points:
        path = tmp_path / f"run-{at}"
        shutil.copytree(deleted, path)
        if _killed(at, lambda _, path=path: System.open(path, tiny).refresh() and None, tmp_path / "acks") is None:
            break
        count += 1
        before = _trained(path)
        system = System.open(path, tiny)
        if system.status().live:
            system.predict(PROBE)  # what survives serves in the meantime
        assert system.refresh().nodes == total - len(before)
        assert _nodes(system) == wanted
        assert _served(system) == served
        _check_folder(system)
        assert system._opened()[0].nodes.keys() == system._opened()[1].live_keys()
        system.close()
        shutil.rmtree(path)
    return count


def test_killed_at_points_of_refresh(tmp_path: Path, deleted: Path, tiny: Backbone) -> None:
    assert _refresh_killed_at(iter(range(2, 60, 9)), tmp_path, deleted, tiny) >= 4


@pytest.mark.slow
def test_killed_at_every_point_of_refresh(tmp_path: Path, deleted: Path, tiny: Backbone) -> None:
    assert _refresh_killed_at(_every(), tmp_path, deleted, tiny) > 40


FIT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from s3t import S3T, Layout, Recipe, Record
records = [Record(f"row-{i:02d}", {"text": f"secret{i:02d} cat {i % 3}"}, i % 2) for i in range(12)]
recipe = Recipe(rank=1, epochs=1.0, batch_size=8, dropout=0.1)
S3T(Path(sys.argv[1]), Layout(1, 2, 2), classes=("a", "b"), model="tiny", recipe=recipe, key=bytes(range(32))).fit(
    records, lambda done, total, what: print(done, flush=True))
"""


def test_kill_minus_nine_during_fit(tmp_path: Path, fitted: Path, tiny: Backbone) -> None:
    path = tmp_path / "run"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen([sys.executable, "-c", FIT, str(path)], stdout=subprocess.PIPE, env=env, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 2:
            break
    child.send_signal(signal.SIGKILL)
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    before = _trained(path)
    assert len(before) >= 2
    system = _system(path, tiny)
    assert system.fit(RECORDS).nodes == 4 - len(before)
    whole = System.open(fitted, tiny)
    assert _nodes(system) == _nodes(whole)
    _check_folder(system)
    whole.close()
    system.close()


def test_a_lock_ends_with_its_process(tmp_path: Path, fitted: Path, tiny: Backbone) -> None:
    path = tmp_path / "run"
    shutil.copytree(fitted, path)
    child = os.fork()
    if child == 0:
        with System.open(path, tiny)._opened()[0].building():
            time.sleep(0.05)
            os._exit(0)
    os.waitpid(child, 0)
    system = System.open(path, tiny)
    assert system.refresh().nodes == 0
    system.close()
