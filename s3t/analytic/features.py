"""A record's features: what chosen layers of the frozen backbone make of it alone, quantised to integers.

Each record passes the backbone in a batch of its own, so no other record can move a bit of its features; and they are quantised
by constants that are declared before any record is seen. Layers' outputs are taken as they leave the layer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3t.analytic.head import LEVELS, AnalyticHead
from s3t.analytic.sums import Features
from s3t.backbone import Backbone, Encoded
from s3t.errors import DataError, LayoutError, ModelError


def check_backbone(backbone: Backbone, head: AnalyticHead) -> None:
    """Raise LayoutError if ``head`` names layers that the backbone has not, ModelError if that predicts texts."""
    if backbone.predicts_text:
        raise ModelError(
            f"{backbone.name!r} is loaded to predict texts; an analytic head answers with classes or numbers"
        )
    beyond = [layer for layer in head.layers if layer >= backbone.layers]
    if beyond:
        raise LayoutError(f"the head reads layer {beyond[0]}, but {backbone.name!r} has 0..{backbone.layers - 1}")


class Reader:
    """Makes features on ``backbone`` as ``head`` declares; ``seed``: of its random features.

    Raises as :func:`check_backbone`.
    """

    def __init__(self, backbone: Backbone, head: AnalyticHead, seed: int) -> None:
        check_backbone(backbone, head)
        self._backbone = backbone
        self._head = head
        self._layers = head.layers or tuple(range(backbone.layers))
        self.size = head.size(backbone.layers, backbone.hidden)
        self._drawn: Tensor | None = None
        if head.random:
            inputs = self.size - head.random
            generator = torch.Generator().manual_seed(seed % 2**63)
            drawn = torch.randn(inputs, head.random, generator=generator, dtype=torch.float32)
            self._drawn = drawn / inputs**0.5

    def read(self, rows: Sequence[Encoded]) -> Features:
        """Return the features of encoded records: (rows, size), int16. DataError if one is not finite."""
        out = np.zeros((len(rows), self.size), np.int16)
        for i, row in enumerate(rows):
            out[i] = self._quantised(self._plain(row), i)
        return out

    def _plain(self, row: Encoded) -> Tensor:
        with torch.no_grad(), self._outputs() as layers:
            self._backbone.model(**self._backbone.collate([row]))
            parts = [_pooled(layers[layer], how) for layer in self._layers for how in self._head.poolings]
        plain = torch.cat(parts).float().cpu()
        return plain if self._drawn is None else torch.cat([plain, (plain @ self._drawn).relu()])

    @contextmanager
    def _outputs(self) -> Iterator[dict[int, Tensor]]:
        """Catch what the layers make of one record in this thread, (tokens, hidden) each; others may use the model too."""
        found: dict[int, Tensor] = {}
        here = threading.get_ident()

        def keep(layer: int) -> Any:
            def hook(module: Any, given: Any, made: Any) -> None:
                if threading.get_ident() == here:
                    found[layer] = (made if isinstance(made, Tensor) else made[0])[0]

            return hook

        modules = self._backbone.layer_modules(self._backbone.model)
        handles = [modules[layer].register_forward_hook(keep(layer)) for layer in self._layers]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _quantised(self, plain: Tensor, position: int) -> Features:
        if not bool(torch.isfinite(plain).all()):
            raise DataError(f"record {position} has a feature that is not finite: what is wrong with its input?")
        # Dividing by a power of two is exact; halves go to the even integer.
        scaled = torch.round(plain.double() / self._head.step).clamp(-LEVELS, LEVELS)
        out: Features = scaled.to(torch.int16).numpy()
        return out


def _pooled(tokens: Tensor, how: str) -> Tensor:
    """Return one row (hidden,) from a record's ``tokens`` (tokens, hidden): there is no padding among them."""
    if how == "mean":
        return tokens.mean(0)
    if how == "max":
        return tokens.amax(0)
    return tokens[0] if how == "first" else tokens[-1]
