"""The pack ``cifar10-test``: the 10,000 test images of CIFAR-10 as BIG-bench has them, PNG files of 32 x 32 pixels in base64.

They are split anew, so that no figure on them compares to a published one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from pathlib import Path

from s3t.data.pack import Pack
from s3t.data.splits import Split, dataset_of
from s3t.errors import DataError
from s3t.reading import parse_json
from s3t.records import Dataset, Record

SHUFFLE = b"s3t cifar10-test v1\x00"
"""The public constant: ids are given in the order of SHA256(SHUFFLE || position), for the file is sorted by class."""

PNG = b"\x89PNG\r\n\x1a\n"


def parse(pack: Pack, folder: Path) -> Dataset:
    """Return the data set of the fetched pack: of every ten images of the file one is for validation, one for test.

    The file has a thousand images of each class one after the other, so that the classes have equal shares of each split. An
    id says nothing of the class. DataError for another content than the format has.
    """
    return dataset_of(pack, _records(pack, folder / pack.files[0].file))


def _records(pack: Pack, path: Path) -> Iterator[tuple[Split, Record]]:
    examples = _examples(path)
    shuffled = sorted(range(len(examples)), key=lambda position: hashlib.sha256(SHUFFLE + b"%d" % position).digest())
    splits: dict[int, Split] = {0: "validation", 1: "test"}
    for number, position in enumerate(shuffled):
        where = f"example {position} of {path}"
        text, scores = examples[position]
        if tuple(scores) != pack.classes or sorted(scores.values()) != [0] * (len(pack.classes) - 1) + [1]:
            raise DataError(
                f"{where} has the scores {scores}, not a 1 for one class of {len(pack.classes)}; fetch it again"
            )
        label = pack.classes.index(max(scores, key=scores.__getitem__))
        record = Record(f"image-{number:05d}", {"image": _image(text, where)}, label)
        yield splits.get(position % 10, "train"), record


def _examples(path: Path) -> list[tuple[str, dict[str, int]]]:
    """Return the input and the score of each class for every example of a task of BIG-bench."""
    try:
        task = parse_json(path.read_text(encoding="utf-8"))
        return [(str(example["input"]), dict(example["target_scores"])) for example in task["examples"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no task of BIG-bench with scores ({error!r}); fetch the pack again") from error


def _image(text: str, where: str) -> bytes:
    try:
        image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"the input of {where} is no base64 ({error}); fetch the pack again") from error
    if not image.startswith(PNG):
        raise DataError(f"the input of {where} is no PNG file; fetch the pack again")
    return image
