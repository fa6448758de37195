"""results/claims.toml: what the paper reports, what theory gives, and what was measured here, each in a column of its own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from s3t.errors import DataError


@dataclass(frozen=True)
class Claim:
    """One claim. ``reported``: in the paper's terms. ``derived``: ``function`` of s3t.capacity, ``arguments``, ``value``.

    ``measured``: ``file`` (a row set) and other columns that name rows, and ``value``, their mean; ``against``: what it is
    compared with.
    """

    name: str
    source: str
    reported: str
    derived: Mapping[str, Any] | None = None
    measured: Mapping[str, Any] | None = None
    against: Mapping[str, Any] | None = None
    note: str = ""


def read_claims(path: Path) -> list[Claim]:
    """Return the claims in ``path``. DataError, naming the file, for what is no list of claims."""
    try:
        return [Claim(**raw) for raw in tomllib.loads(path.read_text(encoding="utf-8"))["claim"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as claims ({error}); results/claims.toml shows the form") from error


def derive(told: Mapping[str, Any]) -> float:
    """Return what the named function of s3t.capacity gives for the arguments. DataError for an unknown one."""
    from s3t import capacity

    function = getattr(capacity, told["function"], None)
    if function is None:
        raise DataError(f"s3t.capacity has no function {told['function']!r}")
    return float(function(*told["arguments"]))


def find(told: Mapping[str, Any], rows: pd.DataFrame) -> float:
    """Return the mean of the rows that ``told`` names by ``file``, columns, and entries of ``extra``. DataError for none."""
    wanted = {name: value for name, value in told.items() if name != "value"} | {"status": "ok"}
    chosen = rows
    for name, value in wanted.items():
        if name == "extra":
            chosen = chosen[[value.items() <= entry.items() for entry in chosen["extra"]]]
        else:
            chosen = chosen[chosen[name] == value]
    if chosen.empty:
        raise DataError(f"no committed row is {wanted}")
    return float(chosen["value"].mean())
