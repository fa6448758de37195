"""Images: what is decoded, what is refused, and that a run of them is a run like any other."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from s3t.backbone import load
from s3t.data.decoding import decode as read
from s3t.errors import DataError, ModelError
from s3t.images import EncodedImage, ImageBackbone, image_backbone


def decode(data: bytes, size: int) -> torch.Tensor:
    return torch.from_numpy(read(data, size)).permute(2, 0, 1)


def file(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def shades(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def tiny_vit() -> ImageBackbone:
    found = load("tiny-vit", torch.device("cpu"))
    assert isinstance(found, ImageBackbone)
    return found


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    image = shades(6, 4).convert(mode)
    pixels = decode(file(image, "TIFF"), 16)
    assert pixels.shape == (3, 4, 6) and pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1))


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert decode(file(image), 16)[:, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]
    grey = Image.new("LA", (1, 1), (7, 0))
    assert decode(file(grey), 16).flatten().tolist() == [255, 255, 255]


def test_an_image_is_turned_upright_and_only_its_first_frame_is_read() -> None:
    image, exif = shades(6, 4), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode(file(image, "PNG", exif=exif), 16).shape == (3, 6, 4)
    moving = file(Image.new("L", (3, 3), 9), "GIF", save_all=True, append_images=[Image.new("L", (3, 3), 200)])
    assert decode(moving, 16).unique().tolist() == [9]


def test_a_large_image_is_brought_to_size_and_a_small_one_is_not() -> None:
    assert decode(file(shades(40, 30)), 16).shape == (3, 16, 16)
    assert decode(file(shades(5, 50)), 16).shape == (3, 50, 5)
    wanted = shades(40, 30).resize((16, 16), Image.Resampling.BILINEAR)
    assert torch.equal(decode(file(shades(40, 30)), 16), torch.from_numpy(np.asarray(wanted).copy()).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no image that can be read"),
        (b"no image", r"8 bytes are no image that can be read \(of no known kind\); give PNG"),
        (file(Image.new("I;16", (2, 2))), "an image of mode I;16 is not read; convert it to 8 bits a channel"),
        (file(Image.new("F", (2, 2)), "TIFF"), "an image of mode F is not read"),
        (file(shades(3, 3), "EPS"), r"bytes are no image that can be read \(of no known kind\)"),
        (file(shades(3, 3), "TGA"), r"bytes are no image that can be read \(of no known kind\)"),
        (file(shades(30, 30))[:200], "200 bytes are no image that can be read"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(data, 16)


@pytest.mark.parametrize("most", [3, 6])
def test_a_decompression_bomb_is_refused(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns beyond its bound, and raises beyond twice that."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(DataError, match="decompression bomb"), warnings.catch_warnings():
        decode(file(shades(4, 2)), 16)


def test_inputs_without_an_image_are_named_by_position(tiny_vit: ImageBackbone) -> None:
    good = {"image": file(shades(4, 4))}
    with pytest.raises(DataError, match="input 1 has no image; this model reads a field 'image'"):
        tiny_vit.encode([good, {"text": "a cat"}], 32)
    with pytest.raises(DataError, match="input 1: 3 bytes are no image"):
        tiny_vit.encode([good, {"image": b"cat"}], 32)
    with pytest.raises(DataError, match="input 0 has no text"):
        load("tiny", torch.device("cpu")).encode([good], 32)


def test_an_image_does_not_depend_on_its_batch(tiny_vit: ImageBackbone) -> None:
    rows = tiny_vit.encode([{"image": file(shades(*size))} for size in ((4, 4), (9, 5), (30, 30), (9, 5))], 32)
    together = tiny_vit.collate(rows)["pixel_values"]
    assert together.shape == (4, 3, 16, 16)
    for i, row in enumerate(rows):
        assert torch.equal(together[i], tiny_vit.collate([row])["pixel_values"][0])


def test_an_image_travels_to_a_worker_as_bytes(tiny_vit: ImageBackbone) -> None:
    (row,) = tiny_vit.encode([{"image": file(shades(5, 4))}], 32)
    other = pickle.loads(pickle.dumps(row))
    assert isinstance(row, EncodedImage) and isinstance(other, EncodedImage)
    assert torch.equal(row.pixels, other.pixels) and (other.length, other.flipped) == (row.length, False)


def test_a_vision_model_from_a_folder_with_its_processors_settings(tmp_path: Path) -> None:
    model: Any = load("tiny-dinov2", torch.device("cpu")).model
    model.save_pretrained(tmp_path)
    plain = load(str(tmp_path), torch.device("cpu"))
    assert isinstance(plain, ImageBackbone)
    assert (plain.size, plain.mean, plain.tokens) == (16, (0.5, 0.5, 0.5), 17)
    settings = (
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 32}, "crop_size": 24}'
    )
    (tmp_path / "preprocessor_config.json").write_text(settings)
    told = load(str(tmp_path), torch.device("cpu"))
    assert isinstance(told, ImageBackbone)
    assert (told.size, told.mean, told.deviation, told.tokens) == (24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 37)
    assert told.digest != plain.digest, "how images are read is part of the base model"
    bare = image_backbone(told.model, "x", torch.device("cpu"), settings={"do_normalize": False})
    assert (bare.mean, bare.deviation) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_other_models_are_no_vision_models() -> None:
    with pytest.raises(ModelError, match=r"a BertModel is no vision transformer.*; known are deit, dinov2, vit"):
        image_backbone(load("tiny", torch.device("cpu")).model, "x", torch.device("cpu"))


def test_torchvision_is_never_imported() -> None:
    """LIBRARIES: importing it can fail where torch's build differs; nothing here may ask for it."""
    code = (
        "import sys; sys.modules['torchvision'] = None; import torch; from s3t.backbone import load; "
        "import s3t.images, baselines.stock.images, benchmarks.large; b = load('tiny-vit', torch.device('cpu')); "
        "print(b.layers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["4"], done.stderr
