"""Expected accuracy under uniform deletions, of one trained run over many streams: rows, tables and the figure.

``python -m benchmarks.expected results/rows`` prints, for each data set, what every system is expected to have on the way, and
what S3T gains over lazy SISA, in pairs by seed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.area import area
from benchmarks.painters import look, page
from benchmarks.tables import command, points, share

METRIC = "expected test accuracy over the deletions"
LAZY = "sisa-lora-lazy"
"""Lazy SISA: what S3T has to be ahead of."""
STREAMS = 400
"""Of deletions, the same for every system with the same seed."""


def rows_of(curves: Sequence[Sequence[float]], dead: Sequence[int], upto: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the fields of a run's rows: the mean over the streams' ``curves`` (accuracy after 0, 1, 2, ... deletions) over the
    first so many deletions, for each of ``upto``. ``dead``: after how many nothing serves, by stream."""
    mean = [sum(values) / len(curves) for values in zip(*curves, strict=True)]
    gone = [sum(end <= done for end in dead) / len(dead) for done in range(len(mean))]
    for last in upto:
        extra = {"curve": [round(value, 5) for value in mean[: last + 1]], "dead": gone[: last + 1]}
        value = area(list(enumerate(mean)), 0, last)
        yield {"metric": METRIC, "unit": "share", "value": value, "n": len(curves), "deletions": last, "extra": extra}


def told(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of this study that hold a number."""
    return rows[(rows["question"] == "expected") & (rows["status"] == "ok") & (rows["metric"] == METRIC)]


def tables(rows: pd.DataFrame, data: str) -> str:
    """Return two Markdown tables of ``data``: every system, and S3T at every budget minus lazy SISA; 95 % over seeds."""
    found = told(rows)
    found = found[found["data"] == data]
    upto = sorted({int(last) for last in found["deletions"]})
    systems = sorted({(str(m), int(b)) for m, b in zip(found["method"], found["budget"], strict=True)})
    heads = " | ".join(f"mean of the first {last}" for last in upto)
    lines = [f"| system | seeds | before deletions | {heads} | dead after {upto[-1]} |"]
    lines.append("| --- " * (len(upto) + 4) + "|")
    against = [f"| S3T minus lazy SISA, points | seeds | {heads} |", "| --- " * (len(upto) + 2) + "|"]
    for method, budget in systems:
        mine = found[(found["method"] == method) & (found["budget"] == budget)]
        by_end = {last: mine[mine["deletions"] == last].set_index("seed")["value"].to_dict() for last in upto}
        longest = mine[mine["deletions"] == upto[-1]]["extra"]
        healthy = [extra["curve"][0] for extra in longest]
        gone = sum(extra["dead"][-1] for extra in longest) / len(longest)
        means = " | ".join(share(list(by_end[last].values())) for last in upto)
        lines.append(f"| {_name(method, budget)} | {len(healthy)} | {share(healthy)} | {means} | {gone:.0%} |")
        if method != "s3t":
            continue
        columns = []
        for last in upto:
            lazy = found[(found["method"] == LAZY) & (found["deletions"] == last)].set_index("seed")["value"].to_dict()
            columns.append([100 * (value - lazy[seed]) for seed, value in by_end[last].items() if seed in lazy])
        if all(columns):
            words = " | ".join(points(values) for values in columns)
            against.append(f"| {_name(method, budget)} | {len(columns[0])} | {words} |")
    return "\n".join([*lines, "", *against])


def _name(method: str, budget: int) -> str:
    return method if budget == 1 else f"{method}, {budget} orders"


def paint(rows: pd.DataFrame) -> Figure:
    """Expected accuracy after each number of deletions, a panel for each of the first four data sets; mean over seeds."""
    found = told(rows)
    first = found.iloc[0]
    figure = page(
        "Expected accuracy under uniform deletions",
        f"{first['model']} · {int(found['shards'].max())} shards x {int(found['slices'].max())} slices · no refresh · "
        f"each run under {int(first['n'])} streams of distinct records",
    )
    sets = sorted(set(found["data"]))[:4]
    for place, data in enumerate(sets):
        wide, high = (0.66, 0.62) if len(sets) == 1 else (0.31, 0.62 if len(sets) == 2 else 0.27)
        at = (0.07 + 0.37 * (place % 2), 0.55 if len(sets) > 2 and place < 2 else 0.17, wide, high)
        axes = figure.add_axes(at, xlabel="Deleted records")
        some = found[found["data"] == data]
        seeds = some["seed"].nunique()
        axes.set_title(f"{data}, {seeds} seed{'s' * (seeds > 1)}", loc="left", size=11.5)
        longest = some[some["deletions"] == some["deletions"].max()]
        for (method, budget), runs in longest.groupby(["method", "budget"], sort=True):
            mean = [
                sum(values) / len(runs) for values in zip(*(extra["curve"] for extra in runs["extra"]), strict=True)
            ]
            style = {**look(str(method), int(budget)), "marker": ""}
            axes.plot(range(len(mean)), mean, label=_name(str(method), int(budget)), lw=1.6, **style)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if not place:
            figure.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.78, 0.82))
    return figure


def main(arguments: Sequence[str]) -> int:
    """Print the tables of every data set in a folder of rows; 2 for bad input."""
    return command(arguments, "expected", [tables], "benchmarks.expected")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
