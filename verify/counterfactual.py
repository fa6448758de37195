"""E1b: the whole pipeline, run without the deleted records ever present, under the same slot mask: the same bits.

The reference is fitted by the real system through the contract, from the retained records alone, with the same slot key
and seed. Where dropped slots have not been refreshed, the reference drops them too, by the optional capability
``retire(slots)``; a larger budget by the optional capability ``extend(budget)``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.contract import Progress, Provenance, UnlearningSystem
from s3t.errors import S3TError
from s3t.records import Record
from verify.brief import PROBES, probes
from verify.compare import compare_tensors
from verify.evidence import Evidence
from verify.replay import differing, predicted, serving
from verify.report import Finding, Verdict
from verify.state import Node, State, derive_state, node_name

if TYPE_CHECKING:
    from torch import Tensor

CHECK = "E1b never ingested"
Make = Callable[[Path], UnlearningSystem]
"""Describes a system of the same configuration, slot key and seed in a folder that does not exist yet."""

Event = tuple[str, Any]
"""("retire", slots), ("extend", budget) or ("refresh", None)."""


def check_counterfactual(
    system: UnlearningSystem,
    provenance: Provenance,
    evidence: Evidence,
    state: State,
    make: Make | None,
    progress: Progress | None = None,
    victims: Sequence[Record] = (),
    records: Sequence[Record] | None = None,
) -> list[Finding]:
    """Fit the reference and compare selection, weights and predictions bit for bit.

    ``victims``: deleted records, if known; once the reference is trained they are asked for too (a remembered answer).
    ``records``: everything ever handed in, if known; the reference is then fitted on these, not on what the run kept.
    """
    if not state.hits and not state.tombstones:
        return [Finding(CHECK, Verdict.HOLDS, "nothing was deleted: nothing to leave out")]
    if make is None:
        return [Finding(CHECK, Verdict.UNDECIDED, "no way to make a second system was given")]
    original = {record.id: record for record in records or ()}
    kept = sorted((row.record for rows in state.by_slot.values() for row in rows), key=lambda record: record.id)
    retained = [original.get(record.id, record) for record in kept]
    trace = events(evidence, state)
    with tempfile.TemporaryDirectory(prefix="s3t-never-ingested-") as name:
        folder = Path(name) / "run"
        reference: Any = make(folder)
        try:
            lacking = _bring(reference, retained, trace, progress)
            if lacking:
                return [Finding(CHECK, Verdict.UNDECIDED, lacking)]
            if not _same_survivors(folder, state):
                message = "the run's history (an unfinished refresh) cannot be repeated: refresh it and audit again"
                return [Finding(CHECK, Verdict.UNDECIDED, message)]
            asked = [*probes(evidence, retained), *victims[:PROBES]]
            found = list(_differences(system, provenance, reference, asked))
        finally:
            getattr(reference, "close", lambda: None)()
    if not found:
        mask = sum(len(slots) for kind, slots in trace if kind == "retire")
        message = f"fitted on {len(retained)} records that never met the {len(state.tombstones)} deleted: the same bits"
        found.append(Finding(CHECK, Verdict.HOLDS, message, details={"retained": len(retained), "masked_slots": mask}))
    return found


def events(evidence: Evidence, state: State) -> list[Event]:
    """Return what must happen to the reference after its fit.

    A hit slot without any surviving node is dropped; one whose nodes all survive was refreshed, and needs nothing. If a
    slot is neither (orders were added after a deletion), the ledger's history is repeated, without the deletions.
    """
    counts: dict[tuple[int, int], list[bool]] = {slot: [] for slot in state.hits}
    for shard, prefix in state.nodes():
        for s in prefix:
            if (shard, s) in counts:
                counts[shard, s].append((shard, prefix) in state.survivors)
    if any(len(set(alive)) > 1 for alive in counts.values()):
        return _history(evidence)
    mask = tuple(sorted(slot for slot, alive in counts.items() if not any(alive)))
    extended = len(state.orders) != len(state.plan.orders)
    extension: list[Event] = [("extend", len(state.orders))] if extended else []
    return [*extension, ("retire", mask)] if mask else extension


def _history(evidence: Evidence) -> list[Event]:
    trace: list[Event] = []
    trained: set[Node] = set()
    for entry in evidence.entries:
        if entry.kind == "request":
            trace.append(("retire", tuple((int(a), int(b)) for a, b in entry.body["slots"])))
        elif entry.kind == "extend":
            trace.append(("extend", int(entry.body["budget"])))
        elif entry.kind == "train":
            node = (int(entry.body["shard"]), tuple(entry.body["prefix"]))
            if node in trained and trace[-1:] != [("refresh", None)]:
                trace.append(("refresh", None))
            trained.add(node)
    return trace


def _bring(reference: Any, retained: Sequence[Record], trace: Sequence[Event], progress: Progress | None) -> str:
    """Fit the reference and bring it to the same state; return why that cannot be done, or nothing."""
    lacking = [kind for kind, _ in trace if not hasattr(reference, kind)]
    if lacking:
        return f"the system cannot {lacking[0]} (no such method), so no reference can be brought to the same state"
    try:
        reference.fit(retained, progress)
        for kind, argument in trace:
            getattr(reference, kind)(*([] if argument is None else [argument]))
    except S3TError as error:
        return f"the reference cannot be fitted: {error}"
    return ""


def _same_survivors(folder: Path, state: State) -> bool:
    from verify.evidence import read_evidence

    evidence = read_evidence(folder)
    return not evidence.problems and set(derive_state(evidence).survivors) == set(state.survivors)


def _differences(
    system: UnlearningSystem, provenance: Provenance, reference: UnlearningSystem, asked: Sequence[Record]
) -> Iterator[Finding]:
    other = reference.provenance()
    ours, theirs = _selection(provenance), _selection(other)
    for shard in sorted({*ours, *theirs}):
        if ours.get(shard) != theirs.get(shard):
            message = f"serves {_chain(ours.get(shard))}; never having met the deleted, {_chain(theirs.get(shard))}"
            yield Finding(CHECK, Verdict.VIOLATED, message, f"shard {shard}")
    if tuple(sorted(provenance.offline)) != tuple(sorted(other.offline)):
        message = f"offline are {list(provenance.offline)}, without the deleted records {list(other.offline)}"
        yield Finding(CHECK, Verdict.VIOLATED, message)
    live, expected = _weights(system, provenance), _weights(reference, other)
    for node in sorted({*live, *expected}):
        yield from differing(compare_tensors(expected.get(node, {}), live.get(node, {})), node_name(*node), CHECK)
    if asked:
        both = compare_tensors(predicted(reference, asked), predicted(system, asked))
        yield from differing(both, "predictions", CHECK)


Selected = tuple[int, tuple[int, ...], float]


def _selection(provenance: Provenance) -> dict[int, Selected]:
    return {c.shard: (c.order, tuple(c.nodes[-1].prefix) if c.nodes else (), c.weight) for c in provenance.chains}


def _chain(selected: Selected | None) -> str:
    if selected is None:
        return "nothing"
    order, prefix, weight = selected
    return f"order {order}, slices {list(prefix)}, weight {weight}"


def _weights(system: UnlearningSystem, provenance: Provenance) -> dict[Node, Mapping[str, Tensor]]:
    """Return tensors by node; a name that no served node has is kept apart, as shard -1."""
    nodes = {n.name: (chain.shard, tuple(n.prefix)) for chain in provenance.chains for n in chain.nodes}
    live = serving(system)
    odd = {f"{name}: {tensor}": value for name in live if name not in nodes for tensor, value in live[name].items()}
    named: dict[Node, Mapping[str, Tensor]] = {nodes[name]: live[name] for name in live if name in nodes}
    return named | ({(-1, ()): odd} if odd else {})
