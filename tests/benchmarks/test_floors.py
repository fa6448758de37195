"""Lives with an analytic head: mixtures of what was kept, their rows, and the tables of who is ahead where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.methods import make_plan
from benchmarks import dominance
from benchmarks.dominance import Gap, curves, gaps, held_against, main, name, opponent, table, verdicts
from benchmarks.floored import Played, judged, keep, kept
from benchmarks.floors import AREA, HEAD, MIXTURES, SHOWN, Kind, Life, Mixture, Served, kinds, rows_of
from benchmarks.rows import Row, RowSet, header, read, write
from s3t.analytic.head import AnalyticHead
from s3t.contract import Cost
from s3t.ensembling import Outputs
from s3t.errors import DataError
from s3t.records import Layout, Recipe

PLAN = make_plan("s3t", Layout(2, 2, 1), Recipe(), 2, head=AnalyticHead(temperature=1.0), share=0.5)
LABELS = [0, 1]
HEALTHY = {0: np.array([[9.0, 0.0], [0.0, 9.0]], np.float32), 1: np.array([[9.0, 0.0], [9.0, 0.0]], np.float32)}
WRONG = np.array([[0.0, 1.0], [1.0, 0.0]])
"""Of the head: sure of the wrong classes, though less sure than the chains."""


def played() -> Played:
    """Return a life: both chains whole, one cut, none."""
    points = (
        (0, Outputs(HEALTHY, {0: 2, 1: 2}, WRONG)),
        (3, Outputs(HEALTHY, {0: 2, 1: 1}, WRONG)),
        (5, Outputs({}, {}, WRONG)),
    )
    return Played(PLAN, Recipe(), points, Cost(record_passes=7, forward_passes=3), 100, 40)


def test_mixtures_of_a_life() -> None:
    life = judged(played(), kinds(2)[0], LABELS)
    assert {mixture for _, mixture in life.points[0].accuracy} == {*MIXTURES, Mixture(1.0)}
    alone = [point.accuracy[HEAD, Mixture(1.0)] for point in life.points]
    chains = [point.accuracy["s3t", Mixture(0.0)] for point in life.points]
    assert alone == [0.0, 0.0, 0.0] and chains[2] == 0.0  # nobody answers for dead chains
    # Shard 1 says class 0 of both; equal logits of the second record leave a tie, and the first class wins it.
    assert chains == [0.5, 0.5, 0.0]
    # By length the longer chain, which is right about the second record, outweighs the other.
    assert life.points[1].accuracy["s3t", Mixture(0.0, "length")] == 1.0
    assert life.points[0].accuracy["s3t+floor", Mixture(0.25)] == 0.5
    assert life.points[2].accuracy["s3t+floor", Mixture(0.25)] == 0.0
    assert [point.live for point in life.points] == [1.0, 1.0, 0.0]


def test_a_kept_life_is_the_life(tmp_path: Path) -> None:
    file, about = tmp_path / "deeper" / "life.npz", {"seed": 3, "plan": PLAN.to_json()}
    keep(played(), file, about)
    assert [path.name for path in file.parent.iterdir()] == ["life.npz"]
    found = kept(file, PLAN, Recipe(), about)
    assert judged(found, kinds(2)[0], LABELS) == judged(played(), kinds(2)[0], LABELS)
    assert (found.cost, found.nodes, found.features) == (played().cost, 100, 40)
    for (deletions, mine), (others, theirs) in zip(found.points, played().points, strict=True):
        assert (deletions, mine.lengths) == (others, theirs.lengths)
        assert mine.head is not None and theirs.head is not None and np.array_equal(mine.head, theirs.head)
    with pytest.raises(
        DataError, match=r"life\.npz holds a life with another seed; remove it, or give another --lives"
    ):
        kept(file, PLAN, Recipe(), {**about, "seed": 4})


def test_rows_of_a_life() -> None:
    kind = kinds(2)[0]
    rows = list(rows_of(judged(played(), kind, LABELS), kind, head=True))
    areas = [row for row in rows if row["metric"] == AREA]
    assert len(areas) == len(MIXTURES) + 1
    assert all([point[0] for point in row["extra"]["curve"]] == [0, 3, 5] for row in areas)
    assert {tuple(row["extra"].get("live", ())) for row in areas} == {(), (1.0, 1.0, 0.0)}
    others = [row for row in rows if row["metric"] != AREA]
    told = {(row["method"], row["extra"]["share"]) for row in others}
    assert told == {("s3t", 0.0), ("s3t+floor", 0.25), (HEAD, 1.0)} and len(SHOWN) == 3
    costs = {(row["method"], row["metric"]): (row["value"], row["unit"]) for row in others}
    assert costs["s3t", "bytes stored"] == (100, "bytes") and costs["s3t+floor", "bytes stored"] == (140, "bytes")
    assert costs[HEAD, "bytes stored"] == (40, "bytes") and costs[HEAD, "record passes"] == (0, "records")
    assert costs["s3t", "forward passes"] == (0, "records") and costs["s3t+floor", "forward passes"] == (3, "records")
    assert HEAD not in {row["method"] for row in rows_of(judged(played(), kind, LABELS), kind, head=False)}


def test_retrained_systems_are_judged_without_a_head() -> None:
    kind = next(kind for kind in kinds(3) if kind.name == "retrain-lora")
    rows = list(rows_of(judged(played(), kind, LABELS), kind, head=False))
    areas = [row for row in rows if row["metric"] == AREA]
    assert [(row["method"], row["extra"]["share"]) for row in areas] == [("retrain-lora", 0.0)]
    costs = {row["metric"]: row["value"] for row in rows if row["metric"] != AREA}
    assert costs == {"record passes": 7, "forward passes": 0, "bytes stored": 100}


def test_stacked_blocks_store_what_layer_blocks_do() -> None:
    named = {(kind.name, kind.budget): kind for kind in kinds(3)}
    assert named["s3t-stacked", 1].ranks == 1 / 3 and named["s3t-stacked", 3].design is not None
    assert {budget for _, budget in named} == {1, 3}


def rowset(accuracies: dict[str, list[list[float]]]) -> RowSet:
    """Return rows of lives: by system a list of curves, one per seed, after 0, 2, 4, ... deletions."""
    rows = []
    for system, seeds in accuracies.items():
        share = 1.0 if system == HEAD else 0.5 if system.endswith("+floor") else 0.0
        mixture = Mixture(share)
        for seed, curve in enumerate(seeds):
            points = tuple(Served(2 * at, {(system, mixture): value}, 1.0) for at, value in enumerate(curve))
            life = Life(points, Cost(record_passes=10), 1000, 500)
            about: dict[str, Any] = {"question": "floors", "profile": "pairs", "data": "trec6", "model": "minilm"}
            about |= {"shards": 4, "slices": 3, "seed": seed}
            rows += [Row(**about, **fields) for fields in rows_of(life, Kind(system, "s3t"), head=True)]
    return RowSet(replace(header(), dirty=False), tuple(rows))


BASE = {"s3t": [[0.9, 0.4], [0.9, 0.5]], "sisa-lora-lazy": [[0.8, 0.5], [0.8, 0.5]], HEAD: [[0.7, 0.7], [0.7, 0.7]]}


def test_gaps_are_paired_by_seed(tmp_path: Path) -> None:
    write(rowset(BASE | {"s3t+floor": [[0.95, 0.7], [0.85, 0.8]]}), tmp_path)
    found = curves(read(tmp_path), "trec6")
    system = ("s3t+floor", 1, 0.5, "equal", "linear")
    told = list(gaps(found, system, [opponent("s3t", 1), opponent(HEAD, 1)]))
    assert [(gap.opponent, gap.deletions, round(gap.mean, 6), gap.n) for gap in told] == [
        ("s3t", 0, 0.0, 2), ("s3t", 2, 30.0, 2), (HEAD, 0, 20.0, 2), (HEAD, 2, 5.0, 2),
    ]  # fmt: skip
    wide = told[0]
    assert wide.low is not None and wide.high is not None and wide.low < -60 and wide.high > 60
    assert isinstance(wide, Gap) and told[1].low == pytest.approx(30.0)


def test_tables_say_where_a_system_is_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = {"s3t+floor": [[0.95, 0.75], [0.95, 0.75]], "sequential+floor": [[0.88, 0.72], [0.88, 0.72]]}
    write(rowset(BASE | better), tmp_path)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "## trec6" in said
    assert "| s3t+floor, share 0.5 | 0 of 6 | 0 | +5.0 [+5.0, +5.0] |" in said
    assert "| sequential+floor, share 0.5 | 1 of 6 | 1 | -2.0 [-2.0, -2.0] | s3t, 0 |" in said
    assert "| system, deleted | 0 | 2 | seeds |" in said and "| s3t | 0.900 | 0.450 | 2 |" in said
    assert "| s3t | 2 | 0.900 [0.900, 0.900] | 0.675 [0.357, 0.993] | 10 | 1 kB |" in said
    frame = read(tmp_path)
    assert table(frame, "trec6") in said and verdicts(frame, "trec6") in said


def test_what_is_held_against_s3t(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retrained = {"retrain-lora": [[0.95, 0.9], [0.93, 0.9]], "s3t+floor": [[0.9, 0.8], [0.9, 0.8]]}
    write(rowset(BASE | retrained), tmp_path)
    lines = held_against(read(tmp_path), "trec6").splitlines()
    assert lines[0] == "| system | against | seeds | before deletions | up to 2 | over all 2 |"
    # (0.9 + 0.4) / 2 - (0.8 + 0.5) / 2 and (0.9 + 0.5) / 2 - (0.8 + 0.5) / 2, in points.
    assert "| s3t | sisa-lora-lazy | 2 | +10.0 [+10.0, +10.0] | +2.5 [-29.3, +34.3] | +2.5 [-29.3, +34.3] |" in lines
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| s3t", "sisa-lora-lazy"], ["| s3t", "retrain-lora"]]
    assert "| s3t | retrain-lora | 2 | -4.0 [-16.7, +8.7] |" in lines[3]
    monkeypatch.setattr(dominance, "EARLY", 2)
    write(rowset({"s3t": [[0.9, 0.5, 0.1]], "sisa-lora-lazy": [[0.9, 0.3, 0.1]]}), tmp_path / "longer")
    lines = held_against(read(tmp_path / "longer"), "trec6").splitlines()
    assert "up to 2 | over all 4" in lines[0] and lines[2].endswith("| +0.0 | +10.0 | +10.0 |")
    write(rowset({"s3t": [[0.9, 0.4]]}), tmp_path / "alone")
    assert "no baseline" in held_against(read(tmp_path / "alone"), "trec6")


def test_tables_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "python -m benchmarks.dominance results/rows" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2 and "has no clean rows of floors" in capsys.readouterr().err
    write(rowset({"s3t+floor": [[0.9, 0.8]]}), tmp_path)
    assert (
        main([str(tmp_path)]) == 2 and "s3t+floor, share 0.5 and s3t have no seed in common" in capsys.readouterr().err
    )
    one = rowset(BASE)
    write(one, tmp_path / "twice")
    write(
        replace(one, header=replace(one.header, machine=replace(one.header.machine, cpu="another"))), tmp_path / "twice"
    )
    assert main([str(tmp_path / "twice")]) == 2 and "two curves of" in capsys.readouterr().err
    shifted = rowset(BASE | {"s3t+floor": [[0.9, 0.8]]})
    moved = json.loads(write(shifted, tmp_path / "other").read_text())
    for row in moved["rows"]:
        if row["method"] == "s3t+floor" and "curve" in row["extra"]:
            row["extra"]["curve"][1][0] = 3
    next((tmp_path / "other").iterdir()).write_text(json.dumps(moved))
    assert (
        main([str(tmp_path / "other")]) == 2 and "were not measured after the same deletions" in capsys.readouterr().err
    )


def test_systems_in_words() -> None:
    assert name(("s3t-stacked+floor", 3, 0.25, "length", "logarithmic")) == (
        "s3t-stacked+floor, 3 orders, share 0.25, weights by length, logarithmic"
    )
    assert name(("s3t", 1, 0.0, "equal", "linear")) == "s3t" and name((HEAD, 1, 1.0, "equal", "linear")) == HEAD
