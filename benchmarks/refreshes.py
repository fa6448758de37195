"""Policies of refreshes over whole lives: rows of simulated lives, and their figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.painters import PLOT, page
from benchmarks.summary import extra
from s3t.capacity import Estimate
from s3t.planner.lives import Life, Setting

SERVED, TRAINING = "stages served", "training per year"
SHARES = {"some shard live": "available", "live shards": "live", SERVED: "length"}
"""Metric -> field of a life."""
YEARLY = {
    "refreshes per year": ("refreshes", "refreshes"),
    "nodes per year": ("nodes", "nodes"),
    "record passes per year": ("record_passes", "records x epochs"),
    TRAINING: ("seconds", "s"),
}
"""Metric -> field of a life, unit."""


def as_rows(setting: Setting, policy: str, found: dict[str, Estimate] | Life) -> Iterator[dict[str, Any]]:
    """Yield the fields of a policy's rows (results/SCHEMA.md): simulated, or of a life that is exact in its shares alone."""
    layout = setting.plan.layout
    about = {"policy": policy, "requests_per_day": setting.per_day, "years": setting.years, "records": setting.records}
    about |= {"seconds_per_pass": {str(stage): value for stage, value in setting.seconds.items()}}
    common = {
        "method": "s3t",
        "shards": layout.shards,
        "slices": layout.slices,
        "budget": layout.budget,
        "extra": about,
    }
    metrics = {metric: (name, "share", layout.slices if metric == SERVED else 1.0) for metric, name in SHARES.items()}
    if not isinstance(found, Life):
        metrics |= {metric: (name, unit, setting.years) for metric, (name, unit) in YEARLY.items()}
    exact = asdict(found) if isinstance(found, Life) else {}
    for metric, (name, unit, over) in metrics.items():
        row = {**common, "metric": metric, "unit": unit}
        if isinstance(found, Life):
            yield {**row, "value": exact[name] / over, "n": 1, "kind": "derived"}
        else:
            one = found[name]
            low, high = one.interval() if one.trials > 1 else (None, None)
            spread = {} if low is None or high is None else {"low": low / over, "high": high / over, "confidence": 0.95}
            yield {**row, "value": one.mean / over, "n": one.trials, "kind": "simulated", "seed": 0, **spread}


def paint(rows: pd.DataFrame) -> Figure:
    """Stages served against training per year, a line over the policies for each rate of requests."""
    told = rows[(rows["status"] == "ok") & (rows["kind"] == "simulated")]
    told = extra(extra(told, "policy"), "requests_per_day")
    keys = ["policy", "requests_per_day"]
    table = told[told["metric"].isin((SERVED, TRAINING))].pivot_table(index=keys, columns="metric", values="value")
    table = table.reset_index().sort_values(TRAINING)
    first = rows.iloc[0]
    size = f"{first['shards']} shards x {first['slices']} slices, {first['budget']} orders"
    life = f"{first['extra']['records']:,} records, {first['extra']['years']:g} years"
    figure = page("When to refresh: what is in service, and what that trains", f"{size} · {life} · simulated lives")
    axes = figure.add_axes(PLOT, xlabel="Training of refreshes, hours per year")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_title("Stages served, share of all", loc="left", size=12, color="#555555")
    rates = sorted(set(table["requests_per_day"]))
    for place, rate in enumerate(rates):
        some = table[table["requests_per_day"] == rate]
        colour = mpl.colormaps["viridis"](0.7 * place / max(1, len(rates) - 1))
        axes.plot(some[TRAINING] / 3600, some[SERVED], "o-", lw=1.2, color=colour, label=f"{rate:g} requests a day")
        for policy, hours, served in zip(some["policy"], some[TRAINING] / 3600, some[SERVED], strict=True):
            axes.annotate(
                str(policy), (hours, served), (-8, 5), textcoords="offset points", size=9, color=colour, ha="right"
            )
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure
