"""Verdicts, findings and the report: what was checked, what it says, and what it cannot say."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LIMITS: tuple[str, ...] = (
    "Requests chosen after seeing published models are outside the guarantee (Gupta et al. 2021).",
    "One deletion drops a whole slice: outputs can reveal which records share a slice.",
    "Who knows the slots kills a shard with one request per distinct first slice; keep the slot key secret.",
    "The operator is taken to be honest but fallible; a dishonest one needs re-execution on data committed beforehand.",
    "Old and new model together can reveal the deleted record (arXiv 2505.24379).",
    "The same content under another id is another record; deleting one does not delete the other.",
)
"""Stated limits in short (VERIFICATION, "Certificate"); printed with every report."""


class Verdict(enum.StrEnum):
    """What a check found. The command line exits with ``exit_code``."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    UNDECIDED = "UNDECIDED"

    @property
    def exit_code(self) -> int:
        """0 holds, 1 violated, 3 undecided (2 is bad input)."""
        return {Verdict.HOLDS: 0, Verdict.VIOLATED: 1, Verdict.UNDECIDED: 3}[self]


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Return VIOLATED if any is, else UNDECIDED if any is or there is none at all, else HOLDS."""
    seen = set(verdicts)
    if Verdict.VIOLATED in seen:
        return Verdict.VIOLATED
    if Verdict.UNDECIDED in seen or not seen:
        return Verdict.UNDECIDED
    return Verdict.HOLDS


@dataclass(frozen=True)
class Finding:
    """One statement of one check. ``node`` reads "shard 0, slices 1-2"; ``tensor`` is the first that differs."""

    check: str
    verdict: Verdict
    message: str
    node: str = ""
    tensor: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "message": self.message,
            "node": self.node,
            "tensor": self.tensor,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Report:
    """The outcome of an audit. ``claim`` is what the system promises and what was checked.

    ``notes`` name sub-checks that were not run and why, and observations that decide nothing. They never turn a
    verdict; whatever a claim needs is a finding. ``checked`` ties the report to what was audited: the SHA-256 of run.json,
    the number of ledger entries, and the digest of the last (empty for a system without a ledger). ``graph``: the orders,
    and for every node of the plan whether it serves, survives or was dropped (empty where no ledger says so).
    """

    run: str
    system: str
    claim: str
    levels: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    checked: Mapping[str, Any] = field(default_factory=dict)
    graph: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The combined verdict; a level that was asked for and found nothing makes it UNDECIDED."""
        return combine([self.of(level) for level in self.levels])

    def of(self, level: str) -> Verdict:
        """Return the combined verdict of the checks of one level ("E0" covers "E0 lineage" and "E0 scan")."""
        return combine(f.verdict for f in self.findings if f.check.split()[0] in (level, "evidence"))

    def first(self, verdict: Verdict) -> Finding | None:
        """Return the first finding with ``verdict``."""
        return next((f for f in self.findings if f.verdict is verdict), None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values, limits included."""
        return {
            "schema": 1,
            "verdict": self.verdict.value,
            "run": self.run,
            "system": self.system,
            "claim": self.claim,
            "checked": dict(self.checked),
            "graph": dict(self.graph),
            "levels": {level: self.of(level).value for level in self.levels},
            "findings": [f.to_json() for f in self.findings],
            "notes": list(self.notes),
            "limits": list(LIMITS),
            "seconds": round(self.seconds, 3),
        }

    def dumps(self) -> str:
        """Return the report as indented JSON."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False)

    def print(self, console: Console | None = None) -> None:
        """Print the report as a terminal table: problems first, then what holds, then notes and limits."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console()
        table = Table(title=f"{self.system or 'system'}: claim checked: {self.claim or 'none'}", show_lines=False)
        for column in ("check", "verdict", "node", "finding"):
            table.add_column(column, overflow="fold")
        rank = {Verdict.VIOLATED: 0, Verdict.UNDECIDED: 1, Verdict.HOLDS: 2}
        for f in sorted(self.findings, key=lambda f: rank[f.verdict]):
            said = f"{f.tensor}: {f.message}" if f.tensor else f.message
            table.add_row(f.check, Text(f.verdict.value, style=_STYLE[f.verdict]), f.node, Text(said))
        console.print(table)
        for note in self.notes:
            console.print(Text(f"note: {note}"))
        console.print(Text("limits: " + " ".join(LIMITS), style="dim"))
        console.print(Text(f"{self.verdict.value}  {', '.join(self.levels)}", style=_STYLE[self.verdict]))


_STYLE = {Verdict.HOLDS: "bold green", Verdict.VIOLATED: "bold red", Verdict.UNDECIDED: "bold yellow"}
