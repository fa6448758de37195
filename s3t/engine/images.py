"""Images as the fast engine reads them: on the device once per data set, resized, flipped and normalised there.

A flip is drawn for each visit of a record from the node's seed alone (never from a generator that rows share), so an image
has two versions and no more: both pass the frozen prefix once per slice, and a node's batches choose. No torchvision.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3t.backbone import Backbone, Encoded, Family
from s3t.digests import tensors_digest
from s3t.errors import DataError, ModelError
from s3t.records import Inputs, canonical_json
from s3t.training import Row

VIT = Family("layers", ("q_proj", "v_proj"))


@dataclass(frozen=True, eq=False)
class Picture(Encoded):
    """One image: ``pixels`` (channels, height, width), uint8, on the device; ``flipped``: to be read left to right.

    ``length`` counts its patches and the class token.
    """

    pixels: Tensor
    flipped: bool = False


@dataclass(frozen=True)
class ImageBackbone(Backbone):
    """A frozen vision transformer. Images become ``size`` pixels squared, then (x / 255 - ``mean``) / ``deviation``."""

    size: int = 224
    tokens: int = 197
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)

    def resident(self, images: Tensor) -> list[Encoded]:
        """Move ``images`` (number, channels, height, width), uint8, to the device once; rows are views of them.

        DataError for another type or shape.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != len(self.mean):
            raise DataError(
                f"images of type {images.dtype} and shape {tuple(images.shape)} do not fit; give uint8 of shape "
                f"(number, {len(self.mean)}, height, width)"
            )
        return [Picture({}, self.tokens, pixels) for pixels in images.to(self.device)]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Return ``pixel_values`` (rows, channels, size, size), float32: resized as PIL's bilinear filter does, unrounded."""
        pictures = [row for row in rows if isinstance(row, Picture)]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, picture in enumerate(pictures):
            by_shape.setdefault(tuple(picture.pixels.shape), []).append(i)
        out = torch.empty(len(pictures), len(self.mean), self.size, self.size, device=self.device)
        for same in by_shape.values():
            raw = torch.stack([pictures[i].pixels for i in same]).float()
            square = (self.size, self.size)
            out[same] = F.interpolate(raw, square, mode="bilinear", align_corners=False, antialias=True)
        if flipped := [i for i, picture in enumerate(pictures) if picture.flipped]:
            out[flipped] = out[flipped].flip(3)
        mean, deviation = (torch.tensor(x, device=self.device).view(-1, 1, 1) for x in (self.mean, self.deviation))
        return {"pixel_values": (out / 255.0 - mean) / deviation}


def image_backbone(model: nn.Module, name: str, device: torch.device, *, digest: str = "") -> ImageBackbone:
    """Return a bare ViT of transformers as a base model. ``digest``: empty takes that of its weights.

    Raises ModelError for another model.
    """
    config = getattr(model, "config", None)
    if config is None or config.model_type != "vit":
        raise ModelError(
            f"a {type(model).__name__} is no vision transformer that the fast engine knows; give a ViTModel"
        )
    model.requires_grad_(False).eval().to(device)
    return ImageBackbone(
        name=name,
        model=model,
        family=VIT,
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        digest=digest or tensors_digest(model.state_dict()),
        device=device,
        encoder=_no_text,
        pad={},
        size=int(config.image_size),
        tokens=(int(config.image_size) // int(config.patch_size)) ** 2 + 1,
    )


def with_flips(
    rows: Sequence[Row], ids: Sequence[str], batches: Sequence[Sequence[int]], seed: int
) -> tuple[list[Row], list[list[int]]]:
    """Return ``rows`` followed by themselves flipped, and ``batches`` with a version drawn for each visit.

    The draw is a function of ``seed``, how often the row was visited before, and its id: with probability 1/2 flipped.
    DataError for a row that is no image.
    """
    other = []
    for row, name in zip(rows, ids, strict=True):
        if not isinstance(row.encoded, Picture):
            raise DataError(f"record {name!r} is no image, so it cannot be flipped")
        other.append(replace(row, encoded=replace(row.encoded, flipped=True)))
    visits: Counter[int] = Counter()
    drawn = []
    for batch in batches:
        drawn.append([i + len(rows) * _flip(seed, visits[i], ids[i]) for i in batch])
        visits.update(batch)
    return [*rows, *other], drawn


def _flip(seed: int, visit: int, name: str) -> int:
    return hashlib.sha256(canonical_json(["s3t flip v1", seed, visit, name])).digest()[0] & 1


def _no_text(inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
    raise DataError("this model reads images; hand them over through resident()")
