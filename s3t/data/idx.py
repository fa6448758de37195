"""The pack ``fashion-mnist``: images of 28 x 28 pixels in gzipped IDX files, each record as the bytes of a PNG file.

IDX is LeCun's format of MNIST: two zero bytes, a byte for the type (8: unsigned bytes), one for the number of dimensions, the
sizes as big-endian numbers of 32 bits, then the values.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.data.digits import png
from s3t.data.pack import Pack
from s3t.data.splits import Split, carve_validation, dataset_of
from s3t.errors import DataError
from s3t.records import Dataset, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 28


def parse(pack: Pack, folder: Path) -> Dataset:
    """Return the data set of the fetched pack. An id is the file's part and the position in it: ``train-00017``.

    Of the 60,000 training images a tenth, by a hash of the id, are for validation. DataError for files that are no IDX of such
    images and their labels.
    """
    return dataset_of(pack, _records(folder))


def read_idx(path: Path, *each: int) -> NDArray[np.uint8]:
    """Return the values of a gzipped IDX file of unsigned bytes: as many items as it says, each of the sizes ``each``.

    DataError for any other content.
    """
    import numpy as np

    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as gzip ({error}); fetch the pack again") from error
    sizes = struct.Struct(f">4B{1 + len(each)}I")
    magic, start = (0, 0, 8, 1 + len(each)), sizes.size
    if len(content) < start or tuple(content[:4]) != magic:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes in {1 + len(each)} dimensions: it begins with "
            f"{content[:start].hex()!r}, not {bytes(magic).hex()!r} and {1 + len(each)} sizes; fetch the pack again"
        )
    shape = sizes.unpack_from(content)[4:]
    if shape[1:] != each:
        raise DataError(f"{path} has items of size {shape[1:]}, not {each}; fetch the pack again")
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"{path} holds {values.size} values, not those of its sizes {shape}; fetch the pack again")
    return values.reshape(shape)


def _records(folder: Path) -> Iterator[tuple[Split, Record]]:
    for stem, part in (("train", "train"), ("t10k", "test")):
        shades = read_idx(folder / f"{stem}-images-idx3-ubyte.gz", SIDE, SIDE)
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        if len(shades) != len(labels):
            raise DataError(f"{folder} has {len(shades)} {stem} images and {len(labels)} labels; fetch the pack again")
        for number, (shade, label) in enumerate(zip(shades, labels, strict=True)):
            record = Record(f"{part}-{number:05d}", {"image": png(shade)}, int(label))
            yield carve_validation(record.id) if part == "train" else "test", record
