"""Builds on many workers: rows of what was simulated, and their figure."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.painters import PLOT, page
from benchmarks.summary import extra
from s3t.planner.spreading import Spread

SPEEDUP = "simulated speed-up"


def as_row(spread: Spread, shape: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a simulated build's row (results/SCHEMA.md)."""
    told = {"workers": spread.workers, "used": spread.used, "nodes": spread.nodes, "limit": spread.limit}
    told |= {"seconds": spread.seconds, "work": spread.work, "critical_path": spread.critical, **about}
    common = {"metric": SPEEDUP, "unit": "times one worker", "kind": "simulated", "n": 1, "method": "s3t"}
    return {**common, **shape, "value": spread.speedup, "extra": told}


def paint(rows: pd.DataFrame) -> Figure:
    """Speed-up by workers for each layout, and the limit that its graph sets."""
    told = rows[(rows["status"] == "ok") & (rows["metric"] == SPEEDUP)]
    told = extra(extra(extra(told, "workers"), "limit"), "records")
    first = told.iloc[0]
    start, handing = first["extra"]["start"], first["extra"]["handing"]
    figure = page(
        "Training on more workers",
        f"{first['model']} · {int(first['records']):,} records · simulated from nodes measured here · {start:.1f} s to begin, "
        f"{1000 * handing:.0f} ms to hand over a node",
    )
    axes = figure.add_axes(PLOT, xlabel="Workers")
    axes.set_title("Times faster than one worker", loc="left", size=12, color="#555555")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    shapes = sorted({tuple(row) for row in told[["shards", "slices", "budget"]].itertuples(index=False)})
    for place, (shards, slices, budget) in enumerate(shapes):
        some = told[(told["shards"] == shards) & (told["slices"] == slices) & (told["budget"] == budget)]
        some = some.sort_values("workers")
        colour = mpl.colormaps["viridis"](0.8 * place / max(1, len(shapes) - 1))
        label = f"{shards} x {slices}, {budget} order{'s' * (budget > 1)}"
        axes.plot(some["workers"], some["value"], "o-", lw=1.4, color=colour, label=label)
        axes.plot(some["workers"], some["limit"], "--", lw=1.0, color=colour, label="  its graph's limit")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure
