"""Bodies of requests: strict JSON, and what a prediction or a deletion needs of it. Every fault is one DataError."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from s3t.answers import CANDIDATE, is_text
from s3t.errors import DataError, did_you_mean
from s3t.records import Inputs, Record, candidate

LONGEST = 60
"""Characters of a value that an error message repeats."""


@dataclass(frozen=True)
class Wanted:
    """What a deletion names: ids of records, and groups of which all records are meant."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]


def read_records(body: bytes, classes: Sequence[str], most: int) -> list[Record]:
    """Return what is to be answered, from ``{"inputs": [...]}``; ids are places from 0, as ``s3t predict --input`` gives them.

    An input is a text, or an object with ``text`` (and ``text_pair``, or ``answer`` of runs that predict text), with ``image``,
    a file in base64, or, of runs that rank candidate answers, with ``text`` and ``choices``: an object of texts by name.
    DataError for anything else, and for more than ``most`` records.
    """
    found = _list(_fields(read_json(body), ("inputs",), "the body"), "inputs")
    if not found:
        raise DataError('"inputs" holds no rows to classify; give at least one')
    records: list[Record] = []
    for place, given in enumerate(found[: most + 1]):
        records += _records(place, given, classes)
    if len(records) > most:
        raise DataError(f'"inputs" holds more than {most} rows, candidates counted; send them in several requests')
    return records


def read_wanted(body: bytes) -> Wanted:
    """Return what is to be deleted, from ``{"ids": [...]}``, ``{"groups": [...]}`` or both. DataError for anything else."""
    fields = _fields(read_json(body), ("ids", "groups"), "the body")
    ids, groups = (
        tuple(_text(value, f'"{name}"[{place}]') for place, value in enumerate(_list(fields, name)))
        if name in fields
        else ()
        for name in ("ids", "groups")
    )
    if not (ids or groups):
        raise DataError('no id is given; name records with {"ids": [...]} or {"groups": [...]}')
    return Wanted(ids, groups)


def read_json(body: bytes) -> Any:
    """Return the value of a JSON text. DataError unless it is UTF-8, with finite numbers, every key of an object given once."""
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise DataError(f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8") from None
    except RecursionError:
        raise DataError("the body is nested too deeply; send a flat list of inputs or ids") from None
    except ValueError as error:
        raise DataError(f"the body is no JSON ({error}); send one JSON object") from None


def _records(place: int, given: Any, classes: Sequence[str]) -> list[Record]:
    where, ranked = f'"inputs"[{place}]', tuple(classes) == CANDIDATE
    fields = {"text": given} if isinstance(given, str) and not ranked else given
    if isinstance(fields, dict) and "image" in fields:
        data = _text(_fields(fields, ("image",), where)["image"], f'{where}["image"]')
        return [Record(str(place), {"image": _decoded(data, where)}, 0)]
    more = "choices" if ranked else "answer" if is_text(classes) else "text_pair"
    fields = _fields(fields, ("text", more), where)
    if "text" not in fields or (ranked and more not in fields):
        raise DataError(f"{where} lacks {'text' if 'text' not in fields else more!r}; this run reads it")
    if not ranked:
        inputs: Inputs = {name: _text(value, f'{where}["{name}"]') for name, value in fields.items()}
        return [Record(str(place), inputs, 0)]
    choices, text = fields[more], _text(fields["text"], f'{where}["text"]')
    if not isinstance(choices, dict) or not choices:
        raise DataError(f'{where}["choices"] is {_said(choices)}; give an object of texts by name')
    records = []
    for name, value in choices.items():
        said = _text(value, f'{where}["choices"][{_said(name)}]')
        if not said.strip():
            raise DataError(f"{where} has nothing in choice {_said(name)}; fill it in or leave it out")
        records.append(Record(candidate(str(place), _text(name, where)), {"text": text, "text_pair": said}, 0))
    return records


def _decoded(data: str, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise DataError(
            f'{where}["image"] is not base64 ({error}); give the bytes of an image file in base64'
        ) from None


def _fields(value: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {_said(value)}; give an object with {_names(known)}")
    for name in value:
        if name not in known:
            close = did_you_mean(name, known) if len(name) <= LONGEST else ""
            raise DataError(f"{where} has the unknown key {_said(name)}{close}; known here: {_names(known)}")
    return value


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    if name not in fields:
        raise DataError(f'the body lacks "{name}"; give a list')
    if not isinstance(fields[name], list):
        raise DataError(f'"{name}" is {_said(fields[name])}; give a list')
    return list(fields[name])


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is {_said(value)}; give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where} has half of a surrogate pair, which has no UTF-8 form; send whole characters"
        ) from None
    return value


def _said(value: Any) -> str:
    """Return a value as an error message names it: short, on one line, and never a whole object."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value)  # escapes what has no UTF-8 form
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _names(known: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in known)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DataError(f"the key {_said(name)} is given twice in one object; give it once")
        found[name] = value
    return found


def _not_finite(word: str) -> NoReturn:
    raise DataError(f"the body holds the number {word}, which is not finite and not JSON; leave it out")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise DataError(f"the body holds the number {digits[:LONGEST]}, which is not finite; leave it out")
    return value
