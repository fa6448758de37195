"""CSV, JSON, JSONL and parquet files as columns of strings, exactly as written: no guessed types, no dates, no caches.

"NA", "null" and "01" stay what they are. A cell that is missing (an empty CSV field, a JSON null or absent key, a null in
parquet) is the empty string. Numbers of typed formats are written in decimal, whole ones without a fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.errors import DataError, did_you_mean
from s3t.reading import parse_json


@dataclass(frozen=True)
class Table:
    """A file's column ``names`` and ``cells``: column name -> its values in row order, as the format has them."""

    path: Path
    names: tuple[str, ...]
    cells: Callable[[str], Sequence[Any]]

    def column(self, name: str) -> list[str]:
        """Return one column as strings. Raises DataError if it is not there, or nested."""
        if name not in self.names:
            raise DataError(
                f"{self.path} has no column {name!r}{did_you_mean(name, self.names)}; it has {', '.join(self.names)}"
            )
        try:
            return [_word(value) for value in self.cells(name)]
        except ValueError as error:
            raise DataError(f"{self.path}: column {name!r} holds no plain values: {error}") from error


def read_table(path: Path) -> Table:
    """Return the columns of a .csv (UTF-8, with a header), .json (a list of objects), .jsonl or .parquet file.

    Raises DataError for an unknown ending, a file that is absent, empty, not UTF-8 or not of its format.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} has the unknown ending {path.suffix!r}; give one of {', '.join(READERS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; give a file with records")
        table = reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert it, for example with iconv -t utf-8") from error
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{path} cannot be read as {path.suffix}: {reason}") from error
    repeated = [name for name in table.names if table.names.count(name) > 1]
    if repeated:
        raise DataError(f"{path} has more than one column {repeated[0]!r}; give each its own name")
    return table


def _word(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, dict | list):
        raise ValueError(f"{str(value)[:40]!r} is nested")
    return "" if value is None else str(value)


def _csv(path: Path) -> Table:
    import pandas as pd

    # header=None: a row with more fields than the header is an error, and repeated names stay as they are
    table = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    names = tuple(_word(name) for name in table.iloc[0])
    return Table(path, names, lambda name: table.iloc[1:, names.index(name)].tolist())


def _jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object with named fields")
            rows.append(row)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(path, names, lambda name: [row.get(name) for row in rows])


def _json(path: Path) -> Table:
    rows = parse_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of objects with named fields")
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(path, names, lambda name: [row.get(name) for row in rows])


def _parquet(path: Path) -> Table:
    from pyarrow import parquet

    table = parquet.read_table(path)
    return Table(path, tuple(table.column_names), lambda name: table.column(name).to_pylist())


READERS: Mapping[str, Callable[[Path], Table]] = {".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
"""File ending (in lower case) -> reader."""
