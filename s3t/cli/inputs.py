"""From what was typed to the suite's nouns: layout, recipe, data, texts, ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s3t.errors import DataError, LayoutError, RecipeError, did_you_mean
from s3t.records import Dataset, Layout, Recipe, sha256

LAYOUT = {"shards": 4, "slices": 3, "budget": 1}
"""What a run gets where nothing is said."""


def choose_layout(method: str, given: dict[str, int | None]) -> Layout:
    """Fill up what was given with LAYOUT. Raises LayoutError for a layout that the method does not have."""
    from baselines.methods import UNDIVIDED, find

    find(method)
    named = {name: value for name, value in given.items() if value is not None}
    if method in UNDIVIDED:
        for name, value in named.items():
            if value != 1:
                raise LayoutError(
                    f"{name}={value} does not apply to {method}: it trains one model on all data; leave it out"
                )
        return Layout(1, 1, 1)
    return Layout(**{**LAYOUT, **named})


def choose_recipe(given: dict[str, float | int | None], more: list[str]) -> Recipe:
    """Return the recipe with ``given`` fields and ``more`` NAME=VALUE pairs. RecipeError for unknown or bad ones."""
    raw: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for pair in more:
        name, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"--recipe {pair!r} is not NAME=VALUE; write for example dropout=0.1")
        try:
            raw[name] = json.loads(value)
        except ValueError:
            raw[name] = value
    return Recipe.from_json(raw)


def read_dataset(spec: str, columns: dict[str, str | None], classes: str | None, limit: int | None) -> Dataset:
    """Load ``spec``; ``limit`` keeps a fixed subset of the training records. Raises DataError."""
    from s3t.data import load

    chosen: dict[str, Any] = {name: value for name, value in columns.items() if value is not None}
    if classes is not None:
        chosen["classes"] = tuple(name.strip() for name in classes.split(","))
    dataset = load(spec, **chosen)
    return dataset if limit is None else dataset.subset(limit, len(dataset.validation), len(dataset.test))


def choose_ids(ids: list[str], count: int) -> list[str]:
    """Return ``count`` of ``ids``, scattered by a hash, the same ones each time. DataError if there are fewer."""
    if count > len(ids):
        raise DataError(f"--any {count} exceeds the {len(ids)} retained records")
    return sorted(ids, key=lambda name: sha256(b"s3t any v1\x00" + name.encode()))[:count]


def read_texts(path: Path, column: str) -> list[str]:
    """Return one column of a local CSV, JSONL or parquet file. Raises DataError if it cannot be read as such."""
    import pandas as pd

    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        elif path.suffix == ".jsonl":
            table = pd.read_json(path, lines=True, dtype=False)
        elif path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            raise DataError(f"{path} has the unknown ending {path.suffix!r}; give .csv, .jsonl or .parquet")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a CSV, JSONL or parquet file") from error
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        raise DataError(f"{path} has no column {column!r}{did_you_mean(column, names)}; it has {', '.join(names)}")
    return [str(value) for value in table[column]]
