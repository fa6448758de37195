"""Data sets by hub name (``owner/name`` or ``owner/name:config``) through the ``datasets`` library.

``datasets`` keeps its own cache of what it downloads; that copy is outside every run folder and is not erased by a deletion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s3t.data.splits import Split, carve_test, carve_validation, three_way
from s3t.errors import DataError, did_you_mean
from s3t.records import Dataset, Record


def load_hub(
    name: str,
    *,
    text: str = "text",
    label: str = "label",
    id: str | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Return a hub data set. ``text`` may name two columns (``question,sentence``) for sentence pairs.

    Classes are the label feature's own names unless declared. A test split with hidden labels is not used; missing
    splits are carved from the training split by a hash of the id. Raises DataError if it cannot be reached or read.
    """
    import datasets

    path, _, config = name.partition(":")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library raises many kinds for one fault: not reachable here
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"data {name!r} cannot be loaded from the hub: {first}. Check the name and the connection"
        ) from error
    if "train" not in loaded:
        raise DataError(f"data {name!r} has no train split; it has {', '.join(map(str, loaded))}")
    columns = [column.strip() for column in text.split(",")]
    _check_columns(name, loaded["train"].column_names, [*columns, label, *([id] if id else [])])
    names = _class_names(name, loaded["train"], label, classes)
    own = {
        split: loaded[split] for split in ("validation", "test") if split in loaded and _labelled(loaded[split], label)
    }
    assign = {(False, False): three_way, (True, False): carve_test, (False, True): carve_validation}.get(
        ("validation" in own, "test" in own)
    )
    parts: dict[Split, list[Record]] = {"train": [], "validation": [], "test": []}
    for split, table in (("train", loaded["train"]), *own.items()):
        for number, row in enumerate(table):
            record_id = str(row[id]) if id else f"{split}-{number:07d}"
            inputs = dict(zip(("text", "text_pair"), (str(row[column]) for column in columns), strict=False))
            place: Any = assign(record_id) if split == "train" and assign else split
            parts[place].append(Record(record_id, inputs, _index(names, row[label], record_id)))
    return Dataset(name, names, tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), source=name)


def _check_columns(name: str, known: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in known:
            raise DataError(
                f"data {name!r} has no column {column!r}{did_you_mean(column, known)}; it has {', '.join(known)}"
            )


def _class_names(name: str, table: Any, label: str, declared: Sequence[str] | None) -> tuple[str, ...]:
    if declared is not None:
        return tuple(declared)
    names = getattr(table.features[label], "names", None)
    if not names:
        raise DataError(f"column {label!r} of {name!r} does not name its classes; declare them with --classes")
    return tuple(names)


def _labelled(table: Any, label: str) -> bool:
    return len(table) > 0 and all(value not in (-1, None) for value in table[label])


def _index(names: tuple[str, ...], value: Any, record_id: str) -> int:
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    if str(value) in names:
        return names.index(str(value))
    raise DataError(
        f"record {record_id!r} has label {value!r}, which is not among {list(names)}; declare it with --classes"
    )
