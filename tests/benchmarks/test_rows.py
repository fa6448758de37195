"""Rows: checked when made, attributable, written whole or not at all, read strictly."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.profiles import PROFILES
from benchmarks.rows import Header, Machine, Row, RowSet, header, interval, latest, machine, read, write
from benchmarks.summary import published
from benchmarks.workbench import Workbench
from s3t.errors import DataError

MACHINE = Machine("A CPU", 2, None, "Linux", "3.11", "2.13", "5.17", "0.18", 2, "float32")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def row(**changes: Any) -> Row:
    """Return a usable row, with ``changes``."""
    usual: dict[str, Any] = {
        "question": "accuracy",
        "profile": "quick",
        "method": "s3t",
        "budget": 3,
        "shards": 4,
        "slices": 3,
        "metric": "test accuracy",
        "unit": "share",
        "value": 0.75,
        "n": 500,
        "kind": "measured",
        "data": "trec6",
        "model": "minilm",
        "seed": 1,
        "deletions": 0,
    }
    return Row(**{**usual, **changes})


def rowset(*rows: Row, date: str = "2025-11-21T04:10:00Z", dirty: bool = False, gpu: str | None = None) -> RowSet:
    """Return a row set of ``rows``, or of one usual row, with a made-up header."""
    head = Header(date, COMMIT, dirty, "git", dataclasses.replace(MACHINE, gpu=gpu))
    return RowSet(head, rows or (row(),))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = (
        row(low=0.7, high=0.8, confidence=0.95, extra={"epochs": 4, "note": "über"}),
        row(method="retrain-full", seed=None, deletions=None, value=None, n=0, status="not-run", reason="too slow"),
    )
    path = write(rowset(*rows, gpu="A GPU"), tmp_path / "rows")
    assert path.name == "accuracy-quick-20251121T041000Z-01234567.json"
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"
    frame = read(tmp_path / "rows")
    for i, expected in enumerate(rows):
        for name, value in dataclasses.asdict(expected).items():
            found: Any = frame.at[i, name]
            assert found == value or (value is None and pd.isna(found)), name
    assert set(frame["commit"]) == {COMMIT} and set(frame["gpu"]) == {"A GPU"} and set(frame["file"]) == {path.name}
    assert not frame["dirty"].any()
    assert len(path.read_text().splitlines()[-3:]) == 3, "one row per line"


def test_evidence_is_never_overwritten(tmp_path: Path) -> None:
    first, second = write(rowset(), tmp_path), write(rowset(row(value=0.5)), tmp_path)
    assert first != second and sorted(read(tmp_path)["value"]) == [0.5, 0.75]


def test_a_sessions_file_grows_and_another_session_has_its_own(tmp_path: Path) -> None:
    def row(value: float, question: str = "capacity") -> dict[str, Any]:
        about = {"method": "s3t", "budget": 1, "shards": 1, "slices": 1, "data": "x", "metric": "m", "unit": "s"}
        return {**about, "kind": "measured", "question": question, "model": "tiny", "value": value, "n": 1}

    first, second = (Workbench(PROFILES["smoke"], tmp_path) for _ in range(2))
    assert first.write(tmp_path / "rows") == []
    first.add(**row(1.0))
    (path,) = first.write(tmp_path / "rows")
    first.add(**row(2.0))
    first.add(**row(5.0, "deletion"))
    assert first.write(tmp_path / "rows")[0] == path
    second.add(**row(3.0))
    (other,) = second.write(tmp_path / "rows")
    found = read(tmp_path / "rows").groupby("file")["value"].apply(list).to_dict()
    assert found[path.name] == [1.0, 2.0] and found[other.name] == [3.0] and len(found) == 3


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    write(rowset(), tmp_path)
    with pytest.raises(TypeError):
        write(rowset(row(extra={"bad": object()})), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_reasons_lose_folders_and_host_names(tmp_path: Path) -> None:
    reason = f"/home/someone/runs/x.db is locked on {platform.node()} (see https://example.org/a/b)"
    write(rowset(row(value=None, status="failed", reason=reason)), tmp_path)
    stored = read(tmp_path)["reason"][0]
    assert "someone" not in stored and ".../x.db is locked" in stored and "https://example.org/a/b" in stored
    assert re.search(rf"\b{re.escape(platform.node())}\b", stored) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "acuracy"}, r"question='acuracy' is unknown \(did you mean 'accuracy'\?\); choose from"),
        ({"profile": "fast"}, r"profile='fast' is unknown"),
        ({"kind": "mesured"}, r"did you mean 'measured'"),
        ({"status": "fine"}, r"status='fine' is unknown"),
        ({"budget": 1.5}, r"budget=1\.5 is not a count: give an int of at least 0$"),
        ({"deletions": -1}, r"deletions=-1 is not a count: give an int of at least 0 or None"),
        ({"seed": True}, r"seed=True is not a count"),
        ({"value": math.nan}, r"value=nan is not a finite number"),
        ({"value": "0.7"}, r"value='0\.7' is not a finite number"),
        ({"value": None}, r"'test accuracy' is ok with value None and n=500"),
        ({"n": 0}, r"n=0"),
        ({"value": None, "status": "failed"}, r"'test accuracy' is failed without a reason"),
        ({"low": 0.8, "high": 0.9}, r"= 0\.75 lies outside its interval 0\.8\.\.0\.9"),
        ({"model": None}, r"model=None is not text"),
    ],
)
def test_impossible_rows_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        row(**changes)


def test_a_row_set_answers_one_question_at_one_profile() -> None:
    with pytest.raises(DataError, match=r"one question at one profile, not \[\]; failed runs have rows too"):
        RowSet(rowset().header, ())
    with pytest.raises(DataError, match=r"\('accuracy', 'quick'\), \('cost', 'quick'\)"):
        rowset(row(), row(question="cost"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw["rows"][0].update(schema=2), r"schema 2 is unknown: this version reads 1"),
        (lambda raw: raw["rows"][0].update(colour=1), r"unknown Row key 'colour'"),
        (lambda raw: raw["rows"][0].update(bugdet=1), r"unknown Row key 'bugdet' \(did you mean 'budget'\?\)"),
        (lambda raw: raw["rows"][0].pop("n"), r"Row lacks \['n'\]"),
        (lambda raw: raw["header"].update(host="x"), r"unknown Header key 'host'"),
        (lambda raw: raw["header"]["machine"].update(hostname="x"), r"unknown Machine key 'hostname'"),
        (lambda raw: raw.pop("header"), r"missing key 'header'"),
        (lambda raw: raw.update(notes="x"), r"unknown top-level keys \['notes'\]"),
        (lambda raw: raw.update(rows=[3]), r"is not a row set"),
    ],
)
def test_reading_is_strict_and_names_the_file(tmp_path: Path, damage: Any, message: str) -> None:
    path = write(rowset(), tmp_path)
    raw = json.loads(path.read_text())
    damage(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert path.name in str(caught.value)


def test_half_a_file_and_no_folder_are_errors_and_no_rows_are_not(tmp_path: Path) -> None:
    assert read(tmp_path).empty and "commit" in read(tmp_path)
    with pytest.raises(DataError, match=r"there is no folder"):
        read(tmp_path / "nowhere")
    path = write(rowset(), tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match=path.name):
        read(tmp_path)


def test_the_header_names_commit_and_machine_and_no_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("S3T_COMMIT", raising=False)
    here = header(root=tmp_path)
    assert (here.commit, here.dirty, here.commit_source) == ("unknown", True, "none")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", here.date)
    assert here.machine.cores >= 1 and here.machine.cpu and here.machine.python == platform.python_version()
    words = re.split(r"\W+", json.dumps(dataclasses.asdict(here)))
    assert platform.node() not in words
    monkeypatch.setenv("S3T_COMMIT", COMMIT)
    assert header(root=tmp_path).commit_source == "environment" and not header(root=tmp_path).dirty
    monkeypatch.setenv("S3T_COMMIT", f"{COMMIT}-dirty")
    assert header(root=tmp_path).dirty
    monkeypatch.setenv("S3T_COMMIT", "main")
    assert header(root=tmp_path).commit_source == "none"


def test_changes_outside_results_make_a_tree_dirty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("S3T_COMMIT", raising=False)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "other").write_text("x")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert header(root=tmp_path).commit_source == "none", "a checkout of something else is no evidence"
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "rows.py").write_text("")
    git("add", ".")
    git("commit", "-q", "-m", "second")
    clean = header(root=tmp_path / "benchmarks")
    assert re.fullmatch(r"[0-9a-f]{40}", clean.commit) and clean.commit_source == "git" and not clean.dirty
    (tmp_path / "results" / "rows").mkdir(parents=True)
    (tmp_path / "results" / "rows" / "new.json").write_text("{}")
    assert not header(root=tmp_path / "benchmarks").dirty
    (tmp_path / "new.py").write_text("")
    assert header(root=tmp_path / "benchmarks").dirty


def test_a_machine_is_described_without_loading_torch() -> None:
    code = "import sys; from benchmarks.rows import machine; m = machine(); assert 'torch' not in sys.modules; print(m)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": _root()})
    assert done.returncode == 0, done.stderr
    assert "threads=None" in done.stdout and "gpu=None" in done.stdout
    assert machine("bfloat16").dtype == "bfloat16"


def _root() -> str:
    import benchmarks

    return str(Path(str(benchmarks.__file__)).parents[1])


def test_latest_keeps_the_newest_clean_rows_per_question_data_and_machine(tmp_path: Path) -> None:
    write(rowset(row(value=0.1), row(value=0.11, data="sst2"), date="2025-11-01T00:00:00Z"), tmp_path)
    write(rowset(row(value=0.2), row(value=0.21, seed=2), date="2025-11-02T00:00:00Z"), tmp_path)
    write(rowset(row(value=0.3), date="2025-11-03T00:00:00Z", dirty=True), tmp_path)
    write(rowset(row(value=0.4), date="2025-11-01T00:00:00Z", gpu="A GPU"), tmp_path)
    write(rowset(row(value=0.5, profile="full"), date="2025-10-01T00:00:00Z"), tmp_path)
    frame = read(tmp_path)
    assert sorted(latest(frame)["value"]) == [0.11, 0.2, 0.21, 0.4, 0.5]
    assert sorted(latest(frame, include_dirty=True)["value"]) == [0.11, 0.21, 0.3, 0.4, 0.5]
    assert latest(frame[frame["dirty"]]).empty


def test_a_session_that_measures_a_part_anew_hides_nothing_else(tmp_path: Path) -> None:
    earlier = (row(value=0.1, metric="test accuracy"), row(value=0.2, metric="area"), row(value=0.3, budget=1))
    write(rowset(*earlier), tmp_path)
    write(rowset(row(value=0.9, metric="area"), date="2025-11-22T04:10:00Z"), tmp_path)
    frame = read(tmp_path)
    assert sorted(latest(frame)["value"]) == [0.1, 0.3, 0.9]
    assert sorted(published(frame)["value"]) == [0.1, 0.3, 0.9]


@pytest.mark.parametrize(
    ("question", "kept"), [("accuracy", [0.1, 0.2, 0.9]), ("blocks", [0.1, 0.2, 0.9]), ("cost", [0.9])]
)
def test_later_sessions_add_methods_and_seeds_where_nothing_depends_on_the_session(
    tmp_path: Path, question: str, kept: list[float]
) -> None:
    said: dict[str, Any] = {"question": question}
    write(
        rowset(row(value=0.1, seed=1, **said), row(value=0.2, seed=2, **said), row(value=0.3, seed=3, **said)), tmp_path
    )
    write(rowset(row(value=0.9, seed=3, **said), date="2025-11-22T04:10:00Z"), tmp_path)
    assert sorted(published(read(tmp_path))["value"]) == kept
    other = row(value=0.7, seed=3, method="sequential", **said)
    write(rowset(other, date="2025-11-23T04:10:00Z"), tmp_path)
    assert sorted(published(read(tmp_path))["value"]) == ([0.1, 0.2, 0.7, 0.9] if len(kept) > 1 else [0.7])


def test_a_variant_of_a_design_is_replaced_by_itself(tmp_path: Path) -> None:
    said: dict[str, Any] = {"question": "design", "seed": None}
    write(
        rowset(row(value=0.1, extra={"variant": "a"}, **said), row(value=0.2, extra={"variant": "b"}, **said)), tmp_path
    )
    write(rowset(row(value=0.9, extra={"variant": "b"}, **said), date="2025-11-22T04:10:00Z"), tmp_path)
    assert sorted(published(read(tmp_path))["value"]) == [0.1, 0.9]


def test_interval_is_students_t() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0])
    # t(0.975, 3) = 3.182446, standard error = sqrt(5/3)/2
    half = 3.182446305 * math.sqrt(5 / 3) / 2
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert interval([0.5]) == (0.5, None, None)
    assert interval([2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert interval([1.0, 2.0, 3.0, 4.0], confidence=0.5)[1] > low  # type: ignore[operator]
    with pytest.raises(DataError, match=r"an interval of 0 values at 0\.95 is not possible"):
        interval([])
    with pytest.raises(DataError, match=r"at 1\.0 is not possible"):
        interval([1.0], confidence=1.0)
