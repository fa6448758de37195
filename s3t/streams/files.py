"""Requests from a file of real ones."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3t.errors import DataError, RecordError
from s3t.reading import parse_json
from s3t.streams.base import Block, Request, Stream, View
from s3t.streams.population import Population

_HEADERS = (["id"], ["ids"])


def read_requests(path: Path | str) -> list[tuple[int, tuple[str, ...]]]:
    """Return (line number, record ids) of every request in a file, one request a line, empty lines left out.

    By the file's ending: ``.csv``, the ids are the cells of a row (a first row that is just "id" or "ids" is a heading);
    ``.jsonl``, a line is an id, a list of ids, or an object with "id" or "ids"; anything else, ids parted by white space.
    Raises DataError with the line number for what is none of this, for ids that are no text, and for a file without
    requests or that cannot be read.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.name} cannot be read as text in UTF-8: {error}") from error
    parse = {".csv": _cells, ".jsonl": _values}.get(file.suffix.lower(), str.split)
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            ids = parse(line)
        except (ValueError, csv.Error) as error:
            raise DataError(f"{file.name}, line {number}: {error}") from error
        if number == 1 and file.suffix.lower() == ".csv" and ids in _HEADERS:
            continue
        found.append((number, tuple(dict.fromkeys(ids))))
    if not found:
        raise DataError(f"{file.name} holds no requests: give one a line")
    return found


@dataclass(frozen=True)
class FromFile(Stream):
    """The requests of a file, in its order (:func:`read_requests`). A line of several ids is one request.

    An id that the population does not hold is a RecordError that names file and line, before any request is made.
    """

    path: str
    main = "path"

    def requests(self, population: Population, rng: np.random.Generator, view: View | None = None) -> Iterator[Request]:
        yield from self.records(population)

    def records(self, population: Population) -> list[Request]:
        """Return all requests as record numbers."""
        if population.ids is None:
            raise DataError("requests from a file name records: give a population of real ids")
        found = []
        for number, ids in read_requests(self.path):
            try:
                found.append(tuple(population.find(record_id) for record_id in ids))
            except RecordError as error:
                raise RecordError(f"{Path(self.path).name}, line {number}: {error}") from error
        return found

    def blocks(self, population: Population, rng: np.random.Generator, trials: int) -> Iterator[Block]:
        requests = self.records(population)
        numbers = np.repeat(np.arange(1, len(requests) + 1), [len(request) for request in requests])
        records = np.array([record for request in requests for record in request], dtype=np.int64)
        yield Block(np.broadcast_to(numbers, (trials, len(numbers))), population.slots_of(records), len(requests))


def _cells(line: str) -> list[str]:
    (row,) = csv.reader([line], strict=True)
    ids = [cell.strip() for cell in row]
    if not all(ids):
        raise ValueError("an id is empty; give one id in every cell")
    return ids


def _values(line: str) -> list[str]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from error
    if isinstance(value, dict):
        keys = [key for key in ("id", "ids") if key in value]
        if len(keys) != 1:
            raise ValueError('an object needs exactly one of "id" and "ids"')
        value = value[keys[0]]
    ids = [value] if isinstance(value, str) else value
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) and one for one in ids):
        raise ValueError("expected an id, a list of ids, or an object with one of them; ids are non-empty text")
    return ids
