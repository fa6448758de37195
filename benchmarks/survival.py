"""Painters of the capacity study: life by layout, what survives, the paper's formula, and rules for orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from benchmarks.painters import page
from benchmarks.summary import extra

BOTTOM, HEIGHT = 0.155, 0.63
SHARDS, SLICES = 5, 6
"""Where one of them is fixed in a panel."""
RULES = {
    "cyclic": ("#5f6368", "s"),
    "matching (paper)": ("#e8710a", "^"),
    "matching (expected_length)": ("#1967d2", "o"),
    "conditional": ("#9467bd", "v"),
    "random": ("#b0b0b0", "x"),
}
"""Colour and marker of each rule for orders; the optimum is 100%."""


def _shade(number: int, count: int) -> Any:
    return mpl.colormaps["viridis"](0.88 * number / max(1, count - 1))


def layouts(rows: pd.DataFrame) -> Figure:
    """Requests until the last shard is dead against budget, shards and slices: exact as lines, simulated as rings."""
    table = extra(rows[(rows["metric"] == "requests until dead") & (rows["status"] == "ok")], "event")
    last = table[table["event"] == "last"]
    trials = int(last["n"].max())
    subtitle = f"Uniform requests until no shard is live · lines exact, rings simulated ({trials:,} lives each)"
    figure = page("Deletion capacity by layout", subtitle)
    up_to_slices = last[last["budget"] <= last["slices"]]
    full = up_to_slices[up_to_slices["budget"] == up_to_slices["slices"]]
    m = _nearest(last["shards"], SHARDS)
    panels = (
        ("Orders per shard", "budget", "slices", last[(last["shards"] == m) & (last["budget"] <= 8)], f"{m} shards"),
        ("Shards", "shards", "slices", full, "as many orders as slices"),
        ("Slices per shard", "slices", "budget", up_to_slices[up_to_slices["shards"] == m], f"{m} shards"),
    )
    for number, (xlabel, x, by, some, fixed) in enumerate(panels):
        axes = figure.add_axes((0.065 + 0.32 * number, BOTTOM, 0.25, HEIGHT), xlabel=xlabel)
        values = sorted(set(some[by]))
        for place, value in enumerate(values):
            line = some[some[by] == value].sort_values(x)
            exact, simulated = (line[line["kind"] == kind] for kind in ("derived", "simulated"))
            name = f"{value} {('slice' if by == 'slices' else 'order') + 's' * (value != 1)}"
            colour = _shade(place, len(values))
            axes.plot(exact[x], exact["value"], color=colour, label=name)
            axes.plot(simulated[x], simulated["value"], "o", color=colour, mfc="none", ms=7, mew=1.4)
        axes.set_title(f"Requests; {fixed}", loc="left", size=11.5, color="#555555")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sorted(set(some[x])))
        axes.legend(fontsize=9, labelspacing=0.3)
    return figure


def _nearest(column: pd.Series, wanted: int) -> int:
    return int(min(set(column), key=lambda value: abs(value - wanted)))


def curves(rows: pd.DataFrame) -> Figure:
    """Slices in service as requests come, by budget; and one shard's chance to keep its first slices, with the paper's."""
    found = rows[rows["status"] == "ok"]
    share = found[found["metric"] == "share in service"]
    sizes = share.iloc[0]
    subtitle = (
        f"Uniform requests · left: {sizes['shards']} shards x {sizes['slices']} slices, exact lines, simulated rings"
    )
    kept = extra(found[found["metric"] == "some order keeps its first slices"], "j")
    one = kept.iloc[0]
    subtitle += f" · right: one shard, {one['slices']} slices, {one['budget']} cyclic orders"
    figure = page("What survives", subtitle)
    left = figure.add_axes((0.07, BOTTOM, 0.4, HEIGHT), xlabel="Requests to the system")
    left.set_title("Slices behind served chains", loc="left", size=12, color="#555555")
    budgets = sorted(set(share["budget"]))
    for place, budget in enumerate(budgets):
        line = share[share["budget"] == budget].sort_values("deletions")
        exact, simulated = (line[line["kind"] == kind] for kind in ("derived", "simulated"))
        name = f"{budget} orders" if budget > 1 else "1 order (SISA, lazy)"
        left.plot(exact["deletions"], exact["value"], color=_shade(place, len(budgets)), label=name)
        left.plot(simulated["deletions"], simulated["value"], "o", color=_shade(place, len(budgets)), mfc="none", ms=6)
    right = figure.add_axes((0.55, BOTTOM, 0.4, HEIGHT), xlabel="Requests to the shard")
    right.set_title("Chance that some order keeps its first j slices", loc="left", size=12, color="#555555")
    for place, j in enumerate(sorted(set(kept["j"]))):
        line = kept[kept["j"] == j].sort_values("deletions")
        for kind, style, words in (("derived", "-", "exact"), ("claimed", ":", "the paper's formula")):
            some = line[line["kind"] == kind]
            right.plot(some["deletions"], some["value"], style, color=_shade(place, 3), label=f"j = {j}, {words}")
    for axes in (left, right):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize=10.5)
    return figure


def orders(rows: pd.DataFrame) -> Figure:
    """Each rule's expected best length as a share of the optimum's, by budget; a panel per family of priors."""
    found = rows[(rows["metric"] == "share of the optimum") & (rows["status"] == "ok")]
    table = extra(found, "rule", "prior", "horizon")
    slices = int(table["slices"].max())
    horizon = _nearest(table["horizon"], 20)
    table = table[(table["slices"] == slices) & (table["horizon"] == horizon)]
    subtitle = f"Expected length of the best surviving chain after {horizon} requests to a shard of {slices} slices"
    figure = page("Rules for orders, as a share of the optimum", f"{subtitle} · the optimum is proven")
    families = list(dict.fromkeys(table["prior"]))
    handles: Sequence[Any] = ()
    for number, family in enumerate(families):
        row, column = divmod(number, 3)
        axes = figure.add_axes((0.06 + 0.325 * column, 0.56 - 0.41 * row, 0.265, 0.25), xlabel="Orders per shard")
        axes.set_title(f"requests: {family}", loc="left", size=11.5, color="#555555")
        _rules(axes, table[table["prior"] == family])
        handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="upper left", bbox_to_anchor=(0.70, 0.42), labelspacing=0.9)
    return figure


def _rules(axes: Axes, table: pd.DataFrame) -> None:
    for rule, (colour, marker) in RULES.items():
        line = table[table["rule"] == rule].sort_values("budget")
        axes.plot(line["budget"], line["value"], marker=marker, color=colour, label=rule, lw=1.6, ms=6)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low = float(table["value"].min())
    axes.set_ylim(low - 0.03 * (1.02 - low), 1.0 + 0.03 * (1.02 - low))
