"""E0, third part: the run holds the records that were committed to, minus the deleted ones, in the places that ids imply.

A deleted row's place in records.bin holds zeros and nothing else; a byte there, or one that is no row's, is a violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from s3t.records import Record
from verify import derive
from verify.evidence import Evidence, Row
from verify.report import Finding, Verdict
from verify.state import State

CHECK = "E0 rows"
SPLITS = ("train", "validation", "test")


def check_rows(evidence: Evidence, state: State, records: Sequence[Record] | None = None) -> list[Finding]:
    """Return rows that are misplaced, uncommitted, deleted but present, or miscounted; one HOLDS if there is none.

    ``records``: everything that was ever handed in for training, if known. Then contents and ids are compared too, and
    a row that the operator never handed in (a copy under another id) is found.
    """
    found = [finding for row in evidence.rows for finding in _row(row, evidence, state)]
    found += [*_committed(evidence, state), *_freed(evidence, state)]
    if records is not None:
        found += _against_source(evidence, state, records)
    if not found:
        message = f"{len(evidence.train)} train rows match commitments, slots and counts; no deleted row is present"
        found.append(Finding(CHECK, Verdict.HOLDS, message, details={"rows": len(evidence.rows)}))
    return found


def _violated(message: str) -> Finding:
    return Finding(CHECK, Verdict.VIOLATED, message)


def _row(row: Row, evidence: Evidence, state: State) -> list[Finding]:
    name = row.record.id
    tag = derive.tag(evidence.key, name)
    found = []
    if tag in state.tombstones:
        found.append(_violated(f"the deleted record {name!r} is still in records.bin"))
    if row.tag != tag:
        found.append(_violated(f"record {name!r} is stored under another record's tag"))
    if row.split not in SPLITS:
        found.append(_violated(f"record {name!r} is of unknown split {row.split!r}"))
    if row.split == "train":
        slot = derive.slot(evidence.key, name, state.plan.shards, state.plan.slices)
        if (row.shard, row.slice) != slot:
            found.append(_violated(f"record {name!r} is in slot ({row.shard}, {row.slice}); its id gives {slot}"))
        if row.commitment is None:
            found.append(Finding(CHECK, Verdict.UNDECIDED, f"record {name!r} has no commitment"))
    elif (row.shard, row.slice) != (None, None):
        found.append(_violated(f"record {name!r} of split {row.split} has a slot"))
    if row.commitment is not None and derive.commitment(row.salt, row.content) != row.commitment:
        found.append(_violated(f"record {name!r} does not match its commitment: its content was changed"))
    return found


def _committed(evidence: Evidence, state: State) -> list[Finding]:
    """What was committed to before training is the retained rows and one leaf per tombstone, under this slot key."""
    create = evidence.entries[0].body
    found = []
    if derive.key_commitment(evidence.key) != create["key"]:
        found.append(_violated("secret.key is not the slot key that was committed to before training"))
    if derive.merkle_root(evidence.leaves) != create["root"]:
        found.append(_violated("the leaves in commitments do not give the root in the ledger's first entry"))
    retained = [row for row in evidence.train if derive.tag(evidence.key, row.record.id) not in state.tombstones]
    left = Counter(leaf.hex() for leaf in evidence.leaves)
    for row in retained:
        left[str(row.commitment)] -= 1
    unknown = -sum(count for count in left.values() if count < 0)
    if unknown:
        found.append(_violated(f"{unknown} retained rows are not among the commitments taken before training"))
    unmatched = sum(count for count in left.values() if count > 0)
    if unmatched != len(state.tombstones):
        found.append(
            _violated(
                f"{create['rows']} rows were committed to, but {len(retained)} are retained and "
                f"{len(state.tombstones)} tombstoned: {unmatched} leaves belong to no retained row"
            )
        )
    return found


def _freed(evidence: Evidence, state: State) -> list[Finding]:
    """Bytes at the place of a deleted row, or at no row's place, mean that a row was unlinked, not erased."""
    found = []
    left = sum(span.tag in state.tombstones and not span.zero for span in evidence.spans)
    if left:
        found.append(_violated(f"bytes of {left} deleted rows remain in records.bin"))
    if evidence.loose:
        (start, stop), count = evidence.loose[0], sum(stop - start for start, stop in evidence.loose)
        found.append(_violated(f"{count} bytes of records.bin are no row's, first at {start} to {stop}"))
    return found


def _against_source(evidence: Evidence, state: State, records: Sequence[Record]) -> list[Finding]:
    source = {record.id: record for record in records}
    deleted = {name for name in source if derive.tag(evidence.key, name) in state.tombstones}
    stored = {row.record.id: row for row in evidence.train}
    found = []
    unknown = sorted(set(stored) - set(source))
    if unknown:
        found.append(_violated(f"{len(unknown)} train rows were never handed in, first {unknown[0]!r}"))
    lost = sorted(set(source) - deleted - set(stored))
    if lost:
        found.append(_violated(f"{len(lost)} records are neither retained nor deleted, first {lost[0]!r}"))
    changed = sorted(name for name in set(stored) & set(source) if stored[name].content != source[name].content())
    if changed:
        found.append(_violated(f"{len(changed)} rows differ from what was handed in, first {changed[0]!r}"))
    slots = {derive.slot(evidence.key, name, state.plan.shards, state.plan.slices) for name in deleted}
    spared = sorted(slots - set(state.hits))
    if spared:
        found.append(_violated(f"a deleted record's slot {spared[0]} was not dropped by any request"))
    return found


def duplicates(evidence: Evidence, victims: Sequence[Record]) -> list[tuple[str, str]]:
    """Return (deleted id, retained id) of train rows with the same inputs and label under another id."""
    by_content = {(_fields(victim), victim.label): victim.id for victim in victims}
    pairs = []
    for row in evidence.train:
        twin = by_content.get((_fields(row.record), row.record.label))
        if twin is not None and twin != row.record.id:
            pairs.append((twin, row.record.id))
    return pairs


def _fields(record: Record) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(sorted(record.inputs.items(), key=lambda item: item[0]))
