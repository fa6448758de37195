"""E1b: the whole pipeline, run without the deleted records ever present, under the same slot mask: the same bits.

The reference is fitted by the real system through the contract, from the retained records alone, with the same slot key
and seed. Where dropped slots have not been refreshed, the reference drops them too, by the optional capability
``retire(slots)``; a larger budget by the optional capability ``extend(budget)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from s3t.contract import Progress, UnlearningSystem
from s3t.records import Record
from verify.brief import PROBES, probes
from verify.case import Case, Event, Lab
from verify.evidence import Evidence
from verify.reference import against_reference
from verify.report import Finding, Verdict
from verify.state import State, history

CHECK = "E1b never ingested"


def check_counterfactual(
    system: UnlearningSystem,
    evidence: Evidence,
    state: State,
    lab: Lab | None,
    progress: Progress | None = None,
    victims: Sequence[Record] = (),
    records: Sequence[Record] | None = None,
) -> list[Finding]:
    """Fit the reference of a run and compare selection, weights and predictions bit for bit.

    ``victims``: deleted records, if known; once the reference is trained they are asked for too (a remembered answer).
    ``records``: everything ever handed in, if known; the reference is then fitted on these, not on what the run kept.
    """
    if not state.hits and not state.tombstones:
        return [Finding(CHECK, Verdict.HOLDS, "nothing was deleted: nothing to leave out")]
    if lab is None:
        return [Finding(CHECK, Verdict.UNDECIDED, "no way to make a second system was given")]
    original = {record.id: record for record in records or ()}
    kept = sorted((row.record for rows in state.by_slot.values() for row in rows), key=lambda record: record.id)
    retained = [original.get(record.id, record) for record in kept]
    history = mask(evidence, state)
    asked = [*probes(evidence, retained), *victims[:PROBES]]
    found = against_reference(
        system, lab, retained, history, asked, CHECK, survivors=state.survivors.keys(), progress=progress
    )
    return found or [_holds(retained, len(state.tombstones), history)]


def check_case(case: Case, progress: Progress | None = None) -> list[Finding]:
    """The same for a system without a run folder, from its case alone."""
    if not case.history:
        return [Finding(CHECK, Verdict.HOLDS, "nothing was deleted: nothing to leave out")]
    history = case.never_ingested()
    asked = [*case.probes, *case.victims[:PROBES]]
    found = against_reference(case.system, case.lab, case.retained, history, asked, CHECK, progress=progress)
    return found or [_holds(case.retained, len(case.deleted), history)]


def _holds(retained: Sequence[Record], deleted: int, history: Sequence[Event]) -> Finding:
    masked = sum(len(event.slots) for event in history)
    message = f"fitted on {len(retained)} records that never met the {deleted} deleted: the same bits"
    return Finding(CHECK, Verdict.HOLDS, message, details={"retained": len(retained), "masked_slots": masked})


def mask(evidence: Evidence, state: State) -> tuple[Event, ...]:
    """Return what must happen to the reference after its fit.

    A hit slot without any surviving node is dropped; one whose nodes all survive was refreshed, and needs nothing. If a
    slot is neither (orders were added after a deletion), the ledger's history is repeated, without the deletions. With an
    analytic head alone there are no nodes, and nothing is dropped with a slot.
    """
    if not state.plan.stages:
        return ()
    counts: dict[tuple[int, int], list[bool]] = {slot: [] for slot in state.hits}
    for shard, prefix in state.nodes():
        for s in prefix:
            if (shard, s) in counts:
                counts[shard, s].append((shard, prefix) in state.survivors)
    if any(len(set(alive)) > 1 for alive in counts.values()):
        return history(evidence.entries)
    dropped = tuple(sorted(slot for slot, alive in counts.items() if not any(alive)))
    extended = len(state.orders) != len(state.plan.orders)
    extension = (Event("extend", budget=len(state.orders)),) if extended else ()
    return (*extension, Event("retire", slots=dropped)) if dropped else extension
