"""Chains with an analytic head beside them, down to the deletion of half of all records: rows, and their figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.area import area
from benchmarks.painters import COLOURS, page
from s3t.contract import Cost
from s3t.design import Design
from s3t.plan import POOLS, WEIGHTS
from s3t.records import Recipe

AREA = "mean test accuracy over the deletions"
SHARE = 0.5
"""Of the head in the plans of the lives that are played; what is judged are all of ``MIXTURES``."""
HEAD = "analytic"
STACKED = "s3t-stacked"
FLOOR = "+floor"
"""Ends the name of a system with an analytic head beside its chains."""


@dataclass(frozen=True)
class Mixture:
    """How chains, and an analytic head with ``share``, are weighed and brought together (:class:`s3t.plan.Plan`)."""

    share: float
    weights: str = "equal"
    pool: str = "linear"


MIXTURES = (
    *(Mixture(0.0, weights) for weights in WEIGHTS),
    *(Mixture(share, weights, pool) for share in (0.25, 0.5, 0.75) for weights in WEIGHTS for pool in POOLS),
)
"""Chains alone, and with a head."""
BESIDE = Mixture(0.25, "square")
"""What the figure shows of chains with a head: chosen on two data sets (docs/ANALYTIC.md, "Compared with S3T")."""
SHOWN = (Mixture(0.0), BESIDE, Mixture(1.0))
"""What the figure shows, and of which rows tell the costs."""
RETRAINED = ("sisa-lora", "retrain-lora")
"""Methods that retrain at a deletion. Here once per point, for the models are the same as after one deletion at a time."""


@dataclass(frozen=True)
class Kind:
    """Chains that are measured, by ``name``: a method at a budget, S3T's with a ``design``; ``ranks``: of the recipe's.

    ``mixtures``: by which they are judged. Methods that retrain at a deletion are judged without a head: they are what the
    others are to be held against, with other costs.
    """

    name: str
    method: str
    budget: int = 1
    design: Design | None = None
    ranks: float = 1.0
    mixtures: tuple[Mixture, ...] = MIXTURES

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return a method's recipe with the rank that this kind has; alpha stays."""
        return replace(recipe, rank=max(1, round(recipe.rank * self.ranks)))


def stacked(slices: int) -> Kind:
    """Return S3T with stacked blocks of the rank that gives all of a chain's blocks the storage of the paper's."""
    return Kind(STACKED, "s3t", 1, Design(stacked=True), 1 / slices)


def kinds(slices: int) -> list[Kind]:
    """Return what is compared."""
    one = [
        Kind("s3t", "s3t"),
        stacked(slices),
        Kind("sequential", "sequential"),
        Kind("sisa-lora-lazy", "sisa-lora-lazy"),
    ]
    retrained = [Kind(name, name, mixtures=(Mixture(0.0),)) for name in RETRAINED]
    return [*one, *retrained, *(replace(kind, budget=slices) for kind in one[:2])]


@dataclass(frozen=True)
class Served:
    """What a system serves after ``deletions``: accuracy by (system, mixture); ``live``: shares of live shards."""

    deletions: int
    accuracy: Mapping[tuple[str, Mixture], float]
    live: float


@dataclass(frozen=True)
class Life:
    """A life: the points, what the fit cost, and bytes stored by nodes and by features."""

    points: tuple[Served, ...]
    cost: Cost
    nodes: int
    features: int


def rows_of(life: Life, kind: Kind, *, head: bool) -> Iterator[dict[str, Any]]:
    """Yield the fields of a life's rows: one per mixture with its whole curve, and what those of ``SHOWN`` cost.

    Those of the head alone only where ``head`` says so, for it is the same in all.
    """
    live = [point.live for point in life.points]
    for system, mixture in life.points[0].accuracy:
        if system == HEAD and not head:
            continue
        curve = [(point.deletions, point.accuracy[system, mixture]) for point in life.points]
        extra = {**asdict(mixture), "kind": kind.name}
        budget = 1 if system == HEAD else kind.budget
        about: dict[str, Any] = {"method": system, "budget": budget, "kind": "measured", "n": 1}
        whole = {**extra, "curve": [list(point) for point in curve]} | ({} if system == HEAD else {"live": live})
        mean = area(curve, 0, curve[-1][0])
        yield {"metric": AREA, "unit": "share", "value": mean, "deletions": curve[-1][0], "extra": whole, **about}
        if mixture not in SHOWN:
            continue
        share = mixture.share
        work = {"record passes": life.cost.record_passes if share < 1 else 0}
        work |= {"forward passes": life.cost.forward_passes if share else 0}
        work["bytes stored"] = (life.nodes if share < 1 else 0) + (life.features if share else 0)
        for metric, value in work.items():
            unit = "bytes" if metric == "bytes stored" else "records"
            yield {"metric": metric, "unit": unit, "value": value, "extra": extra, **about}


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line per point of the curves of ``SHOWN``: the row's columns, with the point's ``deletions`` and ``value``."""
    shown = rows[rows["extra"].map(lambda extra: Mixture(extra["share"], extra["weights"], extra["pool"]) in SHOWN)]
    each = shown.assign(point=[extra["curve"] for extra in shown["extra"]]).explode("point", ignore_index=True)
    return each.assign(deletions=[point[0] for point in each["point"]], value=[point[1] for point in each["point"]])


def paint(rows: pd.DataFrame) -> Figure:
    """Accuracy as half of the records go, a panel for each data set; mean over seeds."""
    told = points(rows[(rows["status"] == "ok") & (rows["metric"] == AREA) & (rows["budget"] == 1)])
    sets = sorted(told["data"].unique())
    figure = page(
        "Chains with an analytic head beside them, down to half of all records",
        f"{told.iloc[0]['model']} · {int(told['shards'].max())} x {int(told['slices'].max())} · share of the head "
        f"{BESIDE.share:g}, weights by the square of length; dashed: chains alone; dotted: retrained",
    )
    for place, name in enumerate(sets[:4]):
        wide, high = (0.66, 0.6) if len(sets) == 1 else (0.31, 0.55 if len(sets) == 2 else 0.26)
        below = len(sets) > 2 and place < 2
        axes = figure.add_axes(
            (0.07 + 0.37 * (place % 2), 0.55 if below else 0.17, wide, high), xlabel="Deleted records"
        )
        seeds = told[told["data"] == name]["seed"].nunique()
        axes.set_title(f"{name}, {f'mean over {seeds} seeds' if seeds > 1 else '1 seed'}", loc="left", size=11.5)
        for system in dict.fromkeys(told["method"]):
            line = told[(told["data"] == name) & (told["method"] == system)].groupby("deletions")["value"].mean()
            if len(line):
                axes.plot(line.index.astype(float), line.to_numpy(), label=system, **_look(str(system)))
                axes.set_xscale("symlog", base=2, linthresh=max(1.0, float(line.index[1])))
                axes.set_xticks([float(tick) for tick in line.index], [f"{tick}" for tick in line.index])
        axes.set_xticks([], minor=True)
        axes.tick_params(axis="x", labelsize=8)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1)
    pairs = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes)
    handles = {label: handle for handle, label in itertools.chain.from_iterable(pairs)}
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(0.78, 0.82))
    return figure


def colour(system: str) -> str:
    """Return the colour of a system, with or without a head beside its chains."""
    bare = system.removesuffix(FLOOR)
    return {HEAD: "#111111", STACKED: "#c2185b"}.get(bare) or COLOURS[bare][0]


def _look(system: str) -> dict[str, Any]:
    bare = system.removesuffix(FLOOR)
    style = ":" if bare in RETRAINED else "-" if system != bare or bare == HEAD else "--"
    return {"color": colour(system), "ls": style, "lw": 1.5}
