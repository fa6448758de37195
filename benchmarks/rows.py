"""Result rows as evidence: typed, attributable to a commit and a machine, written atomically, read strictly.

results/SCHEMA.md documents every field. No host name and no path is ever written. Importing this loads no torch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import pandas as pd
from scipy.special import stdtrit

from benchmarks.provenance import Header, Machine, header, machine
from s3t.errors import DataError, did_you_mean

__all__ = [
    "Header",
    "Machine",
    "Row",
    "RowSet",
    "header",
    "interval",
    "latest",
    "machine",
    "read",
    "write",
]

SCHEMA = 1
Question = Literal[
    "capacity",
    "cost",
    "accuracy",
    "latency",
    "storage",
    "audit",
    "simulation",
    "orders",
    "survival",
    "streams",
    "planning",
    "engine",
    "serving",
    "deletion",
    "design",
    "blocks",
    "language",
    "http",
    "refresh",
    "executors",
    "floors",
    "scale",
    "analytic",
    "adapted",
    "sizes",
    "expected",
]
QUESTIONS: tuple[str, ...] = get_args(Question)
Profile = Literal["smoke", "quick", "health", "pairs", "larger", "vision", "paper", "full"]
PROFILES: tuple[str, ...] = get_args(Profile)
KINDS = ("measured", "derived", "claimed", "simulated")
STATUSES = ("ok", "failed", "not-run")
MACHINE = ("cpu", "cores", "gpu", "os")
"""The columns of :func:`read` that tell machines apart."""

_CHOICES = {"question": QUESTIONS, "profile": PROFILES, "kind": KINDS, "status": STATUSES}
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number (or the reason why there is none) with everything that is needed to read it.

    ``deletions``: how many deletions had happened, None where that makes no sense. ``low``, ``high``: interval at level
    ``confidence``. ``n``: observations behind ``value``. ``seed`` None: over all seeds or independent of them. ``data``
    and ``model`` are empty where none was used. Raises DataError for a word not in the schema, a number of the wrong
    type or not finite, "ok" without a value, or anything else without a reason.
    """

    question: Question
    profile: Profile
    method: str
    budget: int
    shards: int
    slices: int
    metric: str
    unit: str
    value: float | None
    n: int
    kind: Literal["measured", "derived", "claimed", "simulated"]
    data: str = ""
    model: str = ""
    seed: int | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    deletions: int | None = None
    status: Literal["ok", "failed", "not-run"] = "ok"
    reason: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise DataError(f"{name}={value!r} is unknown{did_you_mean(value, choices)}; choose from {choices}")
        for name in ("method", "metric", "unit", "data", "model", "reason"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{name}={getattr(self, name)!r} is not text")
        for name in ("budget", "shards", "slices", "n", "seed", "deletions"):
            value = getattr(self, name)
            optional = name in ("seed", "deletions")
            if not (value is None and optional) and (type(value) is not int or value < 0):
                raise DataError(f"{name}={value!r} is not a count: give an int of at least 0{' or None' * optional}")
        for name in ("value", "low", "high", "confidence"):
            value = getattr(self, name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise DataError(
                        f"{name}={value!r} is not a finite number: give one, or None with a status and reason"
                    )
                object.__setattr__(self, name, float(value))
        if self.status == "ok" and (self.value is None or self.n < 1):
            raise DataError(
                f"{self.metric!r} is ok with value {self.value} and n={self.n}: give both, or another status"
            )
        if self.status != "ok" and not self.reason:
            raise DataError(f"{self.metric!r} is {self.status} without a reason: say why")
        if None not in (self.value, self.low, self.high) and not self.low <= self.value <= self.high:  # type: ignore[operator]
            raise DataError(f"{self.metric!r} = {self.value} lies outside its interval {self.low}..{self.high}")


@dataclass(frozen=True)
class RowSet:
    """The rows of one run of one question at one profile. Raises DataError if there are none, or of several."""

    header: Header
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        found = sorted({(row.question, row.profile) for row in self.rows})
        if len(found) != 1:
            raise DataError(f"a row set answers one question at one profile, not {found}; failed runs have rows too")


def write(rowset: RowSet, folder: Path) -> Path:
    """Write ``rowset`` to a new file <question>-<profile>-<utc stamp>-<commit8>.json in ``folder``, all or nothing."""
    return rewrite(rowset, _unused(rowset, folder))


def _unused(rowset: RowSet, folder: Path) -> Path:
    """Return where :func:`write` would put ``rowset``; the folder is made. Evidence is never overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    first = rowset.rows[0]
    stamp = re.sub(r"[-:]", "", rowset.header.date)
    stem = f"{first.question}-{first.profile}-{stamp}-{rowset.header.commit[:8]}"
    path, copy = folder / f"{stem}.json", 1
    while path.exists():
        copy += 1
        path = folder / f"{stem}-{copy}.json"
    return path


def rewrite(rowset: RowSet, path: Path) -> Path:
    """Write ``rowset`` to ``path``, a session's own file that grows with its rows; all or nothing."""
    lines = [
        json.dumps({**asdict(r), "reason": _scrub(r.reason)}, allow_nan=False, ensure_ascii=False) for r in rowset.rows
    ]
    head = json.dumps(asdict(rowset.header), indent=1, allow_nan=False)
    body = ",\n".join(lines)
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    temporary.write_text(f'{{\n"header": {head},\n"rows": [\n{body}\n]}}\n', encoding="utf-8")
    os.replace(temporary, path)
    return path


def read(folder: Path) -> pd.DataFrame:
    """Return all rows in ``folder``, one line each, with header, machine and ``file`` beside them.

    Raises DataError, naming the file, for a missing folder, damaged JSON, another schema, or unknown or missing keys.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: run a benchmark first, or give the folder of its rows")
    table: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        rowset = _parse(path)
        head = {**asdict(rowset.header), **asdict(rowset.header.machine), "file": path.name}
        del head["machine"]
        table += [{**asdict(row), **head} for row in rowset.rows]
    names = [f.name for kind in (Row, Header, Machine) for f in fields(cast(Any, kind)) if f.name != "machine"]
    frame = pd.DataFrame(table, columns=[*names, "file"])
    for name in ("value", "low", "high", "confidence"):
        frame[name] = frame[name].astype("float64")
    for name in ("seed", "deletions", "threads"):
        frame[name] = frame[name].astype("Int64")
    return frame


SUBJECT = ("question", "profile", "data", "model", "metric", "shards", "slices", "budget")
"""What later rows replace earlier ones about: a session may measure anew only a part of what an earlier one did."""
BY_RUN = ("accuracy", "storage", "language", "floors", "blocks", "adapted", "sizes", "expected")
"""Questions whose answers follow from a method, a seed and a kernel, whatever runs beside them: each run is replaced by itself,
so that later sessions can add methods and seeds. Costs are compared within a session: seconds depend on the machine's day."""


def subject(frame: pd.DataFrame) -> list[pd.Series[Any]]:
    """Return what the rows are about, to group by: ``SUBJECT``, the variant of a design, for ``BY_RUN`` method and seed."""
    by_run, variant = frame["question"].isin(BY_RUN), frame["extra"].map(lambda extra: extra.get("variant", ""))
    return [
        *(frame[key] for key in SUBJECT),
        variant,
        frame["method"].where(by_run, ""),
        frame["seed"].where(by_run, -1),
    ]


def latest(frame: pd.DataFrame, *, include_dirty: bool = False) -> pd.DataFrame:
    """Keep, per subject (:func:`subject`) and machine, the newest row set's rows: what is published.

    Row sets of a dirty tree are left out unless ``include_dirty``. ``frame``: as :func:`read` returns it.
    """
    if not include_dirty:
        frame = frame[~frame["dirty"].astype(bool)]
    stamp = frame["date"].astype(str) + " " + frame["file"].astype(str)
    newest = stamp.groupby([*subject(frame), *(frame[key] for key in MACHINE)], dropna=False).transform("max")
    return frame[stamp == newest]


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None, float | None]:
    """Return (mean, low, high): Student's t interval of the mean over independent runs; no bounds for a single one.

    Raises DataError for no values or a confidence outside 0..1.
    """
    if not len(values) or not 0.0 < confidence < 1.0:
        raise DataError(
            f"an interval of {len(values)} values at {confidence} is not possible: give values, and 0 < level < 1"
        )
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, None, None
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    return mean, mean - half, mean + half


def _parse(path: Path) -> RowSet:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(raw) - {"header", "rows"}):
            raise DataError(f"unknown top-level keys {unknown}")
        for row in raw["rows"]:
            if row.get("schema") != SCHEMA:
                raise DataError(f"schema {row.get('schema')!r} is unknown: this version reads {SCHEMA}")
        head = {**raw["header"], "machine": _build(Machine, raw["header"]["machine"])}
        return RowSet(_build(Header, head), tuple(_build(Row, row) for row in raw["rows"]))
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path.name} is not a row set: {what}") from error


def _build(kind: type[_T], raw: Mapping[str, Any]) -> _T:
    known = [f.name for f in fields(cast(Any, kind))]
    for key in raw:
        if key not in known:
            raise DataError(f"unknown {kind.__name__} key {key!r}{did_you_mean(key, known)}")
    missing = [name for name in known if name not in raw]
    if missing:
        raise DataError(f"{kind.__name__} lacks {missing}")
    return kind(**raw)


def _scrub(reason: str) -> str:
    """Take folders and the host's name out of an error's text; file names stay."""
    reason = re.sub(r"(?<![\w.:/])/(?:[^\s/'\":]+/)+", ".../", reason)
    host = platform.node()
    return re.sub(rf"\b{re.escape(host)}\b", "<host>", reason) if host else reason
