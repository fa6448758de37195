"""What an audit said, made fit to be published: no ids, no paths, no values that RFC 8785 cannot hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verify.attest import AttestError
from verify.report import Finding, Report, Verdict

WITHHELD = "[withheld]"
TABLES = (
    *("margin", "deviation_bound", "deviation", "power", "looks", "unusable", "p_values", "statistics"),
    *("equivalence_p", "epsilon_low", "tpr", "fpr"),
)
"""Details that are tables of figures by the name of a measure, attack or side; others may be tables by record id."""

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_PATH = re.compile(r"(?<![\w/])(?:~|\.{1,2})?/\S+|\b[A-Za-z]:\\\S+")


def scrub(text: str) -> str:
    """Return ``text`` without quoted words (findings quote ids) and without absolute or relative paths."""
    return _PATH.sub(WITHHELD, _QUOTED.sub(WITHHELD, text))


def figures(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures in a finding's details; strings, lists and tables by record are left out."""
    kept: dict[str, Any] = {}
    for name, value in details.items():
        if name in TABLES and isinstance(value, Mapping):
            kept[name] = {str(key): plain(item) for key, item in value.items() if _is_figure(item)}
        elif _is_figure(value):
            kept[name] = plain(value)
    return kept


def plain(value: Any) -> Any:
    """Return a figure as JSON can hold it: NaN and infinities as null, large integers as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        return str(value)
    return value


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def publish(finding: Finding) -> dict[str, Any]:
    """Return a finding as a certificate states it."""
    return {
        "check": finding.check,
        "verdict": finding.verdict.value,
        "message": scrub(finding.message),
        "node": finding.node,
        "figures": figures(finding.details),
    }


def read_report(path: Path) -> Report:
    """Read what ``python -m verify RUN --json`` wrote. AttestError if it is none, or contradicts itself."""
    try:
        raw = json.loads(path.read_bytes())
        if raw["schema"] != 1:
            raise ValueError(f"schema {raw['schema']!r} is not 1")
        checked = raw["checked"]
        if set(checked) != {"run", "entries", "head"}:
            raise ValueError("it does not say which run it is about")
        findings = tuple(
            Finding(f["check"], Verdict(f["verdict"]), f["message"], f["node"], f["tensor"], f["details"])
            for f in raw["findings"]
        )
        notes = tuple(str(note) for note in raw["notes"])
        report = Report(
            raw["run"], raw["system"], raw["claim"], tuple(raw["levels"]), findings, notes, raw["seconds"], checked
        )
        if raw["verdict"] != report.verdict or raw["levels"] != {level: report.of(level) for level in report.levels}:
            raise ValueError("its verdicts are not those of its findings")
    except OSError as error:
        raise AttestError(f"the report {path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AttestError(
            f"{path} is no report of `python -m verify RUN --json` ({type(error).__name__}: {error}); make one anew"
        ) from error
    return report
