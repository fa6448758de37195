"""Figures: what is drawn from which rows, what is not and says so, and that neither torch nor the system is needed."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks.figures import draw
from benchmarks.painters import look
from benchmarks.rows import Header, Machine, Row, RowSet, write
from s3t.errors import DataError

MACHINE = Machine("A CPU", 2, None, "Linux", "3.11", "2.13", "5.17", "0.18", 2, "float32")
METHODS = [("s3t", 1), ("s3t", 3), ("sequential", 1), ("sisa-lora", 1), ("retrain-lora", 1)]


def made_up(question: str, *, seeds: tuple[int, ...] = (0, 1, 2), profile: str = "quick") -> list[Row]:
    """Return rows that look like those of the benchmarks."""
    rows = []
    for method, budget in METHODS:
        undivided = method.startswith("retrain")
        for seed in seeds:
            about: dict[str, Any] = {
                "question": question,
                "profile": profile,
                "method": method,
                "budget": budget,
                "shards": 1 if undivided else 4,
                "slices": 1 if undivided else 3,
                "data": "trec6[600]",
                "model": "minilm",
                "seed": seed,
                "kind": "measured",
            }
            if question == "storage":
                rows.append(Row(**about, metric="bytes stored", unit="bytes", value=1e6 * budget, n=1))
            for done in (0, 4, 24):
                if question == "accuracy":
                    offline = method == "s3t" and budget == 1 and done == 24
                    value = 0.0 if offline else 0.8 + 0.01 * seed - 0.001 * done
                    extra = {"offline": offline}
                    unit: dict[str, Any] = {"metric": "test accuracy", "unit": "share"}
                    rows.append(Row(**about, **unit, value=value, n=240, deletions=done, extra=extra))
                if question == "cost":
                    kind = "derived" if undivided and done == 24 else "measured"
                    unit = {"metric": "record passes", "unit": "passes", "kind": kind}
                    rows.append(Row(**{**about, **unit}, value=2400 + 2400 * done * undivided, n=1, deletions=done))
    return rows


def capacity(profile: str = "quick") -> list[Row]:
    """Return closed form, simulation and real system for one layout."""
    about: dict[str, Any] = {"question": "capacity", "metric": "deletions to dead system", "unit": "requests"}
    rows = []
    for budget in (1, 2, 3):
        about |= {"profile": profile, "method": "s3t", "budget": budget, "shards": 4, "slices": 3}
        spread: dict[str, Any] = {"low": 24.0, "high": 26.0, "confidence": 0.95}
        rows.append(Row(**about, value=25.0, n=1, kind="derived"))
        rows.append(Row(**about, value=25.1, n=1000, kind="simulated", seed=0, **spread))
        rows.append(Row(**about, value=24.9, n=20, kind="measured", data="synthetic", model="tiny", **spread))
    return rows


def put(folder: Path, *rows: Row, dirty: bool = False) -> Path:
    """Write one row set."""
    return write(RowSet(Header("2025-11-21T04:10:00Z", "0" * 40, dirty, "git", MACHINE), rows), folder)


def everything(folder: Path) -> None:
    """Write row sets for every figure."""
    put(folder, *capacity())
    for question in ("accuracy", "cost", "storage"):
        put(folder, *made_up(question))


def test_every_figure_is_drawn_at_the_promised_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything(tmp_path / "rows")
    with caplog.at_level(logging.WARNING):
        drawn = draw(tmp_path / "rows", tmp_path / "figures")
    assert not caplog.messages
    assert [path.name for path in drawn] == [
        "capacity-quick.png",
        "accuracy-by-deletions-quick-trec6-600-minilm-4x3.png",
        "cost-by-deletions-quick-trec6-600-minilm-4x3.png",
        "accuracy-by-method-quick-trec6-600-minilm-4x3.png",
        "storage-by-method-quick-trec6-600-minilm-4x3.png",
    ]
    for path in drawn:
        raw = path.read_bytes()
        assert struct.unpack(">II", raw[16:24]) == (1200, 750) and len(raw) < 200_000


def test_the_same_rows_give_the_same_pixels(tmp_path: Path) -> None:
    put(tmp_path / "rows", *capacity())
    first, second = (draw(tmp_path / "rows", tmp_path / name)[0].read_bytes() for name in ("one", "two"))
    assert first == second


def test_missing_questions_are_named_and_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "rows", *made_up("storage", seeds=(0,)))
    with caplog.at_level(logging.WARNING):
        drawn = draw(tmp_path / "rows", tmp_path / "figures")
    assert [path.name.split("-quick")[0] for path in drawn] == ["storage-by-method"]
    told = "\n".join(caplog.messages)
    for missing in ("no rows of capacity", "no rows of test accuracy", "no rows of record passes"):
        assert missing in told


def test_a_profile_can_be_chosen(tmp_path: Path) -> None:
    put(tmp_path / "rows", *capacity())
    put(tmp_path / "rows", *capacity("smoke"))
    assert len(draw(tmp_path / "rows", tmp_path / "figures")) == 2
    chosen = draw(tmp_path / "rows", tmp_path / "figures", profile="smoke")
    assert [path.name for path in chosen] == ["capacity-smoke.png"]
    with pytest.raises(DataError, match=r"no rows of profile 'full': there are quick, smoke"):
        draw(tmp_path / "rows", tmp_path / "figures", profile="full")


def test_no_rows_and_only_dirty_rows_are_errors(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with pytest.raises(DataError, match=r"there are no rows: run a benchmark first"):
        draw(tmp_path / "rows", tmp_path / "figures")
    put(tmp_path / "rows", *capacity(), dirty=True)
    with pytest.raises(DataError, match=r"all 9 rows are of a dirty tree: commit and run again"):
        draw(tmp_path / "rows", tmp_path / "figures")
    assert len(draw(tmp_path / "rows", tmp_path / "figures", include_dirty=True)) == 1


def test_failed_rows_alone_draw_nothing(tmp_path: Path) -> None:
    ok = capacity()[0]
    failed: dict[str, Any] = {"value": None, "n": 0, "kind": "measured", "status": "failed", "reason": "no room"}
    about: dict[str, Any] = {
        name: getattr(ok, name) for name in ("profile", "method", "budget", "shards", "slices", "metric", "unit")
    }
    put(tmp_path / "rows", Row(question="capacity", **about, **failed))
    assert draw(tmp_path / "rows", tmp_path / "figures") == []


def test_every_method_has_a_look_of_its_own() -> None:
    looks = {
        (look(method, budget)["color"]) for method, budget in [*METHODS, ("s3t", 2), ("retrain-full", 1), ("new", 1)]
    }
    assert len(looks) == 8
    assert look("s3t", 3) == look("s3t", 3)


def test_neither_torch_nor_the_system_is_loaded(tmp_path: Path) -> None:
    everything(tmp_path / "rows")
    code = (
        "import sys; from pathlib import Path; from benchmarks.figures import draw; "
        f"draw(Path({str(tmp_path / 'rows')!r}), Path({str(tmp_path / 'figures')!r})); "
        "print([m for m in ('torch', 'transformers', 's3t.system', 'baselines', 'verify') if m in sys.modules])"
    )
    root = str(Path(str(benchmarks.__file__)).parents[1])
    environment = {"PYTHONPATH": root, "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
