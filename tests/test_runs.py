"""The run folder: made in one step, read strictly, its key and configuration checked."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pymerkle
import pytest

from s3t import runs
from s3t.digests import key_commitment, merkle_root
from s3t.errors import RunError
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.runs import RunConfig
from verify import derive, power

KEY = bytes(range(32))
RECORDS = [Record(f"r{i}", {"text": "x"}, 0) for i in range(5)]
MODEL = {"name": "m", "digest": "d", "layers": 6, "hidden": 8}
CONFIG = RunConfig(
    s3t_plan(Layout(1, 2, 2), Recipe(), 6), Recipe(), MODEL, {"name": "n", "classes": ["ä", "b"]}, 3, "1", "0.1"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    runs.create(tmp_path / "run", CONFIG, KEY, RECORDS, ((), ()))
    return tmp_path / "run"


def test_a_run_is_made_whole_and_read_back(path: Path) -> None:
    assert {p.name for p in path.parent.iterdir()} == {"run"}
    run = runs.open_run(path)
    assert (run.config, run.key, run.config.classes) == (CONFIG, KEY, ("ä", "b"))
    assert len(run.records.ids("train")) == 5
    assert next(run.ledger.entries("create")).body["rows"] == 5
    assert stat.S_IMODE((path / "secret.key").stat().st_mode) == 0o600
    run.close()


def test_what_is_there_is_not_overwritten(path: Path) -> None:
    with pytest.raises(RunError, match="exists already"):
        runs.create(path, CONFIG, KEY, RECORDS, ((), ()))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, __: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs, "write_synced", full)
    with pytest.raises(RunError, match="no space left"):
        runs.create(tmp_path / "run", CONFIG, KEY, RECORDS, ((), ()))
    assert list(tmp_path.iterdir()) == []


def test_another_version_is_refused(path: Path) -> None:
    raw = json.loads((path / "run.json").read_bytes())
    (path / "run.json").write_text(json.dumps(raw | {"format": 99, "s3t": "9.9"}))
    with pytest.raises(RunError, match=r"made by another version \(format 99, s3t '9.9'\)"):
        runs.open_run(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense"])
def test_a_damaged_configuration_is_refused(path: Path, content: str) -> None:
    (path / "run.json").write_text(content)
    with pytest.raises(RunError, match="is not a run's configuration"):
        runs.open_run(path)


def test_an_edited_configuration_is_refused(path: Path) -> None:
    (path / "run.json").write_bytes(dataclasses.replace(CONFIG, seed=4).to_bytes())
    with pytest.raises(RunError, match="is not the configuration that the ledger was opened with"):
        runs.open_run(path)
    raw = json.loads(CONFIG.to_bytes())
    del raw["seed"]
    (path / "run.json").write_text(json.dumps(raw))
    with pytest.raises(RunError, match=r"is damaged \('seed'\)"):
        runs.open_run(path)


@pytest.mark.parametrize("content", ["", "00" * 31, "xy" * 32])
def test_a_damaged_key_is_refused(path: Path, content: str) -> None:
    (path / "secret.key").write_text(content)
    with pytest.raises(RunError, match="does not hold 32 bytes in hex"):
        runs.open_run(path)


def test_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run at"):
        runs.open_run(tmp_path / "none")


def test_every_row_is_committed_to_before_training(path: Path) -> None:
    run = runs.open_run(path)
    leaves = sorted(bytes.fromhex(commitment) for commitment in run.records.commitments())
    created = next(run.ledger.entries("create")).body
    run.close()
    assert (path / "commitments").read_bytes() == b"".join(leaves)
    assert created["root"] == merkle_root(leaves)
    assert created["key"] == hashlib.sha256(b"s3t slot key v1\x00" + KEY).hexdigest() == key_commitment(KEY)


def test_a_run_without_its_commitments_is_refused(path: Path) -> None:
    (path / "commitments").unlink()
    with pytest.raises(RunError, match="commitments is missing"):
        runs.open_run(path)


def test_a_run_of_the_format_before_is_refused(path: Path) -> None:
    raw = json.loads((path / "run.json").read_bytes())
    (path / "run.json").write_text(json.dumps(raw | {"format": 2}))
    with pytest.raises(RunError, match="train anew"):
        runs.open_run(path)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65])
def test_both_merkle_roots_are_those_of_pymerkle(count: int) -> None:
    leaves = [hashlib.sha256(bytes([i])).digest() for i in range(count)]
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        tree.append_entry(leaf)
    assert merkle_root(leaves) == derive.merkle_root(leaves) == tree.get_root().hex()


def test_activations_that_were_erased_do_not_come_back(path: Path, tmp_path: Path) -> None:
    (path / runs.ACTIVATIONS).mkdir()
    (path / runs.ACTIVATIONS / "000").write_bytes(b"1")
    (tmp_path / "said").write_bytes(b"")
    run = runs.open_run(path)
    cuts = power.recorded(run.erase_scratch, path, tmp_path / "said")
    run.close()
    assert [f"{runs.ACTIVATIONS}/000" in power.disk(cut) for cut in (cuts[0], cuts[-1])] == [True, False]
