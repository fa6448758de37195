"""Deletion requests on a run: resolved, made durable, rows erased; and their completion after a crash. No torch.

The ledger comes first: once a request is in it, the deletion holds, whatever happens next (SPEC section 3). Rows are
erased for all requests after the last one noted as done, whoever made them, so a request that a crash or another
process left in between is completed by the next one. Nothing here takes longer for more records or more requests.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from s3t.contract import Slot
from s3t.errors import BusyError, RecordError, RunError
from s3t.facts import Facts
from s3t.partition import slot, tag
from s3t.records import SEPARATOR, Record
from s3t.runs import Run


@dataclass(frozen=True)
class Request:
    """A request as the ledger has it. ``fresh``: ids deleted by it; ``already``: ids deleted before."""

    name: str
    fresh: tuple[str, ...]
    already: tuple[str, ...]
    slots: tuple[Slot, ...]

    @property
    def number(self) -> int:
        """How many requests there are with this one; 0 for one that added no fact."""
        return int(self.name[1:]) if self.name else 0


def delete(run: Run, ids: Sequence[str]) -> Request:
    """Record the deletion of ``ids`` as one atomic fact; their rows are still to be erased (:func:`erase`).

    RecordError for an unknown id or one of a never-deletable split; nothing has changed then. If every id was deleted
    before, no fact is added and the name is empty.
    """
    while True:
        fresh, already, slots = _resolve(run, ids)
        if not fresh:
            return Request("", (), tuple(already), ())
        tags = [tag(run.key, record_id) for record_id in fresh]
        body = {"tags": sorted(tags), "slots": [list(place) for place in slots]}
        try:
            seq = run.ledger.append_request(body, tags, slots)
        except sqlite3.IntegrityError:  # another process deleted one of them meanwhile: look again
            continue
        return Request(run.ledger.entry(seq).body["request"], tuple(fresh), tuple(already), tuple(slots))


def retire(run: Run, slots: Iterable[Slot]) -> Request:
    """Record that whole slots are dropped without deleting a record. RecordError for a slot that does not exist."""
    chosen, layout = sorted(set(slots)), run.config.plan.layout
    for shard, piece in chosen:
        if not (0 <= shard < layout.shards and 0 <= piece < layout.slices):
            raise RecordError(
                f"slot {(shard, piece)} does not exist; shards run 0..{layout.shards - 1}, slices 0..{layout.slices - 1}"
            )
    seq = run.ledger.append_request({"tags": [], "slots": [list(place) for place in chosen]}, (), chosen)
    return Request(run.ledger.entry(seq).body["request"], (), (), tuple(chosen))


def ends_retired(run: Run) -> bool:
    """Say whether the last request on record retired slots instead of deleting records."""
    last = run.ledger.last("request")
    return last is not None and not last.body["tags"]


def recover(run: Run, facts: Facts) -> None:
    """Complete acknowledged deletions that a crash cut short: rows, then nodes; and erase what a build left half done."""
    erase(run, set())
    facts.update()
    run.nodes.erase(facts.dropped_keys() & run.nodes.keys())
    erase_leftovers(run, facts)


def erase(run: Run, dropped: set[str]) -> None:
    """Erase the rows of every acknowledged request that is not noted as done, then the nodes ``dropped``, by key.

    RunError if the ledger was set back: it ends before an entry that rows were erased for.
    """
    _erase_rows(run)
    run.nodes.erase(dropped)
    if run.has_scratch():
        with suppress(BusyError), run.building():
            run.erase_scratch()


def erase_leftovers(run: Run, facts: Facts) -> None:
    """Erase nodes that a build left when it was cut short, before or after their renaming but without an entry in the ledger.

    Nobody knows what they were trained on, so they must not outlive a deletion. A build under way erases its own.
    """
    if run.nodes.keys() - facts.live_keys():
        with suppress(BusyError), run.building():
            sweep(run, facts)


def sweep(run: Run, facts: Facts) -> None:
    """Erase every folder below the store that no surviving node owns. Only under the build lock."""
    facts.update()
    run.nodes.erase(run.nodes.keys() - facts.live_keys())
    run.erase_scratch()


def _erase_rows(run: Run) -> None:
    if run.records.erased_through() == run.ledger.head():
        return
    with run.records.erasing():
        done, head = run.records.erased_through(), run.ledger.head()
        if done > head:
            raise RunError(
                f"the ledger ends at entry {head}, but rows were erased for requests up to entry {done}: an older ledger was "
                "put in its place; restore the newer one, nothing may be served"
            )
        pending = False
        for entry in run.ledger.entries("request", done, head):
            if run.features:
                for marker in entry.body["tags"]:
                    run.features.erase(run.records.number(marker))
            run.records.erase(entry.body["tags"])
            pending = True
        if pending:
            if run.features:
                run.features.sync()
            run.records.note_erased(head)


def members(run: Run, group: str) -> list[str]:
    """Return the ids of a group's retained training records, sorted. It reads the one slot in which they lie.

    RecordError if there are none.
    """
    found = run.records.slot_ids(slot(run.key, group, run.config.plan.layout), group + SEPARATOR)
    if not found:
        raise RecordError(
            f"no retained training record belongs to group {group!r}, so nothing was deleted; if a request for it was made "
            "before, it holds"
        )
    return found


def retained(run: Run) -> int:
    """Return the number of training records that are not deleted."""
    return created_rows(run) - run.ledger.tombstones()


def created_rows(run: Run) -> int:
    """Return the number of training records that the run was made with."""
    return int(next(run.ledger.entries("create")).body["rows"])


def check_holds(run: Run, records: Sequence[Record]) -> None:
    """Raise RunError unless ``records`` are the training records that the run was made with, deleted ones included."""
    for record in records:
        marker = tag(run.key, record.id)
        if run.records.place(marker) is None and run.ledger.tombstone(marker) is None:
            raise RunError(f"{run.path} was made with other data: it never held record {record.id!r}")
    if len(records) != created_rows(run):
        raise RunError(f"{run.path} was made with {created_rows(run)} training records, not {len(records)}")


def _resolve(run: Run, ids: Sequence[str]) -> tuple[list[str], list[str], list[Slot]]:
    fresh, already, slots = [], [], set()
    for record_id in dict.fromkeys(ids):
        marker = tag(run.key, record_id)
        if run.ledger.tombstone(marker) is not None:
            already.append(record_id)
            continue
        place = run.records.place(marker)
        if place is None:
            raise RecordError(
                f"record {record_id!r} is not in this system, so nothing was deleted; "
                f"it holds {retained(run)} training records"
            )
        if place[1] is None:
            raise RecordError(f"record {record_id!r} belongs to the {place[0]} split, which is never trained on")
        if place[1] != slot(run.key, record_id, run.config.plan.layout):
            raise RunError(
                f"the run's records are damaged (another slot than the id's, {place[1]}); restore them from a copy"
            )
        fresh.append(record_id)
        slots.add(place[1])
    return fresh, already, sorted(slots)
