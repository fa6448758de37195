"""The command line: ``python -m verify RUN``. Exit code 0 holds, 1 violated, 3 undecided, 2 bad input.

This is the one place of the verifier that opens the suite's own system, and only as the system under audit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.contract import UnlearningSystem
from s3t.errors import S3TError
from verify.audit import LEVELS, audit, resolve_levels
from verify.evidence import Evidence, read_evidence
from verify.report import LIMITS, Finding, Report, Verdict

if TYPE_CHECKING:
    from verify.counterfactual import Make

BAD_INPUT = 2
Opener = Callable[[Path], UnlearningSystem]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m verify",
        description="Audit a run: does anything served depend on a deleted record? 0 ULP, own derivations.",
        epilog="Exit code: 0 HOLDS, 1 VIOLATED, 3 UNDECIDED, 2 bad input. Limits: " + " ".join(LIMITS),
    )
    made.add_argument("run", type=Path, help="the run folder that `s3t fit` wrote")
    made.add_argument(
        "--level",
        action="append",
        metavar="LEVEL",
        help="E0 lineage and scan, E1a clean room, E1b never ingested, E1 both; repeatable (default: all)",
    )
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    made.add_argument("--no-isolate", action="store_true", help="run the clean room in this process (for debugging)")
    made.add_argument("--all-nodes", action="store_true", help="retrain every surviving node, not just what serves now")
    made.add_argument("--no-source", action="store_true", help="do not read the source data again")
    return made


def main(arguments: Sequence[str] | None = None, opener: Opener | None = None) -> int:
    """Run the command line and return the exit code."""
    given = parser().parse_args(arguments)
    try:
        report = _audit(given, opener or _open)
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if given.json:
        print(report.dumps())
    else:
        report.print()
    return report.verdict.exit_code


def _audit(given: argparse.Namespace, opener: Opener) -> Report:
    levels = resolve_levels(given.level or LEVELS)
    evidence = read_evidence(given.run)
    if evidence.problems:
        found = tuple(Finding("evidence", Verdict.UNDECIDED, problem) for problem in evidence.problems)
        return Report(str(given.run), "", "", levels, found)
    records, why = None, "not asked for"
    if not given.no_source and "E0" in levels:
        from verify.source import source_records

        records, why = source_records(evidence)
    system: Any = opener(given.run)
    try:
        report = audit(
            system,
            given.run,
            levels=levels,
            isolate=not given.no_isolate,
            make=_maker(evidence),
            records=records,
            scope="surviving" if given.all_nodes else "served",
        )
    finally:
        getattr(system, "close", lambda: None)()
    if records is None and "E0" in levels:
        note = f"not run: comparison of rows with the source data ({why})"
        return Report(
            report.run, report.system, report.claim, levels, report.findings, (*report.notes, note), report.seconds
        )
    return report


def _open(run: Path) -> UnlearningSystem:
    from s3t.system import System

    return System.open(run)


def _maker(evidence: Evidence) -> Make:
    """Return a factory of systems with the configuration, slot key and evaluation records of the run."""

    def make(folder: Path) -> UnlearningSystem:
        from s3t.runs import RunConfig
        from s3t.system import System

        path = evidence.folder / "run.json"
        config = RunConfig.from_bytes(path.read_bytes(), str(path))
        kept = (evidence.split("validation"), evidence.split("test"))
        return System(folder, config, key=evidence.key, evaluation=kept, allow_empty=True)

    return make
