"""The planner's options as rows and as a figure: the same table behind ``s3t plan --figure`` and ``s3t plot``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.painters import PLOT, page
from benchmarks.rows import read
from benchmarks.style import STYLE
from benchmarks.summary import extra
from s3t.errors import DataError
from s3t.planner.curve import Curve
from s3t.planner.options import Needs, Option, misses

METRIC = "days until the first dead shard"
ENDINGS = (".png", ".svg", ".pdf")


def as_rows(found: Sequence[Option], front: Sequence[Option], best: Option, needs: Needs) -> Iterator[dict[str, Any]]:
    """Yield one row's fields per option (results/SCHEMA.md): the days as value, everything else as extra."""
    for option in found:
        yield {
            "metric": METRIC,
            "unit": "days",
            "method": "s3t",
            "shards": option.shards,
            "slices": option.slices,
            "budget": option.budget,
            "value": option.first / needs.per_day,
            "n": 1,
            "kind": "derived",
            "extra": {
                "rule": option.rule,
                "records": needs.records,
                "requests_per_day": needs.per_day,
                "requests_to_first": option.first,
                "requests_to_half": option.half,
                "requests_to_last": option.last,
                "rebuilds_per_year": option.rebuilds_per_year,
                "upfront_seconds": option.upfront,
                "bytes": option.bytes,
                "records_per_shard": option.records_per_shard,
                "share_half_way": option.share,
                "seconds_per_deletion": option.per_deletion,
                **{f"seconds_per_deletion_{name}": value for name, value in option.rivals.items()},
                "within": not misses(option, needs),
                "pareto": option in front,
                "pick": option == best,
            },
        }


def curve_of_rows(folder: Path, model: str) -> Curve:
    """Return accuracy against the share in service, as measured on ``model`` under streams of requests.

    Systems at equal shares are averaged. DataError if there are no such rows.
    """
    rows = read(folder)
    rows = rows[(rows["question"] == "streams") & (rows["model"] == model) & (rows["kind"] == "measured")]
    found = extra(rows[rows["status"] == "ok"], "stream")
    where = ["shards", "slices", "method", "budget", "seed", "stream", "deletions", "file"]
    pairs = found.pivot_table(index=where, columns="metric", values="value")
    if not {"share in service", "test accuracy"} <= set(pairs.columns):
        raise DataError(
            f"{folder} has no accuracy of {model!r} under a stream of requests; run benchmarks/test_streams.py"
        )
    points = pairs.dropna().groupby(["shards", "slices", "share in service"])["test accuracy"].mean().reset_index()
    curve: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for m, pieces, share, accuracy in points.to_numpy().tolist():
        curve.setdefault((int(m), int(pieces)), []).append((share, accuracy))
    return Curve({place: tuple(known) for place, known in curve.items()})


def draw_options(found: Sequence[Option], front: Sequence[Option], best: Option, needs: Needs, path: Path) -> None:
    """Draw the options to ``path``. DataError for an unknown ending."""
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path} has the unknown ending {path.suffix!r}; give one of {', '.join(ENDINGS)}")
    with mpl.rc_context(STYLE):
        figure = paint(pd.DataFrame(list(as_rows(found, front, best, needs))))
        figure.savefig(path, metadata={"Software": None} if path.suffix.lower() == ".png" else None)


def paint(rows: pd.DataFrame) -> Figure:
    """Days until the first dead shard against training up front; the Pareto set is filled, the pick is named."""
    table = rows.drop(columns="extra").join(pd.DataFrame(list(rows["extra"]), index=rows.index))
    table["hours"] = table["upfront_seconds"] / 3600
    first = table.iloc[0]
    figure = page(
        "Layouts: what they bear against what they cost",
        f"{first['records']:,.0f} records, {first['requests_per_day']:,.3g} requests a day · training on this machine, "
        "node after node",
    )
    axes = figure.add_axes(PLOT, xlabel="Training up front, hours (logarithmic)", xscale="log", yscale="log")
    axes.set_title("Days until the first dead shard (logarithmic)", loc="left", size=12, color="#555555")
    shards = sorted(set(table["shards"]))
    colours = {m: mpl.colormaps["viridis"](0.92 * i / max(1, len(shards) - 1)) for i, m in enumerate(shards)}
    for m in shards:
        _dots(axes, table[table["shards"] == m], colours[m], f"{m} shard{'s' * (m != 1)}")
    for _, row in table[table["pick"]].iterrows():
        axes.plot([row["hours"]], [row["value"]], "o", ms=17, mfc="none", mec="#c5221f", mew=2.2)
        name = f"pick: {row['shards']} x {row['slices']} x {row['budget']} {row['rule']}"
        axes.annotate(name, (row["hours"], row["value"]), (14, -22), textcoords="offset points", color="#c5221f")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        title="filled: no other beats it\nring: beaten\nfaint: outside limits",
    )
    return figure


def _dots(axes: Axes, table: pd.DataFrame, colour: Any, name: str) -> None:
    axes.plot([], [], "o", color=colour, label=name)
    for within in (True, False):
        for pareto in (True, False):
            some = table[(table["within"] == within) & (table["pareto"] == pareto)]
            face = colour if pareto else "none"
            axes.plot(
                some["hours"], some["value"], "o", ms=7, mec=colour, mfc=face, alpha=0.95 if within else 0.25, ls=""
            )
