"""Which records of a run lack the features that an analytic head reads. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from s3t.errors import DamageError
from s3t.facts import Facts
from s3t.partition import tag
from s3t.rows import StoredRow
from s3t.runs import Run

LACKS = "retained records lack their features, or have damaged ones; run `s3t refresh` to make them anew"


def lacking(run: Run, rows: Iterable[StoredRow], environment: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tags of those of ``rows`` whose stored features are not there, not theirs, or not of ``environment``."""
    for row in rows:
        marker = tag(run.key, row.record.id)
        if not _there(run, marker, row.commitment, environment):
            yield marker


def survey(run: Run, facts: Facts) -> None:
    """Read the features of all retained records; have it in ``run.damage`` if any are damaged, and if none are. ``facts`` is
    up to date.

    Nothing is noted where no head was finished. A record that is deleted meanwhile counts for nothing.
    """
    made = run.ledger.last("head")
    if run.features is None or made is None:
        return
    environment, stamp = made.body["environment"], run.damage.features_stamp()
    rows = (row for slot in facts.plan.layout.slots() for row in run.records.slot_rows(*slot))
    for marker in lacking(run, rows, environment):
        with run.records.erasing():  # a deletion that is under way has erased the row, or will erase both
            row = run.records.row(marker)
            if row is not None and not _there(run, marker, row.commitment, environment):
                run.damage.note_features(made.seq, stamp, LACKS)
                return
    run.damage.note_features(made.seq, stamp, "")


def _there(run: Run, marker: str, commitment: str, environment: Mapping[str, Any]) -> bool:
    assert run.features is not None
    try:
        return run.features.read(run.records.number(marker), commitment, environment) is not None
    except DamageError:
        return False
