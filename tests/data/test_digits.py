"""The pack of digits: pixels come back exactly, and a pickle that names more than arrays is refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s3t.data import load
from s3t.data.digits import parse
from s3t.data.packs import find
from s3t.errors import DataError

PACK = find("mnist")


def write(folder: Path, content: object) -> None:
    (folder / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(content, protocol=3)))


def test_every_pixel_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    shades = [draw.integers(0, 256, (count, 784)) for count in (6, 3, 4)]
    labels = [draw.integers(0, 10, len(part)) for part in shades]
    parts = [(np.float32(part / 256), label) for part, label in zip(shades, labels, strict=True)]
    content = pickle.dumps(tuple(parts), protocol=3).replace(b"numpy._core", b"numpy.core")  # as numpy 1 wrote it
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(content))
    data = parse(PACK, tmp_path)
    assert [record.id for record in data.test] == [f"test-{i:05d}" for i in range(4)]
    for split, part, answers in zip((data.train, data.validation, data.test), shades, labels, strict=True):
        for record, shade, answer in zip(split, part, answers, strict=True):
            assert isinstance(record.inputs["image"], bytes)
            image = Image.open(io.BytesIO(record.inputs["image"]))
            assert (image.mode, image.size, record.label) == ("L", (28, 28), answer)
            assert np.array_equal(np.asarray(image).ravel(), shade)


def test_a_pickle_of_anything_else_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.system, ("echo evil",)

    write(tmp_path, Evil())
    with pytest.raises(DataError, match=r"the file names posix.system, which is no array"):
        parse(PACK, tmp_path)


@pytest.mark.packs
def test_the_real_digits() -> None:
    data = load("mnist")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [50_000, 10_000, 10_000]
    assert [record.label for record in data.train[:8]] == [5, 0, 4, 1, 9, 2, 1, 3]
