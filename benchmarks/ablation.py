"""The fast engine with one of its parts switched off at a time: what each part is worth.

A part is switched off by putting the plain way in its place for the length of a run; nothing that is trained so is kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from s3t.resources import Resources

if TYPE_CHECKING:
    from torch import Tensor

Around = Callable[[], AbstractContextManager[object]]


def without_prefix() -> AbstractContextManager[object]:
    """All layers are computed for every batch; what is kept of a slice is its embeddings."""
    return _both("s3t.engine.fast.prefix_depth", lambda stages: 0, "s3t.building.prefix_depths", lambda stages: [0])


def without_reuse() -> AbstractContextManager[object]:
    """Every node computes the activations of its slices for itself, and uses them over its epochs alone."""
    from s3t.engine.activations import Activations

    def get(self: Activations, key: str, depth: int, make: Callable[[], Mapping[int, Any]]) -> Any:
        return make()[depth]

    return patch.object(Activations, "get", get)


def without_merging() -> AbstractContextManager[object]:
    """Adapters of earlier stages are applied beside the frozen weights, as PEFT does."""
    from s3t.engine import fast, lora

    def frozen(encoder: Any, stages: Sequence[Any], recipe: Any, adapters: Mapping[str, Any]) -> Any:
        beside: dict[int, Any] = {}
        for stage in stages:
            if stage.adapter in adapters:
                on_device = {n: t.to(encoder.backbone.device) for n, t in adapters[stage.adapter].items()}
                beside |= lora.deltas(encoder, stage, recipe, on_device)
        return encoder.layers, beside

    return patch.object(fast, "frozen", frozen)


def unsorted() -> AbstractContextManager[object]:
    """Batches are formed in the order of the epoch, whatever the lengths of their rows."""
    from s3t import building
    from s3t.graph import batches as real

    def batches(ids: Any, lengths: Any, epochs: float, recipe: Any, seed: int) -> Any:
        return real(ids, lengths, epochs, dataclasses.replace(recipe, window=1), seed)

    return patch.object(building, "batches", batches)


def stock_attention() -> AbstractContextManager[object]:
    """PyTorch's scaled_dot_product_attention in place of the written-out one."""
    from torch.nn import functional as F

    from s3t.engine import layers

    def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, batch: int, heads: int) -> Tensor:
        size = q.shape[1] // heads
        q, k, v = (y.reshape(batch, -1, heads, size).transpose(1, 2) for y in (q, k, v))
        mask = None if bias is None else bias.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).reshape(-1, heads * size)

    return patch.object(layers, "attention", attention)


def one_layout() -> AbstractContextManager[object]:
    """Frozen weights in one layout, through torch's linear."""
    from torch.nn import functional as F

    from s3t.engine.layers import Linear

    return patch.object(Linear, "__call__", lambda self, x: F.linear(x, self.weight, self.bias))


def plain_optimizer() -> AbstractContextManager[object]:
    """AdamW tensor by tensor instead of fused."""
    import torch

    plain = functools.partial(torch.optim.AdamW)
    return patch.object(torch.optim, "AdamW", lambda *given, **how: plain(*given, **how | {"fused": False}))


def compiled() -> AbstractContextManager[object]:
    """Layers of post-norm encoders compiled by torch's inductor, once for the process, for any shape."""
    from s3t.engine.layers import Layer

    return patch.object(Layer, "__call__", _compiled())


@functools.cache
def _compiled() -> Any:
    import torch

    from s3t.engine.layers import Layer

    return torch.compile(Layer.__call__, dynamic=True)


def unsynced() -> AbstractContextManager[object]:
    """Nodes' files are not forced to the disk: all that writing them off the critical path could save."""
    return _both("s3t.store.write_synced", _write, "s3t.store.sync_folder", _nothing)


def _nothing(*_: Any) -> None:
    return None


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@contextmanager
def _both(one: str, first: Any, two: str, second: Any) -> Iterator[None]:
    with patch(one, first), patch(two, second):
        yield


PARTS: dict[str, Around] = {
    "all layers for every batch": without_prefix,
    "activations per node": without_reuse,
    "adapters beside the weights": without_merging,
    "batches of any lengths": unsorted,
    "torch's attention": stock_attention,
    "one layout of the weights": one_layout,
    "plain AdamW": plain_optimizer,
    "files not forced to disk": unsynced,
}
"""What is switched off, or put in its place, by name."""

LONG: dict[str, Around] = {"compiled layers": compiled}
"""What takes minutes to begin."""

WORKERS = Resources(workers=2)
IN_FILES = Resources(cache_gb=0)
