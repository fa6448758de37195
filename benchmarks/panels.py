"""Painters of the streams of requests on real systems, what a slice in service is worth, and S3T against the others."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from benchmarks.area import areas, differences, gaps
from benchmarks.painters import PLOT, look, page
from benchmarks.summary import Setting, extra, label

MARKERS = {"derived": ("formula", "|", 15), "simulated": ("simulation", "o", 9), "measured": ("real system", "D", 6)}


def streams(rows: pd.DataFrame) -> Figure:
    """Capacity, and slices in service after the most requests, by stream: formula, simulation and real system."""
    single = rows["seed"].notna() & (rows["kind"] == "measured")  # one system each: the other figure's
    found = extra(rows[(rows["model"] == "tiny") & (rows["status"] == "ok") & ~single], "stream")
    names = list(dict.fromkeys(found["stream"]))
    sizes = found.iloc[0]
    subtitle = f"{sizes['shards']} shards x {sizes['slices']} slices · the real systems' own partition"
    figure = page("What a system bears depends on who asks", f"{subtitle} · {int(_lives(found))} real lives each")
    deaths = found[found["metric"] == "requests to dead system"]
    shares = found[found["metric"] == "share in service"]
    late = shares[shares["deletions"] == shares["deletions"].max()]
    left = figure.add_axes((0.115, PLOT[1], 0.29, PLOT[3]), xscale="log", xlabel="Requests until no shard is live")
    right = figure.add_axes(
        (0.44, PLOT[1], 0.26, PLOT[3]), xlabel=f"Slices in service after {int(late['deletions'].max())}"
    )
    right.set_xlim(-0.02, 1.02)
    _by_stream(left, deaths, names)
    _by_stream(right, late, names)
    left.set_yticks(range(len(names)), names)
    right.set_yticks(range(len(names)), [""] * len(names))
    if len(deaths):
        left.set_xlim(float(deaths["value"].min()) / 2, float(deaths["value"].max()) * 3)
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    handles, words = left.get_legend_handles_labels()
    figure.legend(handles, words, loc="upper left", bbox_to_anchor=(0.715, 0.83), labelspacing=0.9)
    if missing := sorted(set(names) - set(deaths["stream"])):
        figure.text(PLOT[0], 0.085, f"Not played to the end, too long: {', '.join(missing)}", size=10, color="#555555")
    return figure


def _lives(found: pd.DataFrame) -> float:
    return float(found[found["kind"] == "measured"]["n"].max())


def _by_stream(axes: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    cases = sorted({(str(m), int(b)) for m, b in zip(rows["method"], rows["budget"], strict=True)})
    for place, (method, budget) in enumerate(cases):
        colour = look(method, budget)["color"]
        some = rows[(rows["method"] == method) & (rows["budget"] == budget)]
        for kind, (words, marker, size) in MARKERS.items():
            here = some[some["kind"] == kind]
            y = [names.index(stream) + 0.3 * (place / max(1, len(cases) - 1) - 0.5) for stream in here["stream"]]
            low, high = (here[side].fillna(here["value"]) for side in ("low", "high"))
            axes.errorbar(
                here["value"],
                y,
                xerr=[(here["value"] - low).clip(lower=0), (high - here["value"]).clip(lower=0)],
                fmt=marker,
                ms=size,
                color=colour,
                mfc="none" if kind == "simulated" else colour,
                mew=1.8,
                capsize=3,
                lw=1.2,
                label=f"{label(method, budget)}, {words}",
            )
    axes.set_ylim(len(names) - 0.5, -0.5)


def worth(rows: pd.DataFrame) -> Figure:
    """Test accuracy against the share of the slices in service: each point a real system under a stream of requests."""
    model = next((name for name in rows["model"] if name != "tiny"), "tiny")
    found = extra(rows[(rows["model"] == model) & (rows["status"] == "ok")], "stream")
    keys = ["method", "budget", "seed", "stream", "deletions"]
    accuracy = found[found["metric"] == "test accuracy"].set_index(keys)["value"]
    share = found[(found["metric"] == "share in service") & (found["kind"] == "measured")].set_index(keys)["value"]
    table = pd.DataFrame({"accuracy": accuracy, "share": share}).dropna().reset_index()
    sizes = found.iloc[0]
    subtitle = f"{sizes['data']}, {sizes['model']}, {sizes['shards']} shards x {sizes['slices']} slices"
    figure = page("What a slice in service is worth", f"{subtitle} · a point is one system after some requests")
    axes = figure.add_axes(PLOT, xlabel="Slices behind served chains")
    axes.set_title("Test accuracy", loc="left", size=12, color="#555555")
    shapes = dict(zip(sorted(set(table["stream"])), "osD^vPX*<>", strict=False))
    for case, some in table.groupby(["method", "budget", "stream"]):
        method, budget, stream = str(case[0]), int(some["budget"].iloc[0]), str(case[2])
        colour = look(method, budget)["color"]
        axes.plot(some["share"], some["accuracy"], shapes[stream], color=colour, ms=8, alpha=0.85, ls="")
        axes.plot([], [], shapes[stream], color=colour, ls="", label=f"{label(method, budget)}, {stream}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=10)
    return figure


def area(table: pd.DataFrame, rows: pd.DataFrame, setting: Setting) -> Figure | None:
    """S3T minus every other method in points, in pairs by seed: mean accuracy over deletions, and at full health.

    None if no other method met deletions on a seed of S3T's.
    """
    found = areas(rows)
    after = [] if found is None else differences(found)
    if found is None or not after:
        return None
    lines = [(f"{label(*d.theirs)}\nat full health", d) for d in gaps(rows)]
    lines += [(f"{label(*d.theirs)}", d) for d in after]
    names = list(dict.fromkeys(name for name, _ in lines))
    budgets = sorted({d.ours[1] for _, d in lines})
    seeds = "95% interval over seeds" if any(d.low is not None for _, d in lines) else "one seed, no interval"
    subtitle = f"{setting} · mean over {found.first:.0f} to {found.last:.0f} deletions · {seeds}"
    figure = page("S3T minus the others, on the same requests", subtitle)
    axes = figure.add_axes((0.205, PLOT[1], 0.57, PLOT[3]), xlabel="Mean test accuracy, S3T minus the other (points)")
    axes.axvline(0.0, color="#888888", lw=1.2)
    for place, budget in enumerate(budgets):
        mine = [(name, d) for name, d in lines if d.ours[1] == budget]
        shift = 0.5 * ((place + 0.5) / len(budgets) - 0.5)
        spread = [[d.points - (d.points if d.low is None else d.low) for _, d in mine]]
        spread += [[(d.points if d.high is None else d.high) - d.points for _, d in mine]]
        axes.errorbar(
            [d.points for _, d in mine],
            [names.index(name) + shift for name, _ in mine],
            xerr=spread,
            ls="",
            capsize=3,
            lw=1.4,
            label=f"{label('s3t', budget)}\n(n = {min(d.n for _, d in mine)})",
            **look("s3t", budget),
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, labelspacing=0.9)
    return figure
