"""Where nodes are trained: the same build in this process, by processes and by Ray, and simulated on many workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.engines import Ours
from benchmarks.painters import PLOT, page
from benchmarks.summary import extra
from s3t.backbone import Backbone
from s3t.building import Builder
from s3t.executors import hire
from s3t.planner.spreading import Spread
from s3t.resources import Resources

SPEEDUP, THROUGHPUT = "simulated speed-up", "times the throughput in process"
PLACES = {
    "in process": Resources(),
    "2 processes": Resources(workers=2),
    "Ray, 2 workers": Resources(workers=2, executor="ray"),
}
"""With the same threads in all: each of two workers has half of them."""


@dataclass
class Handing:
    """Seconds that nodes cost the process that hands them out: reading and encoding rows, storing what comes back."""

    seconds: float = 0.0
    nodes: int = 0

    @contextmanager
    def clocked(self) -> Iterator[None]:
        """Clock the body's builds."""
        prepare, finish = Builder.prepare, Builder.finish

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*given: Any, **more: Any) -> Any:
                began = time.perf_counter()
                try:
                    return call(*given, **more)
                finally:
                    self.seconds += time.perf_counter() - began
                    self.nodes += call is finish

            return wrapper

        Builder.prepare, Builder.finish = timed(prepare), timed(finish)  # type: ignore[method-assign]
        try:
            yield
        finally:
            Builder.prepare, Builder.finish = prepare, finish  # type: ignore[method-assign]


@dataclass(frozen=True)
class Sides:
    """The sides of the comparison, and what handing nodes over cost on the one with processes."""

    handing: Handing = field(default_factory=Handing)

    def all(self, engine: str, precision: str) -> list[Ours]:
        """Return a side for each of PLACES."""
        around = {"2 processes": self.handing.clocked}
        more = {name: {"around": around[name]} if name in around else {} for name in PLACES}
        return [Ours(name, engine, precision, how, **more[name]) for name, how in PLACES.items()]  # type: ignore[arg-type]


def seconds_to_begin(resources: Resources, backbone: Backbone, kernel: str, folder: Path) -> float:
    """Return the seconds until all workers have told that they are ready."""
    began = time.perf_counter()
    with hire(resources, backbone, kernel, resources.workers, folder):
        return time.perf_counter() - began


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
