"""The figures' painters: tables of means in, a page out. Colours and markers mean the same method in all of them."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from benchmarks.summary import Setting, label, readable_bytes

INCHES, DPI = (12.0, 7.5), 100
PLOT = (0.085, 0.155, 0.655, 0.645)
"""Left, bottom, width, height of the plot on the page; what is to the right belongs to the legend."""

COLOURS = {
    "s3t": ("#5ab4ee", "o"),
    "sequential": ("#9467bd", "s"),
    "sisa-lora": ("#e8710a", "^"),
    "sisa-lora-lazy": ("#d9a400", "v"),
    "sisa-full": ("#c5221f", "D"),
    "sisa-full-lazy": ("#e377c2", "d"),
    "retrain-lora": ("#1e8e3e", "P"),
    "retrain-full": ("#5f6368", "X"),
}
"""Colour and marker of every method, the same in all figures; more orders are darker."""


def look(method: str, budget: int) -> dict[str, Any]:
    """Return colour and marker of a method at a budget."""
    base, marker = COLOURS.get(method, ("#111111", "*"))
    dark = min(0.72, 0.3 * math.log2(max(budget, 1)))
    red, green, blue = (channel * (1 - dark) for channel in to_rgb(base))
    return {"color": to_hex((red, green, blue)), "marker": marker}


def page(title: str, subtitle: str) -> Figure:
    """Return an empty page with its headings."""
    figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
    figure.text(0.03, 0.945, title, size=18, weight="bold", va="center")
    figure.text(0.03, 0.892, subtitle, size=12, color="#555555", va="center")
    return figure


def _seeds(table: pd.DataFrame) -> str:
    low, high = int(table["n"].min()), int(table["n"].max())
    count = f"{low}" if low == high else f"{low} to {high}"
    if high == 1:
        return "1 seed, no interval"
    return f"mean and 95% interval over {count} seeds"


def accuracy(table: pd.DataFrame, rows: pd.DataFrame, setting: Setting) -> Figure:
    """Test accuracy against deletions, with a band where there are several seeds."""
    figure = page("Accuracy as records are deleted", f"{setting} · {_seeds(table)}")
    axes = figure.add_axes(PLOT, xlabel="Deleted records")
    _name_y(axes, "Test accuracy")
    _lines(axes, table, "ring: seeds with nothing left\nto serve count as 0%")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, -0.02), min(top, 1.02))
    return figure


def cost(table: pd.DataFrame, rows: pd.DataFrame, setting: Setting) -> Figure:
    """Cumulative record passes against deletions; logarithmic, symmetrically so if something cost nothing."""
    figure = page("Training spent as records are deleted", f"{setting} · {_seeds(table)}")
    axes = figure.add_axes(PLOT, xlabel="Deleted records")
    _name_y(axes, "Record passes so far, up-front training included (logarithmic)")
    _lines(axes, table, "")
    positive = table["mean"][table["mean"] > 0]
    low, high = float(positive.min()) if len(positive) else 1.0, float(table[["mean", "high"]].max().max())
    if len(positive) == len(table):
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
    else:
        axes.set_yscale("symlog", linthresh=low)
        axes.set_ylim(0, max(high, low) * 1.5)
    axes.set_yticks([*([0.0] if len(positive) < len(table) else []), *_ticks(low / 1.5, max(high, low) * 1.5)])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    return figure


def _lines(axes: Axes, table: pd.DataFrame, offline_note: str) -> None:
    """One line per method and budget; dashed where it is extrapolated, ringed where seeds are offline."""
    for (method, budget), line in table.groupby(["method", "budget"], sort=False):
        style = look(str(method), int(str(budget)))
        name = label(str(method), int(str(budget))) + (" *" if line["derived"].any() else "")
        x, y = line["deletions"].astype(float).to_numpy(), line["mean"].to_numpy()
        measured = int(np.argmax(line["derived"])) if line["derived"].any() else len(line)
        axes.plot(
            x[:measured], y[:measured], ls="-" if len(x) > 1 else "", label=name, clip_on=False, zorder=3, **style
        )
        rest = max(measured - 1, 0)
        axes.plot(x[rest:], y[rest:], "--", clip_on=False, zorder=3, **style)
        axes.fill_between(x, line["low"].to_numpy(), line["high"].to_numpy(), color=style["color"], alpha=0.1, lw=0)
        out = line[line["offline"] > 0]
        axes.plot(out["deletions"].astype(float), out["mean"], "o", ms=14, mfc="none", mec=style["color"], mew=1.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10]))
    axes.set_xlim(left=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.03, 1.0), borderaxespad=0, labelspacing=0.7)
    notes = ["* dashed: extrapolated from\n   the first deletions"] if table["derived"].any() else []
    notes += [offline_note] if offline_note and (table["offline"] > 0).any() else []
    axes.text(1.04, 0.0, "\n".join(notes), transform=axes.transAxes, size=10.5, color="#555555", va="bottom")


def _name_y(axes: Axes, text: str) -> None:
    """Name the y axis above it, where the words can be read and have room."""
    axes.set_title(text, loc="left", size=12.5, pad=12)


def _short(value: float) -> str:
    """Return a count in few characters: 950, 12k, 3.5M."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def _ticks(low: float, high: float) -> list[float]:
    """Return 1-2-5 ticks of a logarithmic axis, only powers of ten where those would be too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in decades for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return ticks if len(ticks) < 10 else [tick for tick in ticks if f"{tick:e}"[0] == "1"]


def healthy(table: pd.DataFrame, rows: pd.DataFrame, setting: Setting) -> Figure:
    """Test accuracy of every method at full health: single seeds, mean, interval."""
    figure = page("Accuracy before any deletion", f"{setting} · {_seeds(table)}, single seeds in light")
    axes = _listing(figure, table, "Test accuracy")
    for y, (_, row) in enumerate(table.iterrows()):
        style = look(row["method"], row["budget"])
        same = (
            (rows["method"] == row["method"]) & (rows["budget"] == row["budget"]) & (rows["deletions"].fillna(0) == 0)
        )
        single = rows[same & rows["seed"].notna()]["value"]
        axes.plot(single, [y] * len(single), ls="", ms=6, mec="none", alpha=0.35, **style)
        axes.plot([row["low"], row["high"]], [y, y], lw=2.4, color=style["color"])
        axes.plot([row["mean"]], [y], ms=10, mec="white", zorder=4, **style)
        axes.text(
            1.03, y, f"{row['mean']:.1%}", transform=axes.get_yaxis_transform(), va="center", color=style["color"]
        )
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, 0.0), min(right, 1.0))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def storage(table: pd.DataFrame, rows: pd.DataFrame, setting: Setting) -> Figure:
    """Bytes stored by every method, on a logarithmic axis with the numbers beside it."""
    subtitle = f"{setting} · trained tensors on disk; the base model, shared, is not counted"
    figure = page("Storage of everything trained", subtitle)
    axes = _listing(figure, table, "Bytes stored (logarithmic)")
    axes.set_xscale("log")
    for y, (_, row) in enumerate(table.iterrows()):
        style = look(row["method"], row["budget"])
        axes.plot([row["mean"]], [y], ms=11, **style)
        axes.text(
            1.03,
            y,
            readable_bytes(row["mean"]),
            transform=axes.get_yaxis_transform(),
            va="center",
            color=style["color"],
        )
    low, high = max(float(table["mean"].min()), 1.0) / 1.6, float(table["mean"].max()) * 1.6
    axes.set_xlim(low, high)
    axes.set_xticks(_ticks(low, high))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable_bytes(value)))
    return figure


def _listing(figure: Figure, table: pd.DataFrame, xlabel: str) -> Axes:
    axes = figure.add_axes((0.255, 0.155, 0.635, 0.675), xlabel=xlabel)
    names = [label(method, budget) for method, budget in zip(table["method"], table["budget"], strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    return axes


def capacity(rows: pd.DataFrame, profile: str) -> Figure:
    """Deletions until no shard is live against orders per shard: a panel per number of shards, a colour per slices."""
    found = rows[rows["status"] == "ok"]
    shards = sorted(set(found["shards"]))
    real = found[found["kind"] == "measured"]
    trained = sorted({f"{data}, {model}" for data, model in zip(real["data"], real["model"], strict=True)})
    subtitle = f"Uniform requests until no shard is live · {profile} profile"
    subtitle += f" · real system: {'; '.join(trained)}" if trained else ""
    figure = page("How many deletions a system bears", subtitle)
    columns = 1 if len(shards) == 1 else 2
    grid = figure.add_gridspec(math.ceil(len(shards) / columns), columns, hspace=0.55, wspace=0.25)
    grid.update(left=PLOT[0], right=PLOT[0] + PLOT[2], bottom=PLOT[1], top=0.795)
    slices = sorted(set(found["slices"]))
    for i, m in enumerate(shards):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        for l_ in slices:
            share = slices.index(l_) / max(1, len(slices) - 1)
            colour = to_hex(mpl.colormaps["viridis"](0.85 * (1 - share))) if len(slices) > 1 else COLOURS["s3t"][0]
            _curve(axes, found[(found["shards"] == m) & (found["slices"] == l_)], int(l_), colour)
        _name_y(axes, f"{m} shard{'s' * (m != 1)}: deletions until dead")
        axes.set_xlabel("Orders per shard (1: SISA's single order)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.margins(x=0.06)
    entries = {
        name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="upper left", bbox_to_anchor=(0.755, 0.83), labelspacing=0.9)
    return figure


def _curve(axes: Axes, rows: pd.DataFrame, slices: int, colour: str) -> None:
    """One layout: the closed form as a line, simulation and real system as points side by side."""
    kinds = {
        "derived": ("closed form", "", 0.0),
        "simulated": ("simulation", "o", -0.04),
        "measured": ("real system", "D", 0.04),
    }
    for kind, (words, marker, shift) in kinds.items():
        line = rows[rows["kind"] == kind].sort_values("budget")
        if line.empty:
            continue
        name = f"{slices} slice{'s' * (slices != 1)}, {words}"
        if kind == "derived":
            axes.plot(line["budget"], line["value"], color=colour, label=name, marker="." if len(line) == 1 else "")
            continue
        error = [(line["value"] - line["low"]).fillna(0), (line["high"] - line["value"]).fillna(0)]
        container = axes.errorbar(
            line["budget"] + shift, line["value"], error, fmt=marker, color=colour, capsize=4, lw=1.6
        )
        container.lines[0].set(markerfacecolor="white" if kind == "simulated" else colour, markeredgewidth=1.6)
        container.set_label(f"{name}\n({int(line['n'].min()):,} lives, 95% interval)")
