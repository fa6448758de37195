"""Painter of S3T's choices turned one at a time: what each change does to accuracy, whole and cut."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.painters import PLOT, page
from benchmarks.summary import extra

FULL = "accuracy, variant minus default"
CUT = "accuracy over chain lengths, variant minus default"
MARKS = {FULL: ("full health", "o", "#1967d2", -0.14), CUT: ("mean over chain lengths", "s", "#e8710a", 0.14)}
"""Words, marker, colour and place of each measure."""


def paint(rows: pd.DataFrame) -> Figure:
    """Points gained by each change, with intervals, on the data set with the most variants (the others are in the rows)."""
    found = extra(rows[rows["metric"].isin(MARKS) & (rows["status"] == "ok")], "variant")
    counts = found.groupby(["data", "model"])["variant"].nunique()
    data, model = counts.sort_values(kind="stable").index.to_frame().iloc[-1]
    found = found[(found["data"] == data) & (found["model"] == model)]
    names = list(dict.fromkeys(found["variant"]))
    one = found.iloc[0]
    subtitle = (
        f"{data}, {model}, {one['shards']} shards x {one['slices']} slices · in pairs by seed, {int(one['n'])} seeds"
    )
    figure = page(
        "What S3T's own choices are worth", subtitle + (", 95% intervals" if one["n"] > 1 else ", no interval")
    )
    axes = figure.add_axes((0.235, PLOT[1], 0.505, PLOT[3]), xlabel="Test accuracy, change minus default (points)")
    axes.axvline(0.0, color="#888888", lw=1.2)
    for metric, (words, marker, colour, shift) in MARKS.items():
        some = found[found["metric"] == metric]
        y = [names.index(name) + shift for name in some["variant"]]
        error = [(some["value"] - some["low"]).fillna(0), (some["high"] - some["value"]).fillna(0)]
        axes.errorbar(some["value"], y, xerr=error, fmt=marker, color=colour, capsize=3, lw=1.6, label=words)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    return figure
