"""Auditing a third-party system: an adapter says how to make one, and everything else goes through the contract.

An adapter is a :class:`verify.case.Lab` that also names its records and probes. Where it can, it offers more:

- ``slot(id)``: which slot a record lies in, so that E1c may replace a whole dropped slot;
- ``quiet_word(avoid)`` and poisoned variants of :meth:`Lab.make`, for the NaN counterfactual of E1c;
- the capabilities ``retire(slots)`` and ``extend(budget)`` of its systems, without which a system that keeps serving
  what is left cannot be compared before its refresh.

E1a (the clean room) needs a declared derivation of every tensor, which a foreign system does not have: it is UNDECIDED. So
are reads that a system did not observe. ``python -m verify --adapter module:name`` audits one from the command line.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from s3t.contract import Progress, Provenance, UnlearningSystem
from s3t.errors import S3TError
from s3t.records import Record
from verify.case import SAME, CannotPlayError, Case, Event, Variant, apply
from verify.effort import Effort, black_box_levels
from verify.report import Finding, Report, Verdict

LEVELS = ("E0", "E1b", "E1c")
"""What an audit of a third-party system checks unless told otherwise."""


@runtime_checkable
class Adapter(Protocol):
    """What a third-party system must offer to be audited. ``classes``: the number of columns of its predictions."""

    records: Sequence[Record]
    probes: Sequence[Record]
    classes: int

    def make(self, folder: Path, variant: Variant = SAME) -> UnlearningSystem:
        """Describe a system that keeps all its files in ``folder``, which does not exist yet; nothing is trained."""

    def open(self, folder: Path) -> UnlearningSystem:
        """Open what a system left in ``folder`` or in a copy of it, as after a restart."""


def load_adapter(name: str) -> Adapter:
    """Return the adapter that ``module:factory`` makes. S3TError if there is none, or it lacks something."""
    module, colon, factory = name.partition(":")
    if not colon:
        raise S3TError(f"--adapter {name!r} is not MODULE:FACTORY; write for example mypackage.audit:adapter")
    try:
        made = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise S3TError(f"--adapter {name!r} cannot be loaded: {error}") from error
    lacking = [part for part in ("records", "probes", "classes", "make", "open") if not hasattr(made, part)]
    if lacking:
        raise S3TError(f"--adapter {name!r} has no {lacking[0]!r}; verify.adapter.Adapter says what one must offer")
    adapter: Adapter = made
    return adapter


def audit_adapter(
    adapter: Adapter,
    history: Sequence[Event],
    *,
    levels: Sequence[str] = LEVELS,
    effort: Effort | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Fit a system of ``adapter``, let it live through ``history``, and audit it at ``levels``.

    The slots of each deletion are those of its receipt. ``folder``: where the system lives (new; temporary by default).
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s3t-adapter-") as name:
        home = folder or Path(name) / "system"
        system: Any = adapter.make(home)
        try:
            lived = _live(system, adapter, history, progress)
            case = Case(
                system, adapter, tuple(sorted(adapter.records, key=lambda r: r.id)), lived, tuple(adapter.probes)
            )
            found = _levels(case, home, levels, adapter.classes, effort or Effort(), progress)
            provenance = system.provenance()
        except (CannotPlayError, S3TError) as error:
            found = [
                Finding("evidence", Verdict.UNDECIDED, f"the system cannot be brought through the history: {error}")
            ]
            provenance = Provenance(type(system).__name__, "non-interference", (), ())
        finally:
            getattr(system, "close", lambda: None)()
    seconds = time.monotonic() - began
    return Report("", provenance.system, provenance.claim, tuple(levels), tuple(found), (), seconds)


def _live(system: Any, adapter: Adapter, history: Sequence[Event], progress: Progress | None) -> tuple[Event, ...]:
    """Fit and play; return the history with the slots that the receipts name."""
    system.fit(list(adapter.records), progress)
    present = {record.id for record in adapter.records}
    system.predict([record.inputs for record in adapter.probes])
    lived = []
    for event in history:
        if event.kind == "delete":
            receipt = system.delete(list(event.ids))
            lived.append(Event("delete", event.ids, tuple(receipt.slots)))
        else:
            apply(system, event, present, progress)
            lived.append(event)
    return tuple(lived)


def _levels(
    case: Case, folder: Path, levels: Sequence[str], classes: int, effort: Effort, progress: Progress | None
) -> list[Finding]:
    found: list[Finding] = []
    if "E0" in levels:
        found += [*_lineage(case), *_residue(case, folder)]
    if "E1a" in levels:
        message = "a system outside this suite declares no derivation of its tensors that a clean room could follow"
        found.append(Finding("E1a clean room", Verdict.UNDECIDED, message))
    if "E1b" in levels:
        from verify.counterfactual import check_case

        found += check_case(case, progress)
    return found + black_box_levels(case, levels, classes, effort, progress)


def _lineage(case: Case) -> list[Finding]:
    """Check the reads that the system itself observed; where it did not observe, nothing is known."""
    check, provenance = "E0 lineage", case.system.provenance()
    found = []
    for chain in provenance.chains:
        for node in chain.nodes:
            if node.reads is None:
                message = "the system did not observe which records it read"
                found.append(Finding(check, Verdict.UNDECIDED, message, node.name))
            elif node.reads & case.deleted:
                message = f"{len(node.reads & case.deleted)} deleted records are in its read set"
                found.append(Finding(check, Verdict.VIOLATED, message, node.name))
    if provenance.stray is None:
        found.append(Finding(check, Verdict.UNDECIDED, "reads outside any node were not observed"))
    elif provenance.stray & case.deleted:
        message = f"{len(provenance.stray & case.deleted)} deleted records were read outside any node"
        found.append(Finding(check, Verdict.VIOLATED, message))
    if not found:
        message = f"{len(provenance.chains)} chains: no deleted record among the observed reads"
        found.append(Finding(check, Verdict.HOLDS, message))
    return found


def _residue(case: Case, folder: Path) -> list[Finding]:
    from verify.residue import search

    if not case.victims:
        return []
    if not folder.is_dir():
        return [Finding("E0 residue", Verdict.UNDECIDED, "the system keeps no files in the folder that it was given")]
    return search(folder, case.victims, case.retained)
