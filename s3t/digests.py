"""Digests of tensors (docs/DERIVATION.md, "Digests"). torch is only touched through the tensors that are passed in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from s3t.records import canonical_json

if TYPE_CHECKING:
    from torch import Tensor


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 (hex) over names, dtypes, shapes and raw bytes of ``tensors``, in sorted order of names."""
    import torch

    summary = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        summary.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]) + b"\x00")
        if tensor.numel():
            summary.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return summary.hexdigest()
