"""Data and models by name: pinned offline packs, local files, and the hub.

A pack wins over everything else, a file or its ending over the hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from s3t.data.fetch import available, fetch
from s3t.data.hub import is_hub_name, load_hub
from s3t.data.image_folders import is_image_folder, load_images
from s3t.data.local import load_local
from s3t.data.pack import Pack
from s3t.data.packs import PACKS
from s3t.data.spec import read_spec
from s3t.data.tables import READERS
from s3t.errors import DataError, ModelError, did_you_mean
from s3t.records import Dataset

__all__ = ["available", "fetch", "load", "load_hub", "load_images", "load_local", "model_source"]


def load(spec: str | os.PathLike[str], **columns: Any) -> Dataset:
    """Return the data set that ``spec`` names: a pack, a .csv, .json, .jsonl or .parquet file, a folder of
    images, a folder or name of the hub.

    ``columns`` (text, choices, label, id, classes, validation, test) go to :func:`load_local` or :func:`load_hub`; a file's
    may stand in the spec itself (``rows.csv?text=sentence``), as a data set's ``source`` has them. Raises DataError for a
    name that is none of these, and for data that cannot be read as declared.
    """
    name = os.fspath(spec)
    if name in PACKS:
        return _load_pack(_pack(name, "data"), columns)
    path, options = (name, {}) if Path(name).exists() else read_spec(name)
    if path and Path(path).is_dir():
        if is_image_folder(Path(path)):
            return load_images(path, **_fitting({**options, **columns}, path))
        return load_hub(path, **columns)
    if Path(path).is_file() or Path(path).suffix.lower() in READERS:
        return load_local(path, **{**options, **columns})
    if is_hub_name(name):
        return load_hub(name, **columns)
    known = _names("data")
    raise DataError(
        f"data {name!r} is unknown{did_you_mean(name, known)}; give a pack ({', '.join(known)}), a file ending in "
        f"{', '.join(READERS)}, or a hub name such as owner/name"
    )


def model_source(name: str | os.PathLike[str]) -> Path | str:
    """Return where transformers finds the model ``name``: a pack's verified folder, a folder, else the hub name itself.

    Raises ModelError for a pack of data, for a pack whose files differ, and for a path without a folder.
    """
    text = os.fspath(name)
    if text in PACKS:
        return fetch(_pack(text, "model").name)
    if text and Path(text).is_dir():
        return Path(text)
    if not text or text.startswith((".", "~", "/")) or text.count("/") > 1:
        raise ModelError(f"model {text!r} is neither a pack, nor an existing folder, nor a hub name such as owner/name")
    return text


def _fitting(columns: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the options of an image folder. DataError for those of tables."""
    odd = sorted(set(columns) - {"classes", "name"})
    if odd:
        raise DataError(
            f"{folder} is a folder of images, which has no columns or files to name; leave out {', '.join(odd)}"
        )
    return columns


def _load_pack(pack: Pack, columns: dict[str, Any]) -> Dataset:
    from s3t.data import cifar, digits, idx, instructions, text

    if columns:
        raise DataError(
            f"{pack.name!r} is a pack with fixed columns and splits; leave out {', '.join(sorted(columns))}"
        )
    images = {"mnist": digits.parse, "fashion-mnist": idx.parse, "cifar10-test": cifar.parse}
    parse = {**images, "alpaca": instructions.parse}.get(pack.name, text.parse)
    return parse(pack, fetch(pack.name))


def _pack(name: str, kind: Literal["model", "data"]) -> Pack:
    pack = PACKS[name]
    if pack.kind != kind:
        fault = ModelError if kind == "model" else DataError
        raise fault(
            f"pack {name!r} is of kind {pack.kind}, not {kind}; packs of kind {kind} are {', '.join(_names(kind))}"
        )
    return pack


def _names(kind: str) -> list[str]:
    return [name for name, pack in PACKS.items() if pack.kind == kind]
