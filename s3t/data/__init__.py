"""Data and models by name: pinned offline packs, local files, and the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s3t.data.fetch import available, fetch
from s3t.data.local import ENDINGS, load_local
from s3t.data.packs import PACKS
from s3t.errors import DataError, did_you_mean
from s3t.records import Dataset

__all__ = ["available", "fetch", "load", "load_local", "model_source"]


def load(spec: str, **columns: Any) -> Dataset:
    """Return the data set that ``spec`` names: a pack, a local .csv/.jsonl/.parquet file, or a hub name with a slash.

    ``columns`` (text, label, id, classes, validation, test) describe local files and hub data. Raises DataError for a
    name that is none of these, and for data that cannot be read as declared.
    """
    pack = PACKS.get(spec)
    if pack is not None and pack.kind == "data":
        if columns:
            raise DataError(f"{spec!r} is a pack with fixed columns and splits; leave out {', '.join(sorted(columns))}")
        from s3t.data.text import parse

        return parse(pack, fetch(spec))
    if Path(spec).suffix in ENDINGS or Path(spec).exists():
        return load_local(spec, **columns)
    if "/" in spec:
        from s3t.data.hub import load_hub

        return load_hub(spec, **columns)
    known = [name for name, each in PACKS.items() if each.kind == "data"]
    raise DataError(
        f"data {spec!r} is unknown{did_you_mean(spec, known)}; give a pack ({', '.join(known)}), a file ending in "
        f"{', '.join(ENDINGS)}, or a hub name such as owner/name"
    )


def model_source(name: str) -> Path | str:
    """Return where transformers finds the model ``name``: a fetched pack, an existing folder, or the hub name as given."""
    pack = PACKS.get(name)
    if pack is not None and pack.kind == "model":
        return fetch(name)
    return Path(name) if Path(name).is_dir() else name
