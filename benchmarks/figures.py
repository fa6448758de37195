"""Figures from rows alone: neither torch nor the system. Every figure says what it shows, of what, and from which rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from benchmarks import (
    blocks,
    designs,
    expected,
    floors,
    painters,
    panels,
    planning,
    refreshes,
    sizes,
    speed,
    spreads,
    survival,
)
from benchmarks.rows import read
from benchmarks.style import STYLE
from benchmarks.summary import CAPACITY, Setting, failures, means, published, settings

log = logging.getLogger(__name__)


def draw(rows_folder: Path, out_folder: Path, *, include_dirty: bool = False, profile: str | None = None) -> list[Path]:
    """Draw every figure that the rows in ``rows_folder`` allow, as PNG files of 1200 x 750 pixels, and return them.

    Names are <figure>-<setting>.png. A question without rows is not drawn and a warning says so. Raises DataError if there
    are no rows to draw at all (see :func:`benchmarks.summary.published`).
    """
    frame = published(read(rows_folder), include_dirty=include_dirty, profile=profile)
    out_folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    with mpl.rc_context(STYLE):
        for name in sorted(set(frame["profile"])):
            rows = frame[(frame["profile"] == name) & (frame["metric"] == CAPACITY)]
            if not rows[rows["status"] == "ok"].empty:
                drawn.append(_save(painters.capacity(rows, name), rows, out_folder / f"capacity-{name}.png"))
            else:
                log.warning("no rows of capacity at profile %s: its figure is not drawn", name)
            for title, (question, metric, study) in STUDIES.items():
                rows = frame[(frame["profile"] == name) & (frame["question"] == question)]
                if ((rows["status"] == "ok") & (rows["metric"] == metric)).any():
                    drawn.append(_save(study(rows), rows, out_folder / f"{title}-{name}.png"))
                else:
                    log.warning("no rows of %s (%s) at profile %s: its figure is not drawn", question, metric, name)
        for setting in settings(frame):
            everything = setting.select(frame)
            for title, (question, metric, deletions, paint) in FIGURES.items():
                rows = everything[(everything["question"] == question) & (everything["metric"] == metric)]
                table = means(rows, metric)
                table = table[table["deletions"].notna()] if deletions else table[table["deletions"].fillna(0) == 0]
                if table.empty or (deletions and table["deletions"].nunique() < 2):
                    log.warning("no rows of %s for %s: its figure is not drawn", metric, setting)
                    continue
                figure = paint(table, rows, setting)
                if figure is None:
                    log.warning("no pairs of S3T and others for %s: %s is not drawn", setting, title)
                    continue
                drawn.append(_save(figure, rows, out_folder / f"{title}-{setting.slug}.png"))
    return drawn


def _save(figure: Figure, rows: pd.DataFrame, path: Path) -> Path:
    """Write the figure with its evidence (commit, machine, date) and what is missing at the foot."""
    newest = rows.sort_values(["date", "file"]).iloc[-1]
    machine = ", ".join(filter(None, (newest["cpu"], newest["gpu"] if isinstance(newest["gpu"], str) else None)))
    dirty = " + uncommitted changes, not for publication" if rows["dirty"].any() else ""
    source = f"Commit {newest['commit'][:8]}{dirty} · {machine} · {newest['date'][:10]} · {newest['file']}"
    if (earlier := rows["file"].nunique() - 1) > 0:
        source += f" and {earlier} earlier"
    figure.text(0.03, 0.025, source, size=9, color="#888888")
    if missing := failures(rows):
        text = "Not shown: " + "; ".join(missing)
        figure.text(0.03, 0.055, text if len(text) < 170 else text[:167] + "...", size=9, color="#c5221f")
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


Painter = Callable[[pd.DataFrame, pd.DataFrame, Setting], Figure | None]
FIGURES: dict[str, tuple[str, str, bool, Painter]] = {
    "accuracy-by-deletions": ("accuracy", "test accuracy", True, painters.accuracy),
    "area-by-method": ("accuracy", "test accuracy", True, panels.area),
    "cost-by-deletions": ("cost", "record passes", True, painters.cost),
    "accuracy-by-method": ("accuracy", "test accuracy", False, painters.healthy),
    "storage-by-method": ("storage", "bytes stored", False, painters.storage),
}
"""Figure -> question, metric, whether the x axis is deletions, painter."""
STUDIES: dict[str, tuple[str, str, Callable[[pd.DataFrame], Figure]]] = {
    "layouts": ("survival", "requests until dead", survival.layouts),
    "survival": ("survival", "share in service", survival.curves),
    "orders": ("orders", "share of the optimum", survival.orders),
    "streams": ("streams", "requests to dead system", panels.streams),
    "service": ("streams", "test accuracy", panels.worth),
    "planner": ("planning", planning.METRIC, planning.paint),
    "refresh": ("refresh", refreshes.SERVED, refreshes.paint),
    "executors": ("executors", spreads.SPEEDUP, spreads.paint),
    "floors": ("floors", floors.AREA, floors.paint),
    "training": ("engine", speed.FASTER, speed.training),
    "ablation": ("engine", speed.PARTS, speed.ablation),
    "design": ("design", designs.FULL, designs.paint),
    "blocks": ("blocks", blocks.ACCURACY, blocks.paint),
    "expected": ("expected", expected.METRIC, expected.paint),
    "sizes": ("sizes", sizes.ACCURACY, sizes.paint),
    "serving": ("serving", speed.TOGETHER, speed.serving),
    "deletion": ("deletion", speed.DELETED, speed.deletion),
}
"""Figure of a study of its own -> question, the metric that it cannot do without, painter of its rows at one profile."""
