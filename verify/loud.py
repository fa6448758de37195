"""E1c: what was dropped is replaced by something loud, and nothing that is served may hear it: the same bits.

For all data sets that agree outside the dropped slots, the same is served (VERIFICATION, "The claim, precisely"). So the
deleted records, and all other records of slots that are dropped now, are replaced under their own ids; the reference is
fitted on that, lives through the same history, and is compared bit for bit. Replaced by extreme rows, by the content of
other records under another label, and by a word whose embedding is NaN, which turns into NaN whatever touches it.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

from s3t.contract import Progress
from s3t.records import Record
from verify.brief import PROBES
from verify.case import Case, Variant
from verify.reference import against_reference
from verify.report import Finding, Verdict

CHECK = "E1c loud"
EXTREME = "zzyzx " * 400
"""One word, over and over: longer than any recipe's limit on tokens. In the place of an image: black and white squares."""


def check_loud(case: Case, classes: int, progress: Progress | None = None) -> list[Finding]:
    """Compare with references that met loud content in the place of what was dropped. ``classes``: how many there are.

    Predictions of the deleted records are compared as well, in their true content. UNDECIDED if the deleted
    records have no field, so that nothing loud can be put there.
    """
    if not case.deleted:
        return [Finding(CHECK, Verdict.HOLDS, "nothing was deleted: nothing to replace")]
    told = replaceable(case)
    if not any(record.inputs for record in told):
        return [Finding(CHECK, Verdict.UNDECIDED, "the deleted records hold nothing that could be made loud")]
    found: list[Finding] = []
    made: list[str] = []
    quiet = _quiet_word(case)
    tolerant = Variant(tolerant=True)
    kinds = {"extreme": tolerant, "swapped": tolerant}
    if quiet:
        kinds["nan"] = Variant(poisoned=(quiet,), tolerant=True)
    for kind, variant in kinds.items():
        records = replaced(case, kind, classes, quiet)
        asked = [*case.probes, *case.victims[:PROBES]]
        differs = against_reference(
            case.system,
            case.lab,
            records,
            case.history,
            asked,
            CHECK,
            variant=variant,
            survivors=case.survivors,
            progress=progress,
        )
        found += [_said(finding, kind) for finding in differs]
        made.append(kind)
    if not found:
        message = f"{len(told)} records of what was dropped made loud ({', '.join(made)}): the same bits"
        details = {"replaced": len(told), "kinds": made}
        found.append(Finding(CHECK, Verdict.HOLDS, message, details=details))
    return found


def replaceable(case: Case) -> tuple[Record, ...]:
    """Return the records whose content must not matter: the deleted ones and all of slots that are dropped now."""
    slot = getattr(case.lab, "slot", None)
    return tuple(
        record
        for record in case.records
        if record.id in case.deleted or (slot is not None and case.dropped and slot(record.id) in case.dropped)
    )


def replaced(case: Case, kind: str, classes: int, quiet: str | None = None) -> list[Record]:
    """Return all records, those that must not matter with other content and another label under their own ids."""
    loud = {record.id for record in replaceable(case)}
    others = [record for record in case.records if record.id not in loud] or list(case.records)
    out = []
    for position, record in enumerate(case.records):
        if record.id not in loud:
            out.append(record)
            continue
        other = others[(7 * position + 3) % len(others)]
        text = {"extreme": EXTREME, "nan": f"{quiet} {quiet}"}.get(kind)
        inputs = other.inputs if text is None else _with(record, text, None if kind == "nan" else _squares())
        label = ((other if text is None else record).label + 1) % classes if classes > 1 else other.label
        out.append(Record(record.id, dict(inputs), label))
    return out


def _with(record: Record, text: str, image: bytes | None) -> dict[str, str | bytes]:
    """Return the record's inputs with ``text`` in its texts, and ``image`` in its images unless None."""
    return {name: text if isinstance(value, str) else image or value for name, value in record.inputs.items()}


@functools.cache
def _squares() -> bytes:
    """Return an image file of black and white squares: the largest contrast that there is."""
    from PIL import Image

    out = io.BytesIO()
    bits = Image.frombytes("L", (8, 8), bytes(255 * ((i // 8 + i) % 2) for i in range(64)))
    bits.resize((64, 64), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def _quiet_word(case: Case) -> str | None:
    """Return a word that no other record and no probe holds, where the laboratory can find and poison one."""
    find = getattr(case.lab, "quiet_word", None)
    loud = {record.id for record in replaceable(case)}
    avoid: Sequence[Record] = [record for record in case.records if record.id not in loud]
    word: str | None = find([*avoid, *case.probes, *case.victims]) if find else None
    return word


def _said(finding: Finding, kind: str) -> Finding:
    message = f"{kind} content in the place of what was dropped: {finding.message}"
    return Finding(finding.check, finding.verdict, message, finding.node, finding.tensor, finding.details)
