"""The command line: ``python -m verify RUN``. Exit code 0 holds, 1 violated, 3 undecided, 2 bad input.

Beside :mod:`verify.laboratory` this is the place that opens the suite's own system, as the system under audit.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s3t.contract import UnlearningSystem
from s3t.errors import S3TError
from verify.audit import DEFAULT, LEVELS, REFERENCES, audit, resolve_levels
from verify.case import Event
from verify.effort import Effort
from verify.evidence import Evidence, read_evidence
from verify.laboratory import RunLab
from verify.machine import on_threads
from verify.report import LIMITS, Finding, Report, Verdict

BAD_INPUT = 2
Opener = Callable[[Path], UnlearningSystem]
COMMANDS = {
    "leaks": ("verify.leaks.__main__", "plant every fault and print which check catches which"),
    "histories": ("verify.histories", "replay random and all short histories: the same final bits"),
    "soak": ("verify.soak", "verify very many clean small systems: no alarm"),
    "ports": ("verify.ports.__main__", "audit ports of two reference designs with their known mistakes"),
    "fuzz": ("verify.fuzz", "hostile input to everything that reads: no traceback, no hang, no change of state"),
    "crashes": (
        "verify.crashes.__main__",
        "cut every kind of work short, by kills and by losses of power: nothing is lost",
    ),
    "determinism": ("verify.determinism", "measure which conditions keep bits on this machine"),
}
"""Commands beside the audit: the verifier's own tests. Each module has ``main(arguments)``."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the audit."""
    others = "; ".join(f"`python -m verify {name}`: {what}" for name, (_, what) in COMMANDS.items())
    made = argparse.ArgumentParser(
        prog="python -m verify",
        description="Audit a run: does anything served depend on a deleted record? 0 ULP, own derivations.",
        epilog=f"Other commands: {others}. "
        "Exit code: 0 HOLDS, 1 VIOLATED, 3 UNDECIDED, 2 bad input. Limits: " + " ".join(LIMITS),
    )
    made.add_argument("run", type=Path, nargs="?", help="the run folder that `s3t train` wrote")
    made.add_argument(
        "--level",
        action="append",
        metavar="LEVEL",
        help="E0 lineage and scan, E1a clean room, E1b never ingested, E1c loud counterfactuals, E1 these three, "
        f"E2 distribution, E3 membership, E4 histories; repeatable (default: {', '.join(DEFAULT)})",
    )
    made.add_argument("--all", action="store_true", help="every level; E2 to E4 train many systems of this size")
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    made.add_argument("--out", type=Path, metavar="FILE", help="also write the report as JSON")
    made.add_argument("--html", type=Path, metavar="FILE", help="also write the report as one self-contained page")
    made.add_argument("--no-isolate", action="store_true", help="run the clean room in this process (for debugging)")
    made.add_argument("--all-nodes", action="store_true", help="retrain every surviving node, not just what serves now")
    made.add_argument("--sample", type=int, metavar="N", help="retrain N random surviving nodes instead")
    made.add_argument(
        "--nonce", type=int, metavar="N", help="the auditor's part in drawing the sample (default: random)"
    )
    made.add_argument("--oracle", action="store_true", help="train with the oracle: share no numeric code, take longer")
    made.add_argument("--no-source", action="store_true", help="do not read the source data again")
    made.add_argument(
        "--systems", type=int, metavar="N", help="E2: systems per side (default: what the power asks for)"
    )
    made.add_argument("--guesses", type=int, metavar="N", help="E3: guesses, fixed beforehand")
    made.add_argument("--shadows", type=int, metavar="N", help="E3: systems that calibrate the attack")
    made.add_argument("--histories", type=int, metavar="N", help="E4: equivalent histories to play")
    made.add_argument("--certificate", type=Path, metavar="FILE", help="level A: also check a certificate of this run")
    made.add_argument("--key", type=Path, metavar="FILE", help="with --certificate: the signer's public key")
    made.add_argument("--adapter", metavar="MODULE:FACTORY", help="audit a third-party system (verify.adapter)")
    made.add_argument("--delete", action="append", metavar="ID", help="with --adapter: a record to delete; repeatable")
    made.add_argument("--refresh", action="store_true", help="with --adapter: refresh after the deletions")
    return made


def main(arguments: Sequence[str] | None = None, opener: Opener | None = None) -> int:
    """Run the command line and return the exit code."""
    told = list(sys.argv[1:] if arguments is None else arguments)
    if told and told[0] in COMMANDS and not Path(told[0]).exists():
        command: Callable[[Sequence[str]], int] = importlib.import_module(COMMANDS[told[0]][0]).main
        return command(told[1:])
    given = parser().parse_args(told)
    try:
        report = _report(given, opener or _open)
        _write(report, given)
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if given.json:
        print(report.dumps())
    else:
        report.print()
    return report.verdict.exit_code


def _report(given: argparse.Namespace, opener: Opener) -> Report:
    levels = resolve_levels(LEVELS if given.all else given.level or DEFAULT)
    if given.adapter:
        return _adapted(given, levels)
    if given.run is None:
        raise S3TError("nothing to audit is named; give a RUN folder, or --adapter MODULE:FACTORY")
    return _audit(given, opener, levels)


def _audit(given: argparse.Namespace, opener: Opener, levels: Sequence[str]) -> Report:
    evidence = read_evidence(given.run)
    if evidence.problems:
        found = tuple(Finding("evidence", Verdict.UNDECIDED, problem) for problem in evidence.problems)
        return Report(str(given.run), "", "", tuple(levels), found, checked=evidence.checked)
    records, why, changed = None, "not asked for", None
    if not given.no_source and set(levels) - {"E1a", "E1b"}:
        from verify.source import SourceChangedError, source_records

        try:
            records, why = source_records(evidence)
        except SourceChangedError as error:
            changed = Finding("evidence", Verdict.UNDECIDED, f"{error}; restore it, or say --no-source")
    effort = _effort(given, levels)
    with on_threads(_threads_of(evidence if set(levels) & set(REFERENCES) else None)):
        system: Any = opener(given.run)
        try:
            report = audit(
                system,
                given.run,
                levels=levels,
                isolate=not given.no_isolate,
                lab=RunLab(evidence),
                records=records,
                scope="surviving" if given.all_nodes else "served",
                kernel="oracle" if given.oracle else "shared",
                sample=given.sample,
                nonce=secrets.randbits(32) if given.nonce is None else given.nonce,
                effort=effort,
            )
        finally:
            getattr(system, "close", lambda: None)()
    if changed:
        report = dataclasses.replace(report, findings=(changed, *report.findings))
    elif records is None and "E0" in levels:
        note = f"not run: comparison of rows with the source data ({why})"
        report = dataclasses.replace(report, notes=(*report.notes, note))
    return _attested(report, given) if given.certificate else report


def _threads_of(evidence: Evidence | None) -> int | None:
    """Return the number of threads that the whole run was trained on, for references to be trained on as many."""
    entries = evidence.entries if evidence else ()
    recorded = {entry.body["environment"].get("threads") for entry in entries if entry.kind == "train"}
    threads = recorded.pop() if len(recorded) == 1 else None
    return threads if isinstance(threads, int) and threads >= 1 else None


def _attested(report: Report, given: argparse.Namespace) -> Report:
    """Add level A: what the certificate says is true of the run as it is now."""
    from verify.attest.check import LEVEL, check
    from verify.attest.keys import default_folder, public_key

    try:
        raw = given.certificate.read_bytes()
    except OSError as error:
        raise S3TError(
            f"{given.certificate} cannot be read ({error.strerror}); give a file of `s3t certify`"
        ) from error
    told = check(raw, given.run, key=public_key(given.key) if given.key else None, keys=default_folder())
    return dataclasses.replace(
        report,
        levels=(*report.levels, LEVEL),
        findings=(*report.findings, *told.findings),
        notes=(*report.notes, *told.notes),
    )


def _adapted(given: argparse.Namespace, levels: Sequence[str]) -> Report:
    from verify import adapter

    subject = adapter.load_adapter(given.adapter)
    ids = given.delete or [record.id for record in list(subject.records)[:1]]
    unknown = sorted(set(ids) - {record.id for record in subject.records})
    if unknown:
        raise S3TError(f"--delete {unknown[0]!r} is not among the {len(subject.records)} records of the adapter")
    history = [Event("delete", tuple(ids)), *([Event("refresh")] if given.refresh else [])]
    asked = levels if given.level or given.all else adapter.LEVELS
    return adapter.audit_adapter(subject, history, levels=asked, effort=_effort(given, asked))


def _effort(given: argparse.Namespace, levels: Sequence[str]) -> Effort:
    """Return the plans of E2 to E4 with what was asked for; bad numbers are refused before anything is trained."""
    made: dict[str, Any] = {}
    if "E2" in levels:
        from verify.distribution import E2Plan

        made["distribution"] = E2Plan() if given.systems is None else E2Plan(n=given.systems)
    if "E3" in levels:
        from verify.membership import E3Plan

        told = {name: getattr(given, name) for name in ("guesses", "shadows") if getattr(given, name) is not None}
        made["membership"] = E3Plan(**told)
    if "E4" in levels:
        from verify.histories import E4Plan

        made["histories"] = E4Plan() if given.histories is None else E4Plan(given.histories)
    return Effort(**made)


def _write(report: Report, given: argparse.Namespace) -> None:
    if given.out:
        _put(given.out, report.dumps() + "\n")
    if given.html:
        from verify.page import page

        _put(given.html, page(report))


def _put(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise S3TError(f"{path} cannot be written ({error}); choose another file") from error


def _open(run: Path) -> UnlearningSystem:
    from s3t.system import System

    return System.open(run)
