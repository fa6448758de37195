"""The comparison in a terminal: one table per setting, methods and budgets down, questions across."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.area import areas, differences, gaps
from benchmarks.rows import Row, interval
from benchmarks.summary import CAPACITY, Setting, failures, label, means, rank, readable_bytes, settings

ABSENT = "-"
ENGINE = ("times faster than stock", "share of matmul peak", "accuracy, ours minus stock")
"""What is told of the comparison of engines; the rest of it is in the rows."""
Key = tuple[str, int]
"""Method and budget."""


def render(rows: pd.DataFrame | Sequence[Row], *, width: int = 140) -> str:
    """Return the comparison as text: a mean, ± half its interval where there is one, ``-`` where there is no number.

    ``rows``: a frame as :func:`benchmarks.rows.read` returns it, or rows. All of them are shown: choose before, with
    :func:`benchmarks.summary.published`, what may be. Capacity is in requests until no shard is live; n counts the seeds
    behind the accuracy at health; accuracy after deletions counts a seed with nothing to serve as 0 % and says how many
    those are. The mean over deletions is the normalised area (:mod:`benchmarks.area`); below a table stand S3T's differences
    to the others, in pairs by seed. A table is wider than ``width`` rather than cut short. What failed is listed below with
    its reason.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else _frame(rows)
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=False, color_system=None, legacy_windows=False)
    capacity = frame[frame["metric"] == CAPACITY]
    covered = pd.Series(False, index=frame.index)
    for setting in settings(frame):
        here = setting.select(frame)
        layout = (frame["shards"] == setting.shards) & (frame["slices"] == setting.slices)
        bears = capacity[layout.loc[capacity.index] & (capacity["profile"] == setting.profile)]
        covered |= frame.index.isin(bears.index)
        _show(console, _table(str(setting), here, bears))
        for line in _pairs(here):
            console.print(line, markup=False, soft_wrap=True)
    rest = capacity[~covered.loc[capacity.index]]
    for (profile, shards, slices), bears in rest.groupby(["profile", "shards", "slices"]):
        setting = Setting(str(profile), "", "", int(str(shards)), int(str(slices)))
        _show(console, _table(str(setting), frame.iloc[:0], bears))
    told = frame["question"].isin(["latency", "audit"]) | frame["metric"].isin(ENGINE)
    for row in frame[told & (frame["status"] == "ok")].itertuples():
        extra: Any = row.extra
        modes = " against ".join(extra[key] for key in ("mode", "against") if key in extra)
        name = f"{label(str(row.method), int(str(row.budget)))}{modes and f' ({modes})'}"
        answer = (
            f"{row.metric} {row.value:.3g} {row.unit} (n = {row.n}, {row.data}, {row.model}, {row.profile} profile)"
        )
        console.print(f"{name}: {answer}", markup=False, soft_wrap=True)
    for line in failures(frame):
        console.print(f"no number: {line}", markup=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())


def _table(title: str, here: pd.DataFrame, bears: pd.DataFrame) -> Table:
    life = means(here[here["question"] == "accuracy"], "test accuracy")
    accuracy = _healthy(life)
    last, after = _after(life)
    stored = _by_method(means(here, "bytes stored"), "mean")
    columns: dict[str, dict[Key, str]] = {
        "capacity\nderived": _capacity(bears, "derived"),
        "capacity\nsimulated": _capacity(bears, "simulated"),
        "capacity\nmeasured": _capacity(bears, "measured"),
        "passes\nup front": _cells(_healthy(means(here, "record passes")), "{:,.0f}", spread=False),
        "passes per\ndeletion": _cells(means(here, "record passes per deletion"), "{:,.0f}"),
        "down s per\ndeletion": _cells(means(here, "down seconds per deletion"), "{:.3g}"),
        "stored": {key: readable_bytes(mean) for key, mean in stored.items()},
        "accuracy\nat health": _cells(accuracy, "{:.1%}"),
        "n": {key: f"{n:.0f}" for key, n in _by_method(accuracy, "n").items()},
        **_areas(here),
        f"accuracy\nafter {last}": after,
    }
    columns = {header: cells for header, cells in columns.items() if cells}
    table = Table(title=escape(title), box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    for header in columns:
        table.add_column(header, justify="right", no_wrap=True)
    both = pd.concat([here[["method", "budget"]], bears[["method", "budget"]]])
    keys = {(str(method), int(budget)) for method, budget in zip(both["method"], both["budget"], strict=True)}
    for key in sorted(keys, key=lambda key: rank(*key)):
        table.add_row(escape(label(*key)), *(escape(cells.get(key, ABSENT)) for cells in columns.values()))
    return table


def _areas(here: pd.DataFrame) -> dict[str, dict[Key, str]]:
    """Return the column of areas, none where methods have no range of deletions in common."""
    found = areas(here)
    if found is None:
        return {}
    cells = {}
    for key, by_seed in found.by_seed.items():
        mean, _, high = interval(list(by_seed.values()))
        cells[key] = f"{mean:.1%}" + (f" ±{high - mean:.1%}" if high is not None and high > mean else "")
    return {f"mean over\n{found.first:.0f} to {found.last:.0f}": cells}


def _pairs(here: pd.DataFrame) -> list[str]:
    """Return S3T's gap at full health and differences of areas, a line each."""
    found = areas(here)
    lines = [(f"at full health, {label(*d.ours)} minus {label(*d.theirs)}", d) for d in gaps(here)]
    if found is not None:
        span = f"mean over {found.first:.0f} to {found.last:.0f} deletions"
        lines += [(f"{span}, {label(*d.ours)} minus {label(*d.theirs)}", d) for d in differences(found)]
    return [f"{words}: {d} (n = {d.n})" for words, d in lines]


def _show(console: Console, table: Table) -> None:
    """Print a table at the width its numbers need: a terminal may wrap it, but no digit is lost."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _after(life: pd.DataFrame) -> tuple[int, dict[Key, str]]:
    """Return the last number of deletions that any method was measured at, and the accuracy of those that were."""
    last = int(life["deletions"].fillna(0).max()) if len(life) else 0
    if last == 0:
        return 0, {}
    table = life[(life["deletions"] == last).fillna(False).astype(bool)]
    offline = _by_method(table, "offline")
    cells = _cells(table, "{:.1%}")
    return last, {key: cell + (f" ({offline[key]:.0f} offline)" if offline[key] else "") for key, cell in cells.items()}


def _by_method(table: pd.DataFrame, column: str) -> dict[Key, float]:
    keys = zip(table["method"], table["budget"], strict=True)
    return {
        (str(method), int(budget)): float(value) for (method, budget), value in zip(keys, table[column], strict=True)
    }


def _cells(table: pd.DataFrame, form: str, *, spread: bool = True) -> dict[Key, str]:
    low, high = _by_method(table, "low"), _by_method(table, "high")
    cells = {}
    for key, mean in _by_method(table, "mean").items():
        cells[key] = form.format(mean)
        if spread and low[key] < high[key]:
            symmetric = math.isclose(low[key] + high[key], 2 * mean, rel_tol=1e-6, abs_tol=1e-9)
            half, both = form.format(high[key] - mean), f"[{form.format(low[key])}, {form.format(high[key])}]"
            cells[key] += f" ±{half}" if symmetric else f" {both}"
    return cells


def _capacity(bears: pd.DataFrame, kind: str) -> dict[Key, str]:
    """Capacity rows are no means over seeds: each is its own number."""
    return _cells(means(bears[bears["kind"] == kind].assign(seed=float("nan")), CAPACITY), "{:.1f}")


def _healthy(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["deletions"].fillna(0) == 0]


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows], columns=list(Row.__dataclass_fields__)).astype(
        {"value": float, "low": float, "high": float, "seed": "Int64", "deletions": "Int64"}
    )
