"""Image folders: a folder per class, with or without folders per split above them. Nothing is cached anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from s3t.data.decoding import decode
from s3t.data.spec import write_spec
from s3t.data.splits import Split, carve_test, carve_validation, three_way
from s3t.errors import DataError, did_you_mean
from s3t.records import Dataset, Record

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Endings of image files; files with other endings are left out."""
SPLITS: Mapping[str, Split] = {
    "train": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
"""Names of folders that are splits."""


def is_image_folder(folder: Path) -> bool:
    """Say whether there is an image in ``folder``/class or in ``folder``/split/class, and no image or table beside them."""
    if any(path.suffix.lower() in (*SUFFIXES, ".parquet", ".csv", ".jsonl", ".json") for path in folder.iterdir()):
        return False
    return any(next(_images(place), None) for place in _classes_in(folder))


def load_images(folder: str | Path, *, classes: Sequence[str] | None = None, name: str | None = None) -> Dataset:
    """Return the images of a folder as a data set; inputs are ``{"image": the file's bytes}``.

    ``folder`` has a folder per class, or folders ``train``, ``validation`` (or valid, val, dev), ``test`` with those in them;
    a split without a folder is a tenth of train by a hash of the id. An id is the file's path below its split's folder, with
    slashes, such as ``cat/001.png``. ``classes``: all labels in index order; without them the sorted names of the folders,
    of validation and test where these have their own. Every image is decoded once here, so that a
    bad one is named. Raises DataError for one that cannot be read, a link that leads out of the folder, an id that two splits
    share, or a class that is not declared.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; check the path")
    tops: dict[Split, Path] = {"train": root}
    if (root / "train").is_dir():
        tops = {split: root / name for name, split in SPLITS.items() if (root / name).is_dir()}
    declared = tuple(classes) if classes is not None else _declared(tops)
    if len(declared) < 2 or len(set(declared)) != len(declared):
        raise DataError(f"{root} has the classes {list(declared)}; at least 2 distinct ones are needed, see --classes")
    parts: dict[Split, list[Record]] = {"train": [], "validation": [], "test": []}
    seen: dict[str, Split] = {}
    for split, top in tops.items():
        for place in _folders(top):
            if place.name not in declared:
                raise DataError(
                    f"{place} is of class {place.name!r}, which is not among {list(declared)}"
                    f"{did_you_mean(place.name, declared)}; declare all classes with --classes"
                )
            for path in _images(place):
                record = _record(root, path, path.relative_to(top).as_posix(), declared.index(place.name))
                if seen.setdefault(record.id, split) != split:
                    raise DataError(
                        f"record id {record.id!r} occurs in {seen[record.id]} and in {split}; rename one of them"
                    )
                parts[_place(record.id, split, tops)].append(record)
    if not parts["train"]:
        raise DataError(f"{root} leaves no images to train on; give folders per class with files ending in {SUFFIXES}")
    source = write_spec(str(root), {"classes": None if classes is None else list(classes), "name": name})
    train, validation, test = (tuple(parts[split]) for split in ("train", "validation", "test"))
    return Dataset(name or root.name, declared, train, validation, test, source)


def read_image(path: Path, root: Path) -> bytes:
    """Return an image file's bytes. DataError for one that cannot be decoded, and for a path that leads out of ``root``."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path} leads out of {root}; give a path below it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the path of an image") from error
    check_image(data, str(path))
    return data


def check_image(data: bytes, where: str) -> None:
    """Raise DataError, naming ``where``, for bytes that cannot be decoded as an image."""
    try:
        decode(data, 1)
    except DataError as error:
        raise DataError(f"{where} is not usable: {error}") from error


def _record(root: Path, path: Path, name: str, label: int) -> Record:
    return Record(name, {"image": read_image(path, root)}, label)


def _declared(tops: Mapping[Split, Path]) -> tuple[str, ...]:
    """Return the names of the folders, by which classes are declared: of the splits that are never deleted if there are any."""
    fixed = [top for split, top in tops.items() if split != "train"] or list(tops.values())
    return tuple(sorted({place.name for top in fixed for place in _folders(top)}))


def _place(name: str, split: Split, tops: Mapping[Split, Path]) -> Split:
    if split != "train" or ("validation" in tops and "test" in tops):
        return split
    if len(tops) == 1:
        return three_way(name)
    return carve_validation(name) if "test" in tops else carve_test(name)


def _folders(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes_in(folder: Path) -> list[Path]:
    tops = [path for path in _folders(folder) if path.name in SPLITS] or [folder]
    return [place for top in tops for place in _folders(top)]


def _images(folder: Path) -> Iterator[Path]:
    """Yield the images in a class's folder and in folders below it, sorted."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path
