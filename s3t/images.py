"""Images as base models read them: kept as a byte per channel, resized and normalised on the device. No torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3t.backbone import FAMILIES, Backbone, Encoded
from s3t.data.decoding import decode
from s3t.digests import tensors_digest
from s3t.errors import DataError, ModelError
from s3t.records import Inputs, canonical_json, sha256


@dataclass(frozen=True, eq=False)
class EncodedImage(Encoded):
    """One image: ``pixels`` (channels, height, width), uint8; ``flipped``: to be read left to right.

    ``length`` counts its patches and what stands before them, so it is the same for all images of a model.
    """

    pixels: Tensor
    flipped: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to worker processes as plain bytes, not as a tensor in shared memory."""
        return _image, (self.length, self.pixels.cpu().numpy(), self.flipped)


def _image(length: int, pixels: Any, flipped: bool) -> EncodedImage:
    return EncodedImage({}, length, torch.from_numpy(pixels), flipped)


@dataclass(frozen=True)
class ImageBackbone(Backbone):
    """A frozen vision transformer. Images become ``size`` pixels squared, then (x / 255 - ``mean``) / ``deviation``."""

    size: int = 224
    tokens: int = 197
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)

    def encode(self, inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
        """Decode each input's field ``image``, the bytes of an image file, on its own (:func:`decode`).

        ``max_length`` does not apply. DataError, naming the input's position, for one without a readable image.
        """
        rows: list[Encoded] = []
        for position, fields in enumerate(inputs):
            data = fields.get("image")
            if not isinstance(data, bytes):
                raise DataError(
                    f"input {position} has no image; this model reads a field 'image', an image file's bytes"
                )
            try:
                rows.append(EncodedImage({}, self.tokens, _pixels(data, self.size)))
            except DataError as error:
                raise DataError(f"input {position}: {error}") from error
        return rows

    def resident(self, images: Tensor) -> list[Encoded]:
        """Move ``images`` (number, channels, height, width), uint8, to the device once; rows are views of them.

        DataError for another type or shape.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != len(self.mean):
            raise DataError(
                f"images of type {images.dtype} and shape {tuple(images.shape)} do not fit; give uint8 of shape "
                f"(number, {len(self.mean)}, height, width)"
            )
        return [EncodedImage({}, self.tokens, pixels) for pixels in images.to(self.device)]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Return ``pixel_values`` (rows, channels, size, size), float32: resized as PIL's bilinear filter does, unrounded."""
        images = [row for row in rows if isinstance(row, EncodedImage)]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_shape.setdefault(tuple(image.pixels.shape), []).append(i)
        out = torch.empty(len(images), len(self.mean), self.size, self.size, device=self.device)
        for same in by_shape.values():
            raw = torch.stack([images[i].pixels for i in same]).to(self.device).float()
            square = (self.size, self.size)
            out[same] = F.interpolate(raw, square, mode="bilinear", align_corners=False, antialias=True)
        if flipped := [i for i, image in enumerate(images) if image.flipped]:
            out[flipped] = out[flipped].flip(3)
        mean, deviation = (torch.tensor(x, device=self.device).view(-1, 1, 1) for x in (self.mean, self.deviation))
        return {"pixel_values": (out / 255.0 - mean) / deviation}


def image_backbone(
    model: nn.Module, name: str, device: torch.device, *, digest: str = "", settings: Mapping[str, Any] | None = None
) -> ImageBackbone:
    """Return a bare vision transformer of transformers as a base model.

    ``settings``: those of its image processor, of which ``image_mean``, ``image_std``, ``do_normalize`` and the size are
    used; without them mean and deviation are 1/2 and the size is the model's. ViT and DeiT have one size, DINOv2 any.
    ``digest``: empty takes that of weights and settings used. Raises ModelError for another model.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", "")
    if kind not in FAMILIES or FAMILIES[kind].reads != "image":
        known = ", ".join(sorted(kind for kind, family in FAMILIES.items() if family.reads == "image"))
        raise ModelError(f"a {type(model).__name__} is no vision transformer that is known here; known are {known}")
    model.requires_grad_(False).eval().to(device)
    family, told = FAMILIES[kind], settings or {}
    plain = told.get("do_normalize") is False
    mean = (0.0, 0.0, 0.0) if plain else tuple(map(float, told.get("image_mean") or (0.5, 0.5, 0.5)))
    deviation = (1.0, 1.0, 1.0) if plain else tuple(map(float, told.get("image_std") or (0.5, 0.5, 0.5)))
    size = _size(told) if kind == "dinov2" else 0
    size = size or int(config.image_size)
    patches = (size // int(config.patch_size)) ** 2
    if not patches or len(mean) != 3 or len(deviation) != 3 or int(config.num_channels) != 3:
        raise ModelError(
            f"model {name!r} reads images of {config.num_channels} channels and {size} pixels; 3 are wanted"
        )
    used = sha256(canonical_json([tensors_digest(model.state_dict()), size, mean, deviation]))
    return ImageBackbone(
        name=name,
        model=model,
        family=family,
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        digest=digest or used,
        device=device,
        encoder=_no_text,
        pad={},
        size=size,
        tokens=patches + (2 if kind == "deit" else 1),
        mean=mean,
        deviation=deviation,
    )


def _size(settings: Mapping[str, Any]) -> int:
    """Return the height that an image processor's settings bring images to, 0 if they do not say."""
    for field in ("crop_size", "size"):
        value = settings.get(field)
        if isinstance(value, Mapping):
            value = value.get("height") or value.get("shortest_edge")
        if isinstance(value, int) and value > 0:
            return value
    return 0


def _pixels(data: bytes, size: int) -> Tensor:
    return torch.from_numpy(decode(data, size)).permute(2, 0, 1).contiguous()


def _no_text(inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
    raise DataError("this model reads images, which have no tokens")
