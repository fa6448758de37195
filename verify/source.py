"""Reading a run's source data again, so that what was deleted from the run can be searched for and compared."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from s3t.errors import S3TError
from s3t.records import Record
from verify.evidence import Evidence


class SourceChangedError(S3TError):
    """The source of a run's data is there and has other content than the run was fitted on."""


def source_records(evidence: Evidence) -> tuple[tuple[Record, ...] | None, str]:
    """Return every train record of the run's source data, or None and the reason why they cannot be had.

    The data must have the digest that run.json declares. Raises SourceChangedError if it has another one: then somebody is
    wrong about the data, and an audit cannot say who.
    """
    declared: Any = evidence.run["data"]
    if not declared.get("source"):
        return None, "the run names no source of its data"
    try:
        data = _load(str(declared["source"]))
    except (S3TError, OSError, ImportError) as error:
        return None, f"source {declared['source']!r} cannot be read again: {error}"
    for candidate in _candidates(data, str(declared["name"]), evidence):
        if candidate.digest == declared["digest"]:
            return tuple(candidate.train), ""
    source = declared["source"]
    raise SourceChangedError(f"source {source!r} now has other content than the run was fitted on: its digest differs")


def _load(source: str) -> Any:
    return importlib.import_module("s3t.data").load(source)


def _candidates(data: Any, name: str, evidence: Evidence) -> Sequence[Any]:
    """Return the data set itself and, for a run on a subset ("name[100]"), the subset with the run's sizes."""
    if name == data.name:
        return (data,)
    sizes = [len(evidence.split(split)) for split in ("validation", "test")]
    return (data, data.subset(int(evidence.entries[0].body["rows"]), *sizes))
