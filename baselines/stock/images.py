"""Images for the stock pipeline: PIL transforms in loader workers and a vision transformer, as published S3T trains them.

Source: arXiv 2406.16257, section 4 (ViT, 224 pixels, LoRA on query and value). No torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from baselines.stock.model import Base
from s3t.errors import DataError, ModelError

Raster = Image.Image | np.ndarray[Any, np.dtype[np.uint8]]
Transform = Callable[[Image.Image], Tensor]

_PAIRS = (("query", "value"), ("q_proj", "v_proj"))
"""How versions of transformers call the query and value projections of a ViT."""


class Preprocess:
    """Resize to ``size`` pixels squared, flip left to right with probability ``flip``, normalise: (3, size, size), float32."""

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        deviation: Sequence[float] = (0.5, 0.5, 0.5),
        *,
        flip: float = 0.5,
    ) -> None:
        if size < 1 or not 0.0 <= flip <= 1.0:
            raise DataError(
                f"size={size!r} with flip={flip!r} is not possible: give at least one pixel, and 0 <= flip <= 1"
            )
        self.size, self.flip = size, flip
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.deviation = torch.tensor(deviation).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform one image; the flip is drawn from torch's generator, which loader workers seed."""
        image = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.flip and float(torch.rand(())) < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32) / 255.0
        return (pixels - self.mean) / self.deviation


class Images(Sequence[Mapping[str, Any]]):
    """Images and labels as examples, transformed each time they are read (so in the loader's workers).

    ``images``: PIL images, or uint8 arrays of shape (height, width, 3). DataError for another kind or unequal numbers.
    """

    def __init__(self, images: Sequence[Raster], labels: Sequence[int], transform: Transform) -> None:
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images do not fit {len(labels)} labels; give one label per image")
        for position, image in enumerate(images):
            array = (
                isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            )
            if not (array or isinstance(image, Image.Image)):
                raise DataError(
                    f"image {position} is a {type(image).__name__}; give PIL images or uint8 arrays (height, width, 3)"
                )
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Any) -> Any:
        """Return ``pixel_values`` and ``labels`` of one image."""
        image = self.images[position]
        opened = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return {"pixel_values": self.transform(opened), "labels": self.labels[position]}


def image_base(model: nn.Module, device: torch.device | None = None) -> Base:
    """Return a ViT of transformers (bare, or the body of a classifier) as a base; features are its class token.

    Raises ModelError for a model that is no ViT.
    """
    body = cast(nn.Module, getattr(model, "vit", model))
    lists = {name: module for name, module in body.named_modules() if isinstance(module, nn.ModuleList)}
    place = next((name for name in ("layers", "encoder.layer") if name in lists), None)
    config: Any = getattr(body, "config", None)
    if place is None or getattr(config, "model_type", "") != "vit":
        raise ModelError(f"a {type(model).__name__} is not a vision transformer that this pipeline knows; give a ViT")
    layers = lists[place]
    inside = {name.rsplit(".", 1)[-1] for name, _ in layers[0].named_modules()}
    targets = next(pair for pair in _PAIRS if inside.issuperset(pair))
    body = body.requires_grad_(False).eval().to(device or torch.device("cpu"))
    where = device or torch.device("cpu")
    return Base(body, place, len(layers), int(config.hidden_size), targets, where, class_token, stack, False)


def class_token(model: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
    """Return the last hidden state of the class token, shape (batch, hidden)."""
    return cast(Tensor, model(pixel_values=batch["pixel_values"]).last_hidden_state[:, 0])


def stack(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate examples: ``pixel_values`` (batch, 3, size, size) and ``labels`` (batch,)."""
    labels = torch.tensor([row["labels"] for row in rows])
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}
