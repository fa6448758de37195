"""Accuracy before deletions by the number of training records: what is measured, and the figure of the gap to full LoRA."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.floors import STACKED, Kind, colour, stacked
from benchmarks.painters import page
from benchmarks.rows import interval

ACCURACY = "test accuracy"
FULL = "retrain-lora"
"""What the others are held against: one LoRA on all records, without shards."""
AIM = -2.0
"""Points: S3T should be no further below full LoRA."""
TESTED = 1000
"""Test records, or all where there are fewer."""


def kinds(slices: int) -> list[Kind]:
    """Return what is compared: S3T's blocks, stacked ones at their storage, SISA, one LoRA on all records."""
    return [Kind("s3t", "s3t"), stacked(slices), Kind("sisa-lora-lazy", "sisa-lora-lazy"), Kind(FULL, FULL)]


def gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy minus full LoRA's, in points, paired by seed: a line per data set, number of records and method.

    Columns: ``data`` (its name alone), ``records``, ``method``, ``mean``, ``low``, ``high`` (95 %; None for one seed), ``n``.
    Runs without a partner are left out.
    """
    told = rows[(rows["question"] == "sizes") & (rows["status"] == "ok") & (rows["metric"] == ACCURACY)]
    found = []
    full = told[told["method"] == FULL]
    whole = dict(zip(zip(full["data"], full["seed"], strict=True), full["value"], strict=True))
    for (data, method), some in told[told["method"] != FULL].groupby(["data", "method"], sort=True):
        pairs = [(value, (data, seed)) for value, seed in zip(some["value"], some["seed"], strict=True)]
        differences = [100 * (value - whole[key]) for value, key in pairs if key in whole]
        if not differences:
            continue
        mean, low, high = interval(differences)
        size = re.fullmatch(r"(.*)\[(\d+)\]", str(data))
        assert size is not None, data
        about = {"data": size[1], "records": int(size[2]), "method": method}
        found.append({**about, "mean": mean, "low": low, "high": high, "n": len(differences)})
    return pd.DataFrame(found, columns=["data", "records", "method", "mean", "low", "high", "n"])


def paint(rows: pd.DataFrame) -> Figure:
    """The gap to full LoRA by the number of training records, a panel for each of the first four data sets."""
    found, first = gaps(rows), rows.iloc[0]
    sets = sorted(set(found["data"]))[:4]
    figure = page(
        "What sharding costs, by the number of training records",
        f"{first['model']} · {int(rows['shards'].max())} shards x {int(rows['slices'].max())} slices, one order · test "
        "accuracy before deletions minus that of one LoRA on all records",
    )
    high = 0.62 if len(sets) < 3 else 0.27
    for place, data in enumerate(sets):
        at = (0.08 + 0.37 * (place % 2), 0.55 if len(sets) > 2 and place < 2 else 0.17, 0.3, high)
        axes = figure.add_axes(at, xlabel="Training records")
        some = found[found["data"] == data]
        low, most = int(some["n"].min()), int(some["n"].max())
        seeds = f"{low}" if low == most else f"{low} to {most}"
        axes.set_title(f"{data}, {seeds} seed{'s' * (most > 1)}", loc="left", size=11.5)
        _panel(axes, some)
        if not place:
            axes.set_ylabel("Points")
            figure.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.78, 0.82))
    return figure


def _panel(axes: Axes, found: pd.DataFrame) -> None:
    axes.axhline(0, color="#888888", lw=1.2)
    axes.axhline(AIM, color="#888888", lw=1.0, ls=":")
    for method in ("s3t", STACKED, "sisa-lora-lazy"):
        line = found[found["method"] == method].sort_values("records")
        if len(line):
            axes.plot(line["records"], line["mean"], marker="o", ms=4, label=method, color=colour(method))
            if line["low"].notna().all():
                bounds = (line["low"].to_numpy(float), line["high"].to_numpy(float))
                axes.fill_between(line["records"], *bounds, alpha=0.1, color=colour(method), lw=0)
    axes.set_xscale("log", base=2)
    ticks = sorted(set(found["records"]))
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
