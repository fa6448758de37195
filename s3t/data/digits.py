"""The pack ``mnist``: digits of 28 x 28 pixels, in the splits of its file, each as the bytes of a PNG file."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

from s3t.data.pack import Pack
from s3t.errors import DataError
from s3t.records import Dataset, Record

ARRAYS = {("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "_reconstruct")}
"""All that a pickle of arrays may name."""


def parse(pack: Pack, folder: Path) -> Dataset:
    """Return the data set of the fetched pack: 50,000, 10,000 and 10,000 records. An id is split and position.

    The file is a pickle, whose SHA-256 was verified; nothing but arrays is made of it all the same. DataError for another.
    """
    import numpy as np

    (name,) = (member.file for member in pack.files)
    with gzip.open(folder / name) as file:
        parts = _Arrays(file, encoding="latin1").load()
    found: dict[str, tuple[Record, ...]] = {}
    for split, (pixels, labels) in zip(("train", "validation", "test"), parts, strict=True):
        shades = np.rint(pixels * 256).astype(np.uint8).reshape(-1, 28, 28)  # Nielsen divided by 256
        records = (
            Record(f"{split}-{number:05d}", {"image": png(shade)}, int(label))
            for number, (shade, label) in enumerate(zip(shades, labels, strict=True))
        )
        found[split] = tuple(records)
    return Dataset(pack.name, pack.classes, found["train"], found["validation"], found["test"], pack.name)


def png(shade: Any) -> bytes:
    """Return a grey image (height, width), uint8, as a PNG file; little compressed, for that is faster."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(shade).save(out, "PNG", compress_level=1)
    return out.getvalue()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return one of ARRAYS, whose module has another name in numpy 2. DataError for anything else."""
        if (module, name) not in ARRAYS:
            raise DataError(f"the file names {module}.{name}, which is no array; fetch the pack again")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
