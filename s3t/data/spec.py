"""One string for a local file and how it is read, so that a run's source can be loaded again by whoever audits it.

``rows.csv`` is the file with the default columns; ``rows.csv?text=sentence&classes=no&classes=yes`` names what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode

from s3t.errors import DataError, did_you_mean

OPTIONS = (
    *("text", "answer", "image", "choices", "label", "id", "group", "classes", "number", "validation", "test"),
    "name",
)
"""The options of :func:`s3t.data.local.load_local`."""


def write_spec(path: str, options: Mapping[str, Any]) -> str:
    """Return ``path`` with the options that are not None, in the order of OPTIONS."""
    said = [(key, options[key]) for key in OPTIONS if options.get(key) is not None]
    if not said:
        return path
    return f"{path}?{urlencode([(k, v if isinstance(v, str | list | tuple) else str(v)) for k, v in said], doseq=True)}"


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Return path and options of :func:`write_spec`. Raises DataError for an option that is unknown or said twice."""
    path, _, query = spec.partition("?")
    options: dict[str, Any] = {}
    for key, values in parse_qs(query, keep_blank_values=True).items():
        if key not in OPTIONS:
            raise DataError(f"{spec!r} has the unknown option {key!r}{did_you_mean(key, OPTIONS)}; known: {OPTIONS}")
        if key != "classes" and len(values) > 1:
            raise DataError(f"{spec!r} says {key!r} {len(values)} times; say it once")
        options[key] = tuple(values) if key == "classes" else values[0]
    return path, options
