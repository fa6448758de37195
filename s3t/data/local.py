"""Local CSV, JSONL and parquet files with named columns; nothing is cached anywhere.

The classes must not depend on deletable rows: they are declared, or taken from the validation and test splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.data.splits import Split, carve_test, carve_validation, three_way
from s3t.errors import DataError, did_you_mean
from s3t.records import Dataset, Record

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".csv", ".jsonl", ".parquet")

Raw = tuple[str, str, str]
"""(id, text, class name)."""


def load_local(
    path: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    id: str | None = None,
    classes: Sequence[str] | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    name: str | None = None,
) -> Dataset:
    """Return the records of ``path`` (.csv, .jsonl or .parquet) as a data set; inputs are ``{"text": ...}``.

    ``id``: column with stable, unique ids; without it a row's id is its position in the file (``row-000001``), so that
    editing the file later would give other records the ids. ``validation``, ``test``: files of the never-deletable splits;
    without them records are assigned by a hash of their id, 10 % each. Raises DataError, naming row or column and a remedy,
    for anything that cannot be read as declared.
    """
    main = _rows(Path(path), text, label, id, "row")
    parts: dict[Split, list[Raw]] = {"train": [], "validation": [], "test": []}
    if validation is not None:
        parts["validation"] = _rows(Path(validation), text, label, id, "validation")
    if test is not None:
        parts["test"] = _rows(Path(test), text, label, id, "test")
    assign = {
        (False, False): three_way,
        (True, False): carve_test,
        (False, True): carve_validation,
        (True, True): _all_train,
    }[validation is not None, test is not None]
    for row in main:
        parts[assign(row[0])].append(row)
    chosen = _classes(parts, classes, str(path))
    index = {known: position for position, known in enumerate(chosen)}
    records = {
        split: tuple(Record(row_id, {"text": words}, index[answer]) for row_id, words, answer in rows)
        for split, rows in parts.items()
    }
    return Dataset(
        name or Path(path).stem, chosen, records["train"], records["validation"], records["test"], source=str(path)
    )


def _all_train(_: str) -> Split:
    return "train"


def _classes(parts: dict[Split, list[Raw]], declared: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if declared is None:
        chosen = tuple(sorted({answer for split in ("validation", "test") for _, _, answer in parts[split]}))
        origin = f"the classes {list(chosen)} of its validation and test records"
    else:
        chosen = tuple(declared)
        origin = f"the declared classes {list(chosen)}"
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise DataError(
            f"{where} is left with the classes {list(chosen)}; declare at least 2 distinct ones with --classes"
        )
    for rows in parts.values():
        for row_id, _, answer in rows:
            if answer not in chosen:
                raise DataError(
                    f"record {row_id!r} of {where} has label {answer!r}, which is not among {origin}"
                    f"{did_you_mean(answer, chosen)}; declare all classes with --classes"
                )
    return chosen


def _rows(path: Path, text: str, label: str, id_column: str | None, prefix: str) -> list[Raw]:
    table = _read(path)
    for column in (text, label, *([id_column] if id_column else [])):
        if column not in table.columns:
            names = [str(name) for name in table.columns]
            raise DataError(f"{path} has no column {column!r}{did_you_mean(column, names)}; it has {', '.join(names)}")
    if table.empty:
        raise DataError(f"{path} has no rows; give a file with records")
    rows: list[Raw] = []
    seen: dict[str, int] = {}
    for number, (_, row) in enumerate(table.iterrows(), start=1):
        row_id = f"{prefix}-{number:06d}" if id_column is None else _cell(row[id_column])
        if not row_id:
            raise DataError(f"{path}: row {number} has no {id_column!r}; every record needs an id")
        if row_id in seen:
            raise DataError(
                f"{path}: record id {row_id!r} occurs twice, in rows {seen[row_id]} and {number}; make ids unique"
            )
        seen[row_id] = number
        words, answer = _cell(row[text]), _cell(row[label])
        if not words.strip():
            raise DataError(f"{path}: row {number} ({row_id!r}) has no {text!r}; drop it or fill it in")
        if not answer:
            raise DataError(f"{path}: row {number} ({row_id!r}) has no {label!r}; drop it or fill it in")
        rows.append((row_id, words, answer))
    return rows


def _cell(value: object) -> str:
    if value is None or value != value:  # None or NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if path.suffix not in ENDINGS:
        raise DataError(f"{path} has the unknown ending {path.suffix!r}; give one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        return pd.read_parquet(path)
    except (OSError, ValueError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix}: {str(error).splitlines()[0]}") from error
