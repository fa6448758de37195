"""The pack fashion-mnist: IDX files are read as they are, and any other content is refused."""

from __future__ import annotations

import gzip
import io
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s3t.data import load
from s3t.data.fetch import cache_folder
from s3t.data.idx import parse, read_idx
from s3t.data.packs import find
from s3t.data.splits import carve_validation
from s3t.errors import DataError

PACK = find("fashion-mnist")
COUNTS = {"train": 40, "t10k": 7}


def idx(values: np.ndarray) -> bytes:
    """Return an array as IDX, by the format's description (LeCun, Cortes and Burges)."""
    return struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


@pytest.fixture
def made(tmp_path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each part, and their four files in ``tmp_path``."""
    draw = np.random.default_rng(0)
    parts = {}
    for stem, count in COUNTS.items():
        shades, labels = draw.integers(0, 256, (count, 28, 28)), draw.integers(0, 10, count)
        write(tmp_path / f"{stem}-images-idx3-ubyte.gz", idx(shades))
        write(tmp_path / f"{stem}-labels-idx1-ubyte.gz", idx(labels))
        parts[stem] = shades, labels
    return parts


def test_every_pixel_and_label_comes_back_in_its_split(
    made: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    data = parse(PACK, tmp_path)
    assert (data.name, data.source, data.classes) == ("fashion-mnist", "fashion-mnist", PACK.classes)
    names = [f"train-{number:05d}" for number in range(40)]
    assert [record.id for record in data.train] == [name for name in names if carve_validation(name) == "train"]
    assert [record.id for record in data.validation] == [
        name for name in names if carve_validation(name) == "validation"
    ]
    assert data.train and data.validation
    assert [record.id for record in data.test] == [f"test-{number:05d}" for number in range(7)]
    for record in (*data.train, *data.validation, *data.test):
        part, _, number = record.id.partition("-")
        shades, labels = made["t10k" if part == "test" else part]
        assert isinstance(record.inputs["image"], bytes)
        image = Image.open(io.BytesIO(record.inputs["image"]))
        assert (image.format, image.mode, record.label) == ("PNG", "L", labels[int(number)])
        assert np.array_equal(np.asarray(image), shades[int(number)])


HEAD = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])


def test_the_format_to_the_byte(tmp_path: Path) -> None:
    assert read_idx(write(tmp_path / "a.gz", HEAD + bytes(range(6))), 3).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no IDX file of unsigned bytes in 2 dimensions: it begins with ''"),
        (HEAD[:7], "begins with '00000802000000', not '00000802' and 2 sizes"),
        (HEAD[:11], "no IDX file"),
        (b"\x01" + HEAD[1:] + bytes(6), "begins with '010008020000000200000003'"),
        (b"\x00\x01" + HEAD[2:] + bytes(6), "no IDX file"),
        (b"\x00\x00\x09" + HEAD[3:] + bytes(6), "no IDX file"),
        (b"\x00\x00\x08\x01" + HEAD[4:] + bytes(6), "no IDX file"),
        (b"\x00\x00\x08\x03" + HEAD[4:] + bytes(6), "no IDX file"),
        (HEAD[:-1] + b"\x02" + bytes(6), r"items of size \(2,\), not \(3,\)"),
        (HEAD + bytes(5), r"holds 5 values, not those of its sizes \(2, 3\)"),
        (HEAD + bytes(7), r"holds 7 values, not those of its sizes \(2, 3\)"),
        (HEAD, "holds 0 values"),
        (HEAD[:4] + b"\xff" * 4 + HEAD[8:] + bytes(6), r"holds 6 values, not those of its sizes \(4294967295, 3\)"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    path = write(tmp_path / "a.gz", content)
    with pytest.raises(DataError, match=f"a.gz .*{fault}.*; fetch the pack again"):
        read_idx(path, 3)


@pytest.mark.parametrize("change", ["plain", "cut", "body", "absent"])
def test_what_is_no_gzip_is_refused(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "a.gz", HEAD + np.random.default_rng(0).bytes(6))
    raw = path.read_bytes()
    changed = {"plain": HEAD, "cut": raw[:-9], "body": raw[:12] + b"\xff\xff" + raw[14:]}
    if change == "absent":
        path.unlink()
    else:
        path.write_bytes(changed[change])
    with pytest.raises(DataError, match=r"a\.gz cannot be read as gzip \(.+\); fetch the pack again"):
        read_idx(path, 3)


@pytest.mark.usefixtures("made")
def test_each_image_has_one_label_and_a_known_one(tmp_path: Path) -> None:
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    write(labels, idx(np.zeros(39)))
    with pytest.raises(DataError, match="has 40 train images and 39 labels; fetch the pack again"):
        parse(PACK, tmp_path)
    write(labels, idx(np.full(40, 10)))
    with pytest.raises(DataError, match="label 10"):
        parse(PACK, tmp_path)


@pytest.mark.packs
def test_the_real_images() -> None:
    data = load("fashion-mnist")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [54_044, 5_956, 10_000]
    both = Counter(record.label for record in (*data.train, *data.validation))
    assert both == dict.fromkeys(range(10), 6000)
    assert Counter(record.label for record in data.test) == dict.fromkeys(range(10), 1000)
    assert [record.label for record in data.train[:8]] == [9, 0, 0, 3, 0, 2, 7, 2]
    assert [record.label for record in data.test[:8]] == [9, 2, 1, 1, 6, 1, 4, 6]
    with gzip.open(cache_folder() / PACK.folder / "t10k-images-idx3-ubyte.gz") as file:
        raw = file.read()
    for record in data.test[::500]:
        assert isinstance(record.inputs["image"], bytes)
        start = 16 + 784 * int(record.id.removeprefix("test-"))
        assert Image.open(io.BytesIO(record.inputs["image"])).tobytes() == raw[start : start + 784]
