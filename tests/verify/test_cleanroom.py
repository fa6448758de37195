"""The clean room's own parts: the ensemble, the brief, and what it is not given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verify.brief import make_brief, probes, read_brief, write_brief
from verify.combining import combine
from verify.replay import _clean

LOGITS = [np.array(rows, dtype=np.float32) for rows in ([[1, 2, 0], [3, 0, 0]], [[0, 4, 0], [0, 1, 0]])]


HALVES = [0.5, 0.5]


def test_mean_of_logits() -> None:
    assert combine(LOGITS, HALVES, "mean-logits").tolist() == [[0.5, 3.0, 0.0], [1.5, 0.5, 0.0]]


def test_shards_weigh_what_they_are_given() -> None:
    one, other = (np.array([[x, 0.0]], dtype=np.float32) for x in (4.0, 8.0))
    assert combine([one, other], [0.25, 0.75], "mean-logits").tolist() == [[7.0, 0.0]]
    assert combine([one, -other], [0.75, 0.25], "vote").tolist() == [[0.75, 0.25]]


def test_votes_go_to_the_first_largest() -> None:
    assert combine(LOGITS, HALVES, "vote").tolist() == [[0, 1, 0], [0.5, 0.5, 0]]
    assert combine([np.zeros((1, 3), dtype=np.float32)], [1.0], "vote").tolist() == [[1, 0, 0]]


def test_mean_of_probabilities() -> None:
    found = combine(LOGITS, HALVES, "mean-probabilities")
    exact = [np.exp(x.astype(np.float64)) for x in LOGITS]
    expected = sum(e / e.sum(1, keepdims=True) for e in exact) / 2
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isfinite(combine([np.array([[1e30, 0]], dtype=np.float32)], [1.0], "mean-probabilities")).all()


def test_three_shards_are_summed_in_float64_in_order() -> None:
    parts = [np.array([[x]], dtype=np.float32) for x in (0.1, 0.2, 0.7)]
    third = 1 / 3
    expected = np.float32(sum(float(p[0, 0]) * third for p in parts))
    assert combine(parts, [third] * 3, "mean-logits")[0, 0] == expected


def test_a_brief_survives_writing(forge: Callable[..., Any], tmp_path: Path) -> None:
    run = forge()
    run.delete("row-000")
    brief = make_brief(*run.read(), 2, "served")
    write_brief(brief, tmp_path / "brief")
    assert read_brief(tmp_path / "brief") == brief
    assert (tmp_path / "brief").stat().st_mode & 0o077 == 0


def test_deleted_rows_are_physically_absent_from_a_brief(forge: Callable[..., Any], tmp_path: Path) -> None:
    run = forge()
    run.delete("row-000")
    run.restore(run.records[0])
    write_brief(make_brief(*run.read(), 1, "served"), tmp_path / "brief")
    raw = b"".join(path.read_bytes() for path in (tmp_path / "brief").iterdir())
    assert b"row-000" not in raw
    assert b"sentence 000" not in raw.replace(b"probe sentence 000", b"")
    assert b"row-001" in raw


def test_scope(forge: Callable[..., Any]) -> None:
    run = forge(slices=3, budget=3, shards=1)
    served = make_brief(*run.read(), 1, "served")
    surviving = make_brief(*run.read(), 1, "surviving")
    assert [node for node, _ in served.nodes] == [(0, (0,)), (0, (0, 1)), (0, (0, 1, 2))]
    assert len(surviving.nodes) == 9
    assert surviving.chains == served.chains == ((0, (0, 1, 2)),)


def test_probes_are_test_rows_or_else_retained_ones(forge: Callable[..., Any]) -> None:
    run = forge()
    evidence, _ = run.read()
    assert [record.id for record in probes(evidence, run.records)] == ["probe-000", "probe-001", "probe-002"]
    bare = forge(test=[])
    assert [record.id for record in probes(bare.read()[0], run.records[:2])] == ["row-000", "row-001"]


def test_the_environment_is_clean(forge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PYTHONSTARTUP", "x")
    monkeypatch.setenv("S3T_CACHE", "/c")
    brief = make_brief(*forge().read(), 3, "served")
    given = _clean(brief)
    assert "SECRET_TOKEN" not in given
    assert "PYTHONSTARTUP" not in given
    assert given["S3T_CACHE"] == "/c"
    assert given["HF_HUB_OFFLINE"] == "1"
    assert given["OMP_NUM_THREADS"] == "3"
    assert json.dumps(given)
