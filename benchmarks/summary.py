"""From rows to what is shown: settings that may be compared, means over seeds, plain words. Pure functions on frames.

Frames are those of :func:`benchmarks.rows.read`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from benchmarks.rows import interval, latest, subject
from s3t.errors import DataError

METHODS = {
    "s3t": "S3T",
    "sequential": "Sequential LoRA",
    "sisa-lora": "SISA (LoRA, eager)",
    "sisa-lora-lazy": "SISA (LoRA, lazy)",
    "sisa-full": "SISA (full, eager)",
    "sisa-full-lazy": "SISA (full, lazy)",
    "retrain-lora": "Full retraining (LoRA)",
    "retrain-full": "Full retraining (full)",
}
"""Methods in the order in which they are shown, and their names in plain words."""

CAPACITY = "deletions to dead system"
COMPARED = ("accuracy", "cost", "storage")
"""Questions whose rows are compared across methods on one data set, model and layout."""


@dataclass(frozen=True, order=True)
class Setting:
    """What must be equal for methods to be compared: profile, data, base model, layout of the methods that have one."""

    profile: str
    data: str
    model: str
    shards: int
    slices: int

    def __str__(self) -> str:
        shards, slices = (f"{n} {word}{'s' * (n != 1)}" for n, word in ((self.shards, "shard"), (self.slices, "slice")))
        layout = f"{shards} × {slices}"  # noqa: RUF001 - a multiplication sign is meant
        return ", ".join(filter(None, (self.data, self.model, layout, f"{self.profile} profile")))

    @property
    def slug(self) -> str:
        """The setting in a file name."""
        parts = (self.profile, self.data, self.model, f"{self.shards}x{self.slices}")
        return "-".join(filter(None, (re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts)))

    def select(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of this setting; full retraining (one shard, one slice) belongs to every layout."""
        same = (frame["profile"] == self.profile) & (frame["data"] == self.data) & (frame["model"] == self.model)
        layout = (frame["shards"] == self.shards) & (frame["slices"] == self.slices)
        return frame[same & (layout | _undivided(frame))]


def label(method: str, budget: int) -> str:
    """Return the name of a method at a budget: "S3T, 3 orders", "SISA (LoRA, eager)"."""
    name = METHODS.get(method, method)
    if method != "s3t" and budget <= 1:
        return name
    return f"{name}, {budget} order{'s' * (budget != 1)}"


def rank(method: str, budget: int) -> tuple[int, str, int]:
    """Return where a method at a budget is shown among the others."""
    known = list(METHODS)
    return known.index(method) if method in known else len(known), method, budget


def readable_bytes(value: float) -> str:
    """Return a number of bytes in three digits with a decimal unit: "1.2 MB"."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def published(frame: pd.DataFrame, *, include_dirty: bool = False, profile: str | None = None) -> pd.DataFrame:
    """Return the rows that may be shown: of each subject (:func:`benchmarks.rows.subject`) the newest row set, on any machine.

    Raises DataError if none are left, saying what was left out and why.
    """
    if frame.empty:
        raise DataError("there are no rows: run a benchmark first")
    shown = latest(frame, include_dirty=include_dirty)
    if shown.empty:
        raise DataError(f"all {len(frame)} rows are of a dirty tree: commit and run again, or include dirty rows")
    if profile is not None:
        found = sorted(set(shown["profile"]))
        shown = shown[shown["profile"] == profile]
        if shown.empty:
            raise DataError(f"there are no rows of profile {profile!r}: there are {', '.join(found)}")
    stamp = shown["date"].astype(str) + " " + shown["file"].astype(str)
    newest = stamp.groupby(subject(shown), dropna=False).transform("max")
    return shown[stamp == newest]


def settings(frame: pd.DataFrame) -> list[Setting]:
    """Return the settings in which ``frame`` has numbers of methods, each with the layout of the methods that have one."""
    compared = frame[frame["question"].isin(COMPARED) & (frame["status"] == "ok")]
    found: set[Setting] = set()
    for (profile, data, model), rows in compared.groupby(["profile", "data", "model"]):
        divided = rows[~_undivided(rows)]
        layouts = {(int(m), int(l_)) for m, l_ in zip(divided["shards"], divided["slices"], strict=True)} or {(1, 1)}
        found |= {Setting(str(profile), str(data), str(model), *layout) for layout in layouts}
    return sorted(found)


def means(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one line per method, budget and number of deletions, in the order in which methods are shown.

    Columns: method, budget, deletions, mean, low, high (95 % Student t over seeds, or the row's own interval where rows
    are not by seed; NaN for a single seed), n (seeds, or the row's n), derived (whether a part was extrapolated) and
    offline (how many seeds had nothing to serve). Rows without a value are left out; :func:`failures` tells of them.
    """
    rows = frame[(frame["metric"] == metric) & (frame["status"] == "ok")]
    table = []
    for (method, budget, deletions), group in rows.groupby(["method", "budget", "deletions"], dropna=False):
        seeded = group[group["seed"].notna()]
        low: float | None
        high: float | None
        if seeded.empty:
            row = group.iloc[-1]
            mean, low, high, n = row["value"], row["low"], row["high"], row["n"]
        else:
            mean, low, high = interval(seeded["value"].tolist())
            n = len(seeded)
        derived = bool((group["kind"] == "derived").any())
        offline = sum(bool(extra.get("offline")) for extra in group["extra"])
        table.append((str(method), int(str(budget)), deletions, mean, low, high, int(n), derived, offline))
    columns = ["method", "budget", "deletions", "mean", "low", "high", "n", "derived", "offline"]
    result = pd.DataFrame(table, columns=columns).astype(
        {"mean": float, "low": float, "high": float, "deletions": "Int64"}
    )
    known = list(METHODS)
    place = result["method"].map(lambda method: known.index(method) if method in known else len(known))
    ordered = result.assign(place=place).sort_values(["place", "method", "budget", "deletions"], ignore_index=True)
    return ordered.drop(columns="place")


def failures(frame: pd.DataFrame) -> list[str]:
    """Return one sentence per method and question that has no number, with the reason."""
    missing = frame[frame["status"] != "ok"]
    lines = zip(
        missing["method"], missing["budget"], missing["metric"], missing["status"], missing["reason"], strict=True
    )
    ordered = sorted(lines, key=lambda line: rank(line[0], line[1]))
    return list(
        dict.fromkeys(f"{label(m, b)}: {metric} {status} ({reason})" for m, b, metric, status, reason in ordered)
    )


def _undivided(frame: pd.DataFrame) -> pd.Series[bool]:
    return (frame["shards"] == 1) & (frame["slices"] == 1)


def extra(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Return ``rows`` with these entries of their ``extra`` as columns."""
    return rows.assign(**{name: [entry[name] for entry in rows["extra"]] for name in names})
