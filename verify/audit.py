"""The audit: which checks run, on what evidence, and what becomes of those that cannot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.contract import Progress, Provenance, UnlearningSystem
from s3t.errors import S3TError, did_you_mean
from s3t.records import Record
from verify import derive
from verify.brief import Scope, probes
from verify.case import Case, Lab
from verify.effort import Effort, black_box_levels
from verify.evidence import Evidence, read_evidence
from verify.lineage import as_served, check_lineage, serving_keys
from verify.report import Finding, Report, Verdict
from verify.residue import check_residue
from verify.rows import check_rows
from verify.scan import check_scan
from verify.state import State, derive_state, graph_of

if TYPE_CHECKING:
    from verify.numerics import Kernel

LEVELS = ("E0", "E1a", "E1b", "E1c", "E2", "E3", "E4")
DEFAULT = ("E0", "E1a", "E1b")
"""What is checked unless told otherwise: the levels that decide bit for bit at the cost of about one more training."""

REFERENCES = ("E1b", "E1c", "E4")
"""Levels that compare bits with systems that are trained here."""

BLACK_BOX = ("E1c", "E2", "E3", "E4")
"""Levels that need the deleted records and further systems, and nothing of a run folder."""

LEFT_OUT = (
    "damaged nodes are left out of what serves, so no other system can have its bits; refresh the run and audit again"
)


def audit(
    system: UnlearningSystem,
    run: Path | str,
    *,
    levels: Sequence[str] = DEFAULT,
    isolate: bool = True,
    lab: Lab | None = None,
    victims: Sequence[Record] | None = None,
    records: Sequence[Record] | None = None,
    scope: Scope = "served",
    kernel: Kernel = "shared",
    sample: int | None = None,
    nonce: int = 0,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> Report:
    """Audit a live ``system`` against its run folder. VERIFICATION.md says what each level proves and what not.

    ``lab``: makes further systems of the same configuration (E1b and beyond). ``records``: everything ever handed in for
    training, if known; ``victims``: the deleted records, by default those of ``records`` whose tag is tombstoned.
    ``scope``: whether E1a retrains the nodes that serve now or every surviving one; or ``sample`` nodes, drawn with the
    auditor's ``nonce``. ``kernel``: whose numerics it trains with. ``effort``: what E2 to E4 may spend.
    Raises RunError if ``run`` is no run folder, S3TError for an unknown level; damage inside a run ends UNDECIDED.
    """
    began = time.monotonic()
    wanted = resolve_levels(levels)
    evidence = read_evidence(run)
    problems, state = list(evidence.problems), None

    def report(found: Sequence[Finding], provenance: Provenance | None, notes: Sequence[str] = ()) -> Report:
        name, claim = (provenance.system, provenance.claim) if provenance else (type(system).__name__, "")
        seconds = time.monotonic() - began
        graph: dict[str, Any] = graph_of(state) if state else {}
        return Report(str(run), name, claim, wanted, tuple(found), tuple(notes), seconds, evidence.checked, graph)

    try:
        provenance = system.provenance()
    except S3TError as error:
        message = f"the system cannot say what it serves: {error}"
        return report([Finding("evidence", Verdict.UNDECIDED, message)], None)
    if not problems:
        try:
            state = derive_state(evidence)
        except (KeyError, TypeError, ValueError) as error:
            problems = [f"the ledger's entries cannot be interpreted ({type(error).__name__}: {error})"]
    if state is None:
        return report([Finding("evidence", Verdict.UNDECIDED, problem) for problem in problems], provenance)
    state, found = as_served(provenance, evidence, state)
    notes, incomplete = list[str](), LEFT_OUT if found else ""
    gone = _deleted(evidence, state, victims, records)
    if "E0" in wanted:
        found += [*check_lineage(provenance, evidence, state), *check_scan(evidence, state, serving_keys(provenance))]
        found += check_rows(evidence, state, records)
        found += _lost(evidence, state, victims or ())
        found += check_residue(evidence, gone, known=records is not None) if gone else []
        notes += _unsearched(len(gone), len(state.tombstones))
    if "E1a" in wanted:
        from verify.replay import check_cleanroom

        how: Any = {"isolate": isolate, "scope": scope, "kernel": kernel, "sample": sample, "sample_seed": nonce}
        found += check_cleanroom(system, provenance, evidence, state, **how)
    foreign = _elsewhere(state) if set(wanted) & set(REFERENCES) else ""
    barred = (*REFERENCES, *BLACK_BOX) if incomplete else REFERENCES if foreign else ()
    able = [level for level in wanted if level not in barred]
    found += [Finding(level, Verdict.UNDECIDED, incomplete or foreign) for level in wanted if level in barred]
    if "E1b" in able:
        from verify.counterfactual import check_counterfactual

        found += check_counterfactual(system, evidence, state, lab, progress, gone, records)
    further = [level for level in able if level in BLACK_BOX]
    if further:
        found += _black_box(system, evidence, state, lab, records, further, effort or Effort(), progress)
    return report(found, provenance, notes)


def _elsewhere(state: State) -> str:
    from verify.reference import elsewhere

    return elsewhere(state)


def _black_box(
    system: UnlearningSystem,
    evidence: Evidence,
    state: State,
    lab: Lab | None,
    records: Sequence[Record] | None,
    levels: Sequence[str],
    effort: Effort,
    progress: Progress | None,
) -> list[Finding]:
    from verify.laboratory import run_case

    if lab is None:
        case: Case | str = "no way to make a second system was given"
    else:
        asked = probes(evidence, [row.record for row in evidence.train])
        case = run_case(system, evidence, state, lab, records, asked)
    if isinstance(case, str):
        return [Finding(level, Verdict.UNDECIDED, case) for level in levels]
    return black_box_levels(case, levels, len(evidence.run["data"]["classes"]), effort, progress)


def resolve_levels(levels: Sequence[str]) -> tuple[str, ...]:
    """Return the known levels that ``levels`` name, in order; "E1" means E1a, E1b and E1c."""
    for level in levels:
        if level not in (*LEVELS, "E1"):
            known = (*LEVELS, "E1")
            raise S3TError(f"level {level!r} is unknown{did_you_mean(level, known)}; choose from {', '.join(known)}")
    return tuple(level for level in LEVELS if any(level.startswith(given) for given in levels))


def _deleted(
    evidence: Evidence, state: State, victims: Sequence[Record] | None, records: Sequence[Record] | None
) -> list[Record]:
    """Return the deleted records as far as they are known, in order of tags."""
    known = {derive.tag(evidence.key, record.id): record for record in (*(records or ()), *(victims or ()))}
    return [known[tag] for tag in sorted(state.tombstones) if tag in known]


def _lost(evidence: Evidence, state: State, victims: Sequence[Record]) -> list[Finding]:
    lost = sorted(record.id for record in victims if derive.tag(evidence.key, record.id) not in state.tombstones)
    return [
        Finding("E0 rows", Verdict.VIOLATED, f"record {name!r} was deleted, but the ledger has no tombstone of it")
        for name in lost
    ]


def _unsearched(known: int, deleted: int) -> list[str]:
    """Say how much of the search for residue was not run. The structural scan ran, so this turns no verdict."""
    if known == deleted:
        return []
    return [
        f"not run: search of all bytes for ids and inputs of {deleted - known} of {deleted} deleted records "
        f"(the run no longer holds them; give the source records). The structural scan ran."
    ]
