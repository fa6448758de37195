"""Painters of the speed study: training against the stock pipeline, the engine's parts, serving, deletion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.painters import page
from benchmarks.summary import extra

FASTER = "times faster than stock"
CLOSER = "accuracy, ours minus stock"
PARTS = "times the whole engine's seconds"
TOGETHER = "times faster than separate passes"
DELETED = "deletion p50"
MODES = {
    "reference": "#5f6368",
    "fast, float32": "#5ab4ee",
    "fast, bfloat16": "#12608f",
    "fast, bfloat16, 2 workers": "#1e8e3e",
}
"""S3T's modes as benchmarks name them, and their colours."""
PRECISIONS = ("float32", "bfloat16")
GREY = "#555555"


def training(rows: pd.DataFrame) -> Figure:
    """How many times faster each mode trains than the stock pipeline, as it comes and tuned, and what that does to accuracy."""
    found = extra(rows[(rows["status"] == "ok") & rows["metric"].isin([FASTER, CLOSER])], "mode", "against")
    found = found.assign(against=found["against"].str.replace(r"^tuned: .*", "tuned", regex=True))
    first = found.iloc[0]
    found = found[found["model"] == first["model"]]  # shapes without data of their own have a table in docs/ENGINE.md
    cases = list(dict.fromkeys(_cases(found)))
    subtitle = f"{first['model']}, {first['shards']} shards x {first['slices']} slices · the same schedule and records"
    subtitle += " · mean and 95% interval over seeds, where there are several"
    figure = page("Training S3T, against the Trainer with PEFT", subtitle)
    left = figure.add_axes((0.27, 0.155, 0.36, 0.645), xscale="log", xlabel="Times faster than stock")
    right = figure.add_axes((0.67, 0.155, 0.2, 0.645), xlabel="Accuracy, ours minus stock, points")
    for axes, metric, form in ((left, FASTER, "{:.2f}"), (right, CLOSER, "{:+.1f}")):
        some = found[found["metric"] == metric]
        for place, mode in enumerate(mode for mode in MODES if (found["mode"] == mode).any()):
            here = some[some["mode"] == mode]
            y = [cases.index(case) + 0.2 * (place - 1.2) for case in _cases(here)]
            _points(axes, here, y, MODES[mode], mode, form, dense=len(cases) > 4)
        axes.axvline(1.0 if metric == FASTER else 0.0, color=GREY, lw=1)
        axes.set_ylim(len(cases) - 0.5, -0.5)
    left.set_yticks(range(len(cases)), cases)
    right.set_yticks(range(len(cases)), [""] * len(cases))
    _ratios(left, found[found["metric"] == FASTER])
    furthest = float(found[found["metric"] == CLOSER]["value"].abs().max())
    if furthest == furthest:
        right.set_xlim(-3 * max(furthest, 0.5), 3 * max(furthest, 0.5))
    figure.legend(*left.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.26, 0.87), ncols=4)
    return figure


def _cases(rows: pd.DataFrame) -> list[str]:
    return [
        f"{data}, {n} order{'s' * (n > 1)},\nstock {against}"
        for data, n, against in zip(rows["data"], rows["budget"], rows["against"], strict=True)
    ]


def ablation(rows: pd.DataFrame) -> Figure:
    """Seconds with one part of the engine switched off or replaced, over those of the whole engine."""
    found = extra(rows[(rows["status"] == "ok") & (rows["metric"] == PARTS)], "mode", "against")
    found = found[found["mode"] != found["against"]]
    first = found.iloc[0]
    data = first["data"]
    found = found[found["data"] == data].sort_values("value", ascending=False)
    subtitle = (
        f"{data}, {first['model']}, {first['shards']} shards x {first['slices']} slices · whole: {first['against']}"
    )
    spread = f"mean and 95% interval, n = {int(first['n'])}" if first["n"] > 1 else "one run each, no interval"
    figure = page("What each part of the engine is worth", f"{subtitle} · {spread}")
    axes = figure.add_axes((0.3, 0.155, 0.6, 0.675), xscale="log", xlabel="Times the whole engine's seconds")
    _points(axes, found, list(range(len(found))), MODES["fast, bfloat16"], "", "{:.2f}")
    axes.axvline(1.0, color=GREY, lw=1)
    axes.set_yticks(range(len(found)), list(found["mode"]))
    axes.set_ylim(len(found) - 0.5, -0.5)
    _ratios(axes, found)
    return figure


def serving(rows: pd.DataFrame) -> Figure:
    """One pass for all shards against a pass per shard: healthy, and after deletions, by the size of a request."""
    found = extra(rows[(rows["status"] == "ok") & (rows["metric"] == TOGETHER)], "mode", "rows", "tokens", "state")
    found = found.sort_values(["rows", "tokens"], kind="stable")
    names = [
        f"{n} row{'s' * (n > 1)}, {tokens} tokens" for n, tokens in zip(found["rows"], found["tokens"], strict=True)
    ]
    found = found.assign(name=names)
    first, cases = found.iloc[0], list(dict.fromkeys(names))
    subtitle = (
        f"{first['model']}, {first['shards']} shards x {first['slices']} slices · 1 is as fast as a pass per shard"
    )
    figure = page("The ensemble in one pass", f"{subtitle} · geometric mean and 95% interval")
    for number, state in enumerate(dict.fromkeys(found["state"])):
        axes = figure.add_axes((0.17 + 0.37 * number, 0.155, 0.32, 0.61), xscale="log", xlabel="Times faster")
        axes.set_title(state, loc="left", size=12, color=GREY)
        for place, precision in enumerate(PRECISIONS):
            mode, kernel = f"fast, {precision}", found["mode"].str.fullmatch(rf"fast-\d+:{precision}")
            here = found[(found["state"] == state) & kernel]
            y = [cases.index(name) + 0.3 * (place - 0.5) for name in here["name"]]
            _points(axes, here, y, MODES[mode], mode, "{:.2f}")
        axes.axvline(1.0, color=GREY, lw=1)
        axes.set_yticks(range(len(cases)), ["" if number else name for name in cases])
        axes.set_ylim(len(cases) - 0.5, -0.5)
        _ratios(axes, found)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.865, 0.81), fontsize=10)
    return figure


def deletion(rows: pd.DataFrame) -> Figure:
    """Seconds of a deletion, of the switch in memory and of starting, by the records and by the requests before."""
    metrics = {"deletion p50": "deletion, p50", "deletion p99": "deletion, p99", "switch p50": "switch in memory, p50"}
    metrics |= {"start p50": "start of the service, p50", "one fsync p50": "one fsync of the disk, p50"}
    found = rows[(rows["status"] == "ok") & rows["metric"].isin(list(metrics))]
    found = extra(found, "records", "requests")
    first, timed = found.iloc[0], int(found[found["metric"] == DELETED]["n"].max())
    subtitle = (
        f"{first['shards']} shards x {first['slices']} slices, {first['budget']} orders · made-up records, a tiny model"
    )
    figure = page("A deletion, by the size of the run", f"{subtitle} · n = {timed} deletions each")
    panels = (("Records", "records", "requests"), ("Requests before", "requests", "records"))
    for number, (xlabel, x, fixed) in enumerate(panels):
        axes = figure.add_axes(
            (0.08 + 0.34 * number, 0.155, 0.29, 0.61), xscale="log", yscale="log", xlabel=xlabel, ylim=_span(found)
        )
        least = int(found[fixed].min())
        axes.set_title(f"at {least:,} {fixed}", loc="left", size=12, color=GREY)
        for place, (metric, words) in enumerate(metrics.items()):
            line = found[(found["metric"] == metric) & (found[fixed] == least)].sort_values(x)
            axes.plot(line[x], line["value"], "osD^x"[place], ls="-", color=f"C{place}", label=words)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1e3 * value:g} ms"))
        axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.73, 0.78))
    return figure


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    return float(rows["value"].min()) / 2, float(rows["value"].max()) * 2


def _points(
    axes: Axes, rows: pd.DataFrame, y: Sequence[float], colour: str, name: str, form: str, *, dense: bool = False
) -> None:
    """Draw values with their intervals, and the value above each, small if ``dense``. Intervals off the scale are cut by it."""
    marker, above, size = (5, 2.5, 7.5) if dense else (8, 6, 9)
    low, high = (rows[side].astype(float).fillna(rows["value"]) for side in ("low", "high"))
    how: dict[str, Any] = {"fmt": "o", "ms": marker, "color": colour, "capsize": 3, "lw": 1.6, "label": name}
    axes.errorbar(rows["value"], y, xerr=[rows["value"] - low, high - rows["value"]], **how)
    for value, place in zip(rows["value"], y, strict=True):
        axes.annotate(
            form.format(value),
            (value, place),
            (0, above),
            textcoords="offset points",
            ha="center",
            size=size,
            color=colour,
        )


def _ratios(axes: Axes, rows: pd.DataFrame) -> None:
    """Give a logarithmic axis of ratios the span of the values, and ticks in plain numbers."""
    axes.set_xlim(min(0.8, float(rows["value"].min()) / 1.3), max(1.6, float(rows["value"].max()) * 1.3))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
