"""Images as records: folders per class, columns of paths, and the hub's image columns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from s3t.data import load, load_images
from s3t.data.image_folders import is_image_folder
from s3t.data.local import load_local
from s3t.data.splits import carve_test, carve_validation, three_way
from s3t.data.tasks import TASKS, find_task
from s3t.errors import DataError


def image(number: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    shade = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(shade).save(out, kind)
    return out.getvalue()


def fill(folder: Path, count: int, classes: tuple[str, ...] = ("cat", "dog"), start: int = 0) -> Path:
    """Write ``count`` images to a folder per class, and a file that is none to each."""
    for number in range(start, start + count):
        place = folder / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.png").write_bytes(image(number))
        (place / ".hidden.png").write_bytes(b"x")
        (place / "notes.txt").write_text("no image")
    return folder


def test_a_folder_per_class_is_split_by_a_hash_of_the_path(tmp_path: Path) -> None:
    data = load(fill(tmp_path / "pets", 60))
    every = sorted(f"{('cat', 'dog')[n % 2]}/{n:03d}.png" for n in range(60))
    for split in ("train", "validation", "test"):
        assert [record.id for record in getattr(data, split)] == [name for name in every if three_way(name) == split]
    assert (data.name, data.classes, data.source) == ("pets", ("cat", "dog"), str(tmp_path / "pets"))
    for record in data.train:
        number = int(record.id[4:7])
        assert record.inputs == {"image": image(number)} and record.label == number % 2
    assert load(data.source).digest == data.digest


@pytest.mark.parametrize(
    ("folders", "carve"),
    [(("train", "val", "test"), None), (("train", "test"), carve_validation), (("train", "dev"), carve_test)],
)
def test_folders_per_split(tmp_path: Path, folders: tuple[str, ...], carve: Any) -> None:
    for place, name in enumerate(folders):
        root = tmp_path / "pets" / name
        for number in range(20 * place, 20 * place + 20):
            (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            (root / "ab"[number % 2] / f"{number:03d}.png").write_bytes(image(number))
    data = load(tmp_path / "pets")
    first = sorted(f"{'ab'[n % 2]}/{n:03d}.png" for n in range(20))
    assert [r.id for r in data.train] == [name for name in first if carve is None or carve(name) == "train"]
    assert len(data.train) + len(data.validation) + len(data.test) == 20 * len(folders)
    assert data.classes == ("a", "b")


def test_classes_come_from_what_is_never_deleted_or_are_declared(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    fill(root / "train", 6, ("cat", "dog", "eel"))
    fill(root / "test", 4, ("cat", "dog"), 10)
    with pytest.raises(DataError, match=r"eel is of class 'eel', which is not among \['cat', 'dog'\]; declare all"):
        load(root)
    assert load(root, classes=("eel", "dog", "cat")).classes == ("eel", "dog", "cat")
    assert load(root, classes=("eel", "dog", "cat")).source.endswith("pets?classes=eel&classes=dog&classes=cat")


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", 40)
    (root / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad.png is not usable: 8 bytes are no image"):
        load(root)
    (root / "cat" / "bad.png").unlink()
    (tmp_path / "outside.png").write_bytes(image(1))
    (root / "cat" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"link.png leads out of .*pets; give a path below it"):
        load(root)
    (root / "cat" / "link.png").unlink()
    with pytest.raises(DataError, match="has no columns or files to name; leave out label, text"):
        load(root, text="a", label="b")
    with pytest.raises(DataError, match="at least 2 distinct ones are needed"):
        load(root, classes=("cat",))
    with pytest.raises(DataError, match="there is no folder"):
        load_images(tmp_path / "none")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "empty" / "dog").mkdir()
    with pytest.raises(DataError, match="leaves no images to train on"):
        load_images(tmp_path / "empty")


def test_a_file_of_two_splits_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "train", 4)
    fill(tmp_path / "pets" / "test", 4)
    with pytest.raises(DataError, match=r"record id 'cat/000.png' occurs in train and in test; rename one"):
        load(tmp_path / "pets")


def test_a_folder_of_tables_is_none_of_images(tmp_path: Path) -> None:
    fill(tmp_path / "pets", 4)
    assert is_image_folder(tmp_path / "pets")
    (tmp_path / "pets" / "rows.parquet").write_bytes(b"")
    assert not is_image_folder(tmp_path / "pets")
    (tmp_path / "plain" / "sub").mkdir(parents=True)
    assert not is_image_folder(tmp_path / "plain")


def test_a_column_of_paths(tmp_path: Path) -> None:
    fill(tmp_path / "shots", 40)
    lines = [f"shots/{('cat', 'dog')[n % 2]}/{n:03d}.png,{n % 2},person{n % 7}" for n in range(40)]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["file,kind,who", *lines]))
    data = load_local(table, image="file", label="kind", group="who", classes=("0", "1"))
    records = (*data.train, *data.validation, *data.test)
    assert len(records) == 40 and all(set(record.inputs) == {"image"} for record in records)
    assert load(data.source).digest == data.digest and "image=file" in data.source
    table.write_text("\n".join(["file,kind", "../secret.png,0", *(line.rpartition(",")[0] for line in lines)]))
    (tmp_path.parent / "secret.png").write_bytes(image(0))
    with pytest.raises(DataError, match=r"secret.png leads out of"):
        load_local(table, image="file", label="kind", classes=("0", "1"))
    table.write_text("\n".join(["file,kind", "shots/none.png,0", *(line.rpartition(",")[0] for line in lines)]))
    with pytest.raises(
        DataError, match=r"none.png cannot be read \(No such file or directory\); give the path of an image"
    ):
        load_local(table, image="file", label="kind", classes=("0", "1"))


@pytest.mark.parametrize("column", ["image", "img"])
def test_the_hubs_column_of_images_is_not_decoded(tmp_path: Path, column: str) -> None:
    datasets.disable_progress_bars()
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    (tmp_path / "data").mkdir()
    for split, count in (("train", 12), ("test", 4)):
        rows = {
            column: [{"bytes": image(n), "path": None} for n in range(count)],
            "label": [n % 2 for n in range(count)],
        }
        made = datasets.Dataset.from_dict(rows, features=features)
        made.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    data = load(tmp_path)
    assert data.classes == ("no", "yes") and len(data.train) + len(data.validation) == 12
    assert [record.inputs for record in data.test] == [{"image": image(n)} for n in range(4)]
    assert load(tmp_path, text=column).digest == data.digest


def test_a_bad_image_of_the_hub_is_named_and_no_file_outside_is_read(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    (tmp_path / "outside.png").write_bytes(image(1))
    cases = (
        ({"bytes": b"no image", "path": None}, "record 'train-0000003' of .* is not usable: 8 bytes are no image"),
        ({"bytes": None, "path": str(tmp_path / "outside.png")}, "outside.png leads out of .*hub"),
    )
    for number, (bad, message) in enumerate(cases):
        folder = tmp_path / f"hub-{number}"
        (folder / "data").mkdir(parents=True)
        cells = [{"bytes": image(n), "path": None} for n in range(6)]
        cells[3] = bad
        made = datasets.Dataset.from_dict({"image": cells, "label": [n % 2 for n in range(6)]}, features=features)
        made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        with pytest.raises(DataError, match=message):
            load(folder)


def test_image_sets_have_names() -> None:
    assert {name for name in TASKS if name.startswith("images/")} == {
        f"images/{name}" for name in ("mnist", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet")
    }
    fine = find_task("images/cifar100")
    assert fine is not None and (fine.path, fine.columns, fine.label) == ("uoft-cs/cifar100", "img", "fine_label")
    with pytest.raises(
        DataError, match=r"task 'images/cifar-10' is unknown \(did you mean 'cifar10'\?\); images has mnist"
    ):
        find_task("images/cifar-10")
