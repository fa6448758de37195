"""The pack cifar10-test: images and classes of a task of BIG-bench, in splits with equal shares of every class."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s3t.data import load
from s3t.data.cifar import parse
from s3t.data.digits import png
from s3t.data.fetch import cache_folder
from s3t.data.packs import find
from s3t.errors import DataError

PACK = find("cifar10-test")


def example(shade: np.ndarray, label: int) -> dict[str, Any]:
    text = base64.b64encode(png(shade.astype(np.uint8))).decode()
    return {"input": text, "target_scores": {name: int(i == label) for i, name in enumerate(PACK.classes)}}


@pytest.fixture
def shades() -> np.ndarray:
    """Twenty images of each class, in the order of the classes."""
    return np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3))


@pytest.fixture
def task(shades: np.ndarray) -> dict[str, Any]:
    """Those images as a task."""
    return {"name": "base64", "examples": [example(shade, number // 20) for number, shade in enumerate(shades)]}


def write(folder: Path, task: object) -> Path:
    (folder / "task.json").write_text(json.dumps(task))
    return folder


def test_every_image_comes_back_with_its_class_once(shades: np.ndarray, task: dict[str, Any], tmp_path: Path) -> None:
    data = parse(PACK, write(tmp_path, task))
    labels = {shade.astype(np.uint8).tobytes(): number // 20 for number, shade in enumerate(shades)}
    records = (*data.train, *data.validation, *data.test)
    assert sorted(record.id for record in records) == [f"image-{number:05d}" for number in range(200)]
    for record in records:
        assert isinstance(record.inputs["image"], bytes)
        assert labels.pop(Image.open(io.BytesIO(record.inputs["image"])).tobytes()) == record.label
    assert not labels


def test_each_split_has_its_share_of_every_class(task: dict[str, Any], tmp_path: Path) -> None:
    data = parse(PACK, write(tmp_path, task))
    for split, share in ((data.train, 16), (data.validation, 2), (data.test, 2)):
        assert Counter(record.label for record in split) == dict.fromkeys(range(10), share)


def test_an_id_does_not_tell_the_class_though_the_file_is_sorted(task: dict[str, Any], tmp_path: Path) -> None:
    data = parse(PACK, write(tmp_path, task))
    records = sorted((*data.train, *data.validation, *data.test), key=lambda record: record.id)
    for first in range(0, 200, 20):
        assert len({record.label for record in records[first : first + 20]}) >= 5
    assert data == parse(PACK, tmp_path)


@pytest.mark.parametrize("change", [{"cat": 1}, {"truck": 0}, {"lorry": 0}, {"truck": 2}])
def test_other_scores_are_refused(task: dict[str, Any], tmp_path: Path, change: dict[str, int]) -> None:
    task["examples"][-1]["target_scores"].update(change)
    with pytest.raises(DataError, match=r"example 199 of .*task\.json has the scores .*, not a 1 for one class of 10"):
        parse(PACK, write(tmp_path, task))


def test_what_is_no_image_is_refused(task: dict[str, Any], tmp_path: Path) -> None:
    task["examples"][3]["input"] = "#" + task["examples"][3]["input"]
    with pytest.raises(DataError, match=r"the input of example 3 of .* is no base64 \(.+\); fetch the pack again"):
        parse(PACK, write(tmp_path, task))
    task["examples"][3]["input"] = "ABCD"
    with pytest.raises(DataError, match=r"the input of example 3 of .* is no PNG file; fetch the pack again"):
        parse(PACK, write(tmp_path, task))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"examples": [{"input": "x"}]}', '{"examples": [{"target_scores": {}}]}']
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(DataError, match=r"task\.json is no task of BIG-bench with scores \(.+\); fetch the pack again"):
        parse(PACK, tmp_path)


@pytest.mark.packs
def test_the_real_images() -> None:
    if not (cache_folder() / PACK.folder).is_dir():
        pytest.skip("pack cifar10-test is not in the cache, and is fetched on request alone: s3t fetch cifar10-test")
    data = load("cifar10-test")
    for split, share in ((data.train, 800), (data.validation, 100), (data.test, 100)):
        assert Counter(record.label for record in split) == dict.fromkeys(range(10), share)
    shape = set()
    for record in data.test:
        assert isinstance(record.inputs["image"], bytes)
        shape.add(Image.open(io.BytesIO(record.inputs["image"])).size)
    assert shape == {(32, 32)}
    assert data.digest == "2e73eede168a89dfc8d01eda5817c16c9ad0f116371da274536a8ce57f368acd"
