"""Digests of tensors, of the slot key and of many leaves (docs/DERIVATION.md, "Digests" and "Records").

torch is only touched through the tensors that are passed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
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


def key_commitment(key: bytes) -> str:
    """Return the SHA-256 (hex) that commits a run to its slot key without telling it."""
    return hashlib.sha256(b"s3t slot key v1\x00" + key).hexdigest()


def merkle_root(leaves: Iterable[bytes]) -> str:
    """Return the root (hex) of the Merkle tree over ``leaves`` in their order (RFC 6962, section 2.1, with SHA-256).

    Memory grows with the logarithm of their number: only the roots of complete subtrees, of sizes that differ, are kept.
    """
    complete: list[tuple[int, bytes]] = []
    for leaf in leaves:
        size, root = 1, hashlib.sha256(b"\x00" + leaf).digest()
        while complete and complete[-1][0] == size:
            size, root = 2 * size, _joined(complete.pop()[1], root)
        complete.append((size, root))
    if not complete:
        return hashlib.sha256(b"").hexdigest()
    root = complete.pop()[1]
    while complete:
        root = _joined(complete.pop()[1], root)
    return root.hex()


def _joined(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
