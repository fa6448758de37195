"""Figures: what is drawn from which rows, what is not and says so, and that neither torch nor the system is needed."""

from __future__ import annotations

import itertools
import logging
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks.blocks import ACCURACY, CAPACITY, MARKERS, PAPER, paint
from benchmarks.expected import rows_of as expectations
from benchmarks.figures import draw
from benchmarks.floors import BESIDE, Life, Mixture, Served, kinds, rows_of
from benchmarks.painters import look
from benchmarks.planning import as_rows, curve_of_rows, draw_options
from benchmarks.refreshes import as_rows as refreshed
from benchmarks.rows import Header, Machine, Row, RowSet, read, write
from benchmarks.spreads import as_row
from s3t.contract import Cost
from s3t.errors import DataError
from s3t.plan import s3t_plan
from s3t.planner.lives import Setting, simulate_lives, untouched
from s3t.planner.options import Needs, options, pareto, pick
from s3t.planner.price import Price
from s3t.planner.spreading import node_times, spread
from s3t.records import Layout, Recipe
from s3t.refreshing import Policy

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


def survival() -> list[Row]:
    """Return requests until dead over a small grid, slices in service, and the paper's formula."""
    base: dict[str, Any] = {"question": "survival", "profile": "quick", "method": "s3t", "n": 1}
    life: dict[str, Any] = base | {"metric": "requests until dead", "unit": "requests"}
    share: dict[str, Any] = base | {"metric": "share in service", "unit": "share", "shards": 5, "slices": 6}
    kept: dict[str, Any] = base | {"metric": "some order keeps its first slices", "unit": "probability"}
    rows = []
    for kind, m, pieces, event in itertools.product(("derived", "simulated"), (1, 5), (1, 3), ("first", "last")):
        for budget in range(1, pieces + 1):
            sizes = {"shards": m, "slices": pieces, "budget": budget, "value": float(m * pieces * budget)}
            rows.append(Row(**life, **sizes, kind=kind, extra={"event": event}))
    for kind, budget, done in itertools.product(("derived", "simulated"), (1, 6), (0, 10, 20)):
        rows.append(Row(**share, budget=budget, value=1 / (1 + done / budget), deletions=done, kind=kind))
    for kind, j, done in itertools.product(("derived", "claimed"), (1, 2), (0, 5)):
        sizes = {"shards": 1, "slices": 6, "budget": 3, "value": 1 / (1 + j * done), "deletions": done}
        rows.append(Row(**kept, **sizes, kind=kind, extra={"j": j}))
    return rows


def orders() -> list[Row]:
    """Return the shares of five rules under two families of priors."""
    about: dict[str, Any] = {"question": "orders", "metric": "share of the optimum", "unit": "share", "kind": "derived"}
    about |= {"profile": "quick", "method": "s3t", "shards": 1, "slices": 4, "n": 9}
    rules = ("cyclic", "matching (paper)", "matching (expected_length)", "conditional", "random")
    return [
        Row(**about, budget=budget, value=0.5 + 0.08 * place, extra={"rule": rule, "prior": prior, "horizon": 20})
        for prior in ("uniform", "Zipf")
        for budget in (1, 2, 3)
        for place, rule in enumerate(rules)
    ]


def streams() -> list[Row]:
    """Return capacity and slices in service under two streams, one of which was not played to the end."""
    about: dict[str, Any] = {"question": "streams", "profile": "quick", "shards": 4, "slices": 3}
    rows = []
    for method, budget, stream in itertools.product(("s3t", "sisa-lora-lazy"), (1,), ("uniform:once", "pareto:1.5")):
        case: dict[str, Any] = about | {"method": method, "budget": budget, "extra": {"stream": stream}}
        tiny = case | {"model": "tiny", "data": "synthetic"}
        death: dict[str, Any] = tiny | {"metric": "requests to dead system", "unit": "requests"}
        if stream == "pareto:1.5":
            rows.append(Row(**death, value=None, n=0, kind="measured", status="not-run", reason="expected to take 999"))
        for kind in ("derived", "simulated", "measured"):
            if stream != "pareto:1.5":
                rows.append(Row(**death, value=25.0, n=5, kind=kind, low=20.0, high=30.0, confidence=0.95))
            for done in (4, 24):
                share: dict[str, Any] = {"metric": "share in service", "unit": "share", "deletions": done, "kind": kind}
                rows.append(Row(**tiny, **share, value=1 - done / 30, n=5))
                rows.append(Row(**case, **share, model="minilm", data="trec6-600", seed=0, value=1 - done / 30, n=1))
        for done in (4, 24):
            told: dict[str, Any] = {"metric": "test accuracy", "unit": "share", "kind": "measured", "seed": 0}
            rows.append(Row(**case, **told, model="minilm", data="trec6-600", value=0.8, n=240, deletions=done))
    return rows


def planning() -> list[Row]:
    """Return what the planner weighs for a small need."""
    needs = Needs(2000, 1.0, Recipe(), rebuilds=100.0, most_shards=4)
    found = list(options(needs, Price("tiny", 3, 1e-3, 1e3, 1e3, 1e6), {}))
    best, _ = pick(found, needs)
    return [Row(question="planning", profile="quick", **row) for row in as_rows(found, pareto(found), best, needs)]


def refresh() -> list[Row]:
    """Return short lives under two policies at two rates, and the exact one."""
    rows: list[Row] = []
    for rate in (1.0, 10.0):
        setting = Setting(s3t_plan(Layout(2, 2, 2), Recipe(), 2), 1000, rate, 0.05, {1: 1.0, 2: 2.0})
        lives = {policy: simulate_lives(setting, Policy.of(policy), lives=2, seed=0) for policy in ("never", "below:2")}
        for policy, found in (*lives.items(), ("never", untouched(setting))):
            rows += [Row(question="refresh", profile="quick", **row) for row in refreshed(setting, policy, found)]
    return rows


def executors() -> list[Row]:
    """Return simulated builds of two layouts."""
    more = {"records": 1000, "handing": 0.01, "start": 5.0}
    rows: list[Row] = []
    for shards in (2, 4):
        times = node_times(s3t_plan(Layout(shards, 2, 2), Recipe(), 2), 1000, {1: 1.0, 2: 2.0})
        shape = {"shards": shards, "slices": 2, "budget": 2}
        found = [as_row(spread(times, workers, handing=0.01, start=5.0), shape, more) for workers in (1, 4, 16)]
        rows += [Row(question="executors", profile="quick", model="minilm", **row) for row in found]
    return rows


def floors() -> list[Row]:
    """Return lives of chains with an analytic head beside them, on two data sets."""
    rows: list[Row] = []
    for data, seed in itertools.product(("trec6", "r8"), (0, 1)):
        about: dict[str, Any] = {
            "question": "floors",
            "profile": "quick",
            "model": "minilm",
            "data": data,
            "seed": seed,
        }
        found = (("analytic", Mixture(1.0)), ("s3t", Mixture(0.0)), ("s3t+floor", BESIDE))
        points = tuple(
            Served(d, dict(zip(found, (0.8, 0.9 - d / 10, 0.9 - d / 100), strict=True)), 1.0) for d in (0, 2, 5)
        )
        life = Life(points, Cost(record_passes=9, forward_passes=3), 40, 10)
        rows += [Row(shards=2, slices=3, **about, **row) for row in rows_of(life, kinds(3)[0], head=True)]
    return rows


def engine() -> list[Row]:
    """Return ratios and differences of accuracy for two modes, and an ablation."""
    about: dict[str, Any] = {"question": "engine", "profile": "quick", "method": "s3t", "kind": "measured", "n": 3}
    about |= {"shards": 4, "slices": 3, "data": "trec6", "model": "minilm", "budget": 1}
    spread: dict[str, Any] = {"low": 1.0, "high": 9.0, "confidence": 0.95}
    rows = []
    for mode, against in itertools.product(("reference", "fast, bfloat16"), ("default", "tuned: bfloat16")):
        told: dict[str, Any] = {"extra": {"mode": mode, "against": against}}
        rows.append(Row(**about, **told, **spread, metric="times faster than stock", unit="ratio", value=3.0))
        rows.append(Row(**about, **told, metric="accuracy, ours minus stock", unit="points", value=-0.2))
        rows.append(Row(**about | {"budget": 3}, **told, metric="times faster than stock", unit="ratio", value=4.0))
    for mode in ("fast, bfloat16", "plain AdamW", "torch's attention"):
        told = {"extra": {"mode": mode, "against": "fast, bfloat16"}, "metric": "times the whole engine's seconds"}
        rows.append(Row(**about, **told, **spread, unit="ratio", value=1.5))
    return rows


def serving() -> list[Row]:
    """Return one pass against several, healthy and not, for two sizes of request."""
    about: dict[str, Any] = {"question": "serving", "profile": "quick", "method": "s3t", "kind": "measured", "n": 3}
    about |= {"shards": 5, "slices": 3, "budget": 3, "data": "made", "model": "minilm", "unit": "ratio"}
    about |= {"metric": "times faster than separate passes", "value": 1.5}
    cases = itertools.product(("healthy", "half of the slots hit"), ("fast-2:float32", "fast-2:bfloat16"), (1, 8))
    extras = [{"mode": mode, "rows": rows, "tokens": 12, "state": state} for state, mode, rows in cases]
    return [Row(**about, extra=extra) for extra in extras]


def deletion() -> list[Row]:
    """Return timings at two numbers of records and two of requests."""
    about: dict[str, Any] = {"question": "deletion", "profile": "quick", "method": "s3t", "kind": "measured", "n": 60}
    about |= {"shards": 4, "slices": 3, "budget": 3, "data": "made", "model": "tiny", "unit": "s"}
    return [
        Row(**about, metric=metric, value=value, extra={"records": records, "requests": requests})
        for metric, value in (("deletion p50", 0.01), ("switch p50", 0.001), ("start p50", 0.004))
        for records, requests in ((1000, 100), (10_000, 100), (1000, 1000))
    ]


def design() -> list[Row]:
    """Return what three changes of S3T's choices do, two of them on a second data set that is not drawn."""
    about: dict[str, Any] = {"question": "design", "profile": "quick", "method": "s3t", "kind": "measured", "n": 3}
    about |= {"shards": 4, "slices": 3, "budget": 1, "model": "minilm", "unit": "points", "low": -2.0, "high": 1.0}
    metrics = ("accuracy, variant minus default", "accuracy over chain lengths, variant minus default")
    cases = [("trec6", name) for name in ("bottom-up", "last slice alone", "majority vote")]
    cases += [("r8", name) for name in ("bottom-up", "last slice alone")]
    return [
        Row(**about, data=data, metric=metric, value=-0.5, extra={"variant": name, "against": "default"})
        for data, name in cases
        for metric in metrics
    ]


def blocks() -> list[Row]:
    """Return three layouts with one order and with all, one of which was not trained with all."""
    rows = []
    for name, times in ((PAPER, 1), ("stacked, equal storage", 2), ("stacked", 3)):
        for budget, seed in itertools.product((1, 3) if times < 3 else (1,), (0, 1)):
            about: dict[str, Any] = {
                "question": "blocks",
                "profile": "quick",
                "method": "s3t",
                "budget": budget,
                "n": 9,
            }
            about |= {"shards": 4, "slices": 3, "data": "trec6", "model": "minilm", "kind": "measured", "seed": seed}
            curve = {"variant": name, "by_length": [0.4 + 0.02 * times, 0.6, 0.8 + seed / 10]}
            rows.append(Row(**about, metric=ACCURACY, unit="share", value=0.8, extra=curve))
            rows += [
                Row(**about, metric=metric, unit="of it", value=7.0 * times * budget, extra={"variant": name})
                for metric in MARKERS
            ]
            about |= {"kind": "derived", "seed": None}
            rows.append(Row(**about, metric=CAPACITY, unit="requests", value=12.0 + budget, extra={"variant": name}))
    return rows


def sizes() -> list[Row]:
    """Return accuracy at two numbers of records, two seeds each, on two data sets."""
    rows = []
    for data, records, seed, (place, method) in itertools.product(
        ("movies", "trec6"), (600, 1200), (0, 1), enumerate(("retrain-lora", "s3t", "s3t-stacked", "sisa-lora-lazy"))
    ):
        about: dict[str, Any] = {"question": "sizes", "profile": "quick", "model": "minilm", "kind": "measured", "n": 9}
        about |= {"shards": 4, "slices": 3, "budget": 1, "data": f"{data}[{records}]", "method": method, "seed": seed}
        value = 0.9 - place * 24 / records + seed / 100 * place
        rows.append(Row(**about, metric="test accuracy", unit="share", value=value))
    return rows


def expected() -> list[Row]:
    """Return curves of three systems on two data sets, two seeds each."""
    rows = []
    for data, seed, (method, budget) in itertools.product(
        ("movies", "trec6"), (0, 1), (("s3t", 1), ("s3t", 3), ("sisa-lora-lazy", 1))
    ):
        about: dict[str, Any] = {"question": "expected", "profile": "quick", "model": "minilm", "kind": "measured"}
        about |= {"shards": 4, "slices": 3, "budget": budget, "data": data, "method": method, "seed": seed}
        curve = [0.9 - done * 0.1 / budget for done in range(7)]
        rows += [Row(**about, **row) for row in expectations([curve, curve], [7, 7], [3, 6])]
    return rows


STUDIES = (
    *(survival, orders, streams, planning, refresh, executors, floors, engine),
    *(serving, deletion, design, blocks, sizes, expected),
)


def everything(folder: Path) -> None:
    """Write row sets for every figure."""
    for study in STUDIES:
        put(folder, *study())
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
        *(
            f"{name}-quick.png"
            for name in ("layouts", "survival", "orders", "streams", "service", "planner", "refresh", "executors")
        ),
        "floors-quick.png",
        *(
            f"{name}-quick.png"
            for name in ("training", "ablation", "design", "blocks", "expected", "sizes", "serving", "deletion")
        ),
        "accuracy-by-deletions-quick-trec6-600-minilm-4x3.png",
        "area-by-method-quick-trec6-600-minilm-4x3.png",
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
    questions = (
        "capacity",
        "survival",
        "orders",
        "planning",
        "refresh",
        "executors",
        "floors",
        "engine",
        "serving",
        "deletion",
        "design",
        "blocks",
        "expected",
        "sizes",
        "test accuracy",
    )
    questions += ("record passes",)
    for missing in [f"no rows of {question}" for question in questions]:
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


def test_a_curve_comes_from_rows_of_streams(tmp_path: Path) -> None:
    put(tmp_path, *streams())
    curve = curve_of_rows(tmp_path, "minilm")
    assert curve.points == {(4, 3): ((pytest.approx(0.2), pytest.approx(0.8)), (pytest.approx(1 - 4 / 30), 0.8))}
    assert curve.at(4, 3, 0.5) == pytest.approx(0.8) and curve.at(4, 3, 0.1) is None
    with pytest.raises(DataError, match="has no accuracy of 'mpnet' under a stream of requests"):
        curve_of_rows(tmp_path, "mpnet")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_planner_draws_in_three_formats(tmp_path: Path, ending: str) -> None:
    needs = Needs(500, 1.0, Recipe(), most_shards=2)
    found = list(options(needs, Price("tiny", 2, 1e-3, 1e3, 1e3, 1e6), {}))
    front, (best, _) = pareto(found), pick(found, needs)
    draw_options(found, front, best, needs, tmp_path / f"front.{ending}")
    assert (tmp_path / f"front.{ending}").stat().st_size > 1000
    with pytest.raises(DataError, match=r"unknown ending '\.txt'"):
        draw_options(found, front, best, needs, tmp_path / "front.txt")


def test_layouts_of_blocks_are_told_as_multiples_of_the_papers(tmp_path: Path) -> None:
    """Accuracy is the mean over seeds by length of chain; costs are over those of the paper's blocks with one order."""
    put(tmp_path / "rows", *blocks())
    figure = paint(read(tmp_path / "rows"))
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == [PAPER, "stacked", "stacked, equal storage"]
    points = {(float(line.get_xdata()[0]), round(float(line.get_ydata()[0]))) for line in left.lines}
    assert {(round(x, 6), y) for x, y in points} == {
        (round(x, 6), place) for place, first in enumerate((0.42, 0.46, 0.44)) for x in (first, 0.6, 0.85)
    }
    costs = sorted((round(float(line.get_ydata()[0])), float(line.get_xdata()[0])) for line in right.lines[:-1])
    assert costs == sorted(
        (place, float(times)) for place, all_ in enumerate(((1, 3), (3,), (2, 6))) for times in all_ for _ in MARKERS
    )
    assert "13.0 with 1 order and 15.0 with 3 orders" in "".join(text.get_text() for text in figure.texts)
