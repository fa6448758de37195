"""Layouts of the blocks at the same rank, at equal storage and at equal work: their names, and the figure of what came out."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from benchmarks.painters import PLOT, page
from benchmarks.summary import extra
from s3t.design import Design

PAPER = "top-down (the paper)"
LAYOUTS: dict[str, tuple[str, Design | None]] = {
    PAPER: ("s3t", None),
    "bottom-up": ("s3t", Design(bottom_up=True)),
    "stacked": ("s3t", Design(stacked=True)),
    "sequential": ("sequential", None),
}
"""Method and design of every layout, the paper's first."""
STORAGE, EFFORT = ", equal storage", ", equal work"
"""End the name of a layout that was made equal to the paper's in that."""
ACCURACY, CUT = "test accuracy", "test accuracy, mean over chain lengths"
STORED, WORK, DELETION = "bytes of adapters", "layer passes up front", "layer passes per deletion"
CAPACITY = "requests to dead system"
MARKERS = {
    STORED: ("bytes of adapters", "s", "#9467bd", -0.2),
    WORK: ("passes up front", "o", "#1967d2", 0.0),
    DELETION: ("passes per deletion", "^", "#e8710a", 0.2),
}
"""Words, marker, colour and place of what a layout costs."""


def order_of(name: str) -> tuple[int, int]:
    """Return where the case of that name stands among all cases."""
    bare = name.removesuffix(STORAGE).removesuffix(EFFORT)
    return list(LAYOUTS).index(bare), ("", STORAGE, EFFORT).index(name[len(bare) :])


def paint(rows: pd.DataFrame) -> Figure:
    """Accuracy by length of chain, and what each layout costs over the paper's; mean over seeds, on one data set and model."""
    found = extra(rows[rows["status"] == "ok"], "variant")
    one = found[found["metric"] == ACCURACY].iloc[0]
    found = found[(found["data"] == one["data"]) & (found["model"] == one["model"])]
    names, budgets = sorted(set(found["variant"]), key=order_of), sorted({int(budget) for budget in found["budget"]})
    bears = found[found["metric"] == CAPACITY].groupby("budget")["value"].first()
    told = " and ".join(f"{value:.1f} with {_orders(int(str(budget)))}" for budget, value in bears.items())
    seeds = found["seed"].nunique()
    figure = page(
        "Layouts of the blocks, at equal storage and at equal work",
        f"{one['data']}, {one['model']}, {one['shards']} shards x {one['slices']} slices · mean over {seeds} "
        f"seed{'s' * (seeds != 1)}, work in layer passes, a deletion's that of a refresh after it",
    )
    figure.text(
        0.03, 0.852, f"Every layout bears the same uniform requests until it is dead: {told}", size=12, color="#555555"
    )
    left = figure.add_axes((0.215, PLOT[1], 0.27, PLOT[3]), xlabel="Test accuracy by length of chain")
    right = figure.add_axes(
        (0.525, PLOT[1], 0.25, PLOT[3]), xlabel="Times the paper's blocks with 1 order", xscale="log"
    )
    for budget in budgets:
        some = found[found["budget"] == budget]
        _accuracy(left, some, names, filled=budget == budgets[0])
        _costs(right, some, found[found["budget"] == budgets[0]], names, filled=budget == budgets[0])
    left.set_yticks(range(len(names)), names)
    right.set_yticks(range(len(names)), [""] * len(names))
    for axes in (left, right):
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
    left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.axvline(1.0, color="#888888", lw=1.2)
    ticks = [0.5, 1, *range(int(one["slices"]), int(one["slices"]) ** 2 + 1, int(one["slices"]))]
    right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.set_xticks([], minor=True)
    figure.legend(handles=_legend(int(one["slices"]), budgets), loc="upper left", bbox_to_anchor=(0.785, 0.82))
    return figure


def _orders(count: int) -> str:
    return f"{count} order{'s' * (count != 1)}"


def _shade(length: int, slices: int) -> str:
    return str(round(0.75 * (1 - length / slices), 3))


def _accuracy(axes: Axes, rows: pd.DataFrame, names: list[str], *, filled: bool) -> None:
    told = rows[rows["metric"] == ACCURACY]
    for place, name in enumerate(names):
        curves = [entry["by_length"] for entry in told[told["variant"] == name]["extra"]]
        for at, values in enumerate(zip(*curves, strict=True)):
            shade = _shade(at + 1, len(curves[0]))
            face = shade if filled else "none"
            y = place - 0.12 if filled else place + 0.12
            axes.plot(sum(values) / len(values), y, "o", ms=7, color=shade, mfc=face, mew=1.5)


def _costs(axes: Axes, rows: pd.DataFrame, base: pd.DataFrame, names: list[str], *, filled: bool) -> None:
    for metric, (_, marker, colour, shift) in MARKERS.items():
        means = rows[rows["metric"] == metric].groupby("variant")["value"].mean()
        paper = base[(base["metric"] == metric) & (base["variant"] == PAPER)]["value"].mean()
        for place, name in enumerate(names):
            if name in means.index:
                face = colour if filled else "none"
                axes.plot(means[name] / paper, place + shift, marker, ms=7, color=colour, mfc=face, mew=1.5)


def _legend(slices: int, budgets: list[int]) -> list[Line2D]:
    def dot(words: str, marker: str, colour: str, face: str) -> Line2D:
        return Line2D([], [], ls="", marker=marker, color=colour, mfc=face, mew=1.5, label=words)

    lengths = range(1, slices + 1)
    found = [dot(f"{k} of {slices} blocks", "o", _shade(k, slices), _shade(k, slices)) for k in lengths]
    found += [dot(words, marker, colour, colour) for words, marker, colour, _ in MARKERS.values()]
    found += [dot(_orders(budgets[0]), "o", "#555555", "#555555")]
    return found + [dot(_orders(budget), "o", "#555555", "none") for budget in budgets[1:]]
