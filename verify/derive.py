"""Primitives of docs/DERIVATION.md, derived from that page alone: tags, slots, orders, seeds, batches, digests.

Nothing here is imported from the planner, so that an error of the planner cannot hide in its own checker. Pure
functions; only :func:`tensors_digest` touches torch.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Prefix = tuple[int, ...]


def encode(value: Any) -> bytes:
    """Return ``json(value)``: UTF-8, sorted keys, no spaces, no ASCII escaping."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def digest(value: Any) -> bytes:
    """Return the SHA-256 of ``json(value)``, 32 bytes."""
    return hashlib.sha256(encode(value)).digest()


def tag(key: bytes, name: str) -> str:
    """Return tag(id) in hex."""
    return hmac.new(key, b"s3t tag v1\x00" + name.encode(), hashlib.sha256).hexdigest()


def slot(key: bytes, name: str, shards: int, slices: int) -> tuple[int, int]:
    """Return slot(id): (shard, slice), both from 0."""
    group = name.split("\x1f")[0]
    mac = hmac.new(key, b"s3t slot v1\x00" + (group if group else name).encode(), hashlib.sha256).digest()
    return int.from_bytes(mac[:8], "big") % shards, int.from_bytes(mac[8:16], "big") % slices


def target(label: int | float, classes: Sequence[str]) -> int | float:
    """Return target(label): of a number in the range LOW:HIGH that a single class names, its place from -1 to 1."""
    if len(classes) > 1 or list(classes) == ["text"]:
        return label
    low, high = (float(end) for end in classes[0].split(":"))
    return (2.0 * label - low - high) / (high - low)


def commitment(salt: bytes, content: bytes) -> str:
    """Return commitment(record) in hex."""
    return hashlib.sha256(b"s3t row v1\x00" + salt + content).hexdigest()


def root(commitments: Sequence[str]) -> str:
    """Return the root that the ledger's create entry holds: that of the tree over the sorted ``commitments`` (hex)."""
    return merkle_root([bytes.fromhex(commitment) for commitment in sorted(commitments)])


def merkle_root(leaves: Sequence[bytes]) -> str:
    """Return the root (hex) of the Merkle tree over ``leaves`` in their order, level by level (RFC 6962, section 2.1).

    An odd node at the end of a level moves up as it is, which gives the tree that the RFC splits from the top.
    """
    sha = hashlib.sha256
    level = [sha(b"\x00" + leaf).digest() for leaf in leaves] or [sha(b"").digest()]
    while len(level) > 1:
        rest = level[-1:] if len(level) % 2 else []
        level = [sha(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)] + rest
    return level[0].hex()


def index_check(fields: Sequence[Any]) -> str:
    """Return the check of a row of the index of records, by its other fields in order."""
    return digest(list(fields)).hex()[:32]


def key_commitment(key: bytes) -> str:
    """Return the commitment to the slot key that the ledger's create entry holds, in hex."""
    return hashlib.sha256(b"s3t slot key v1\x00" + key).hexdigest()


def cyclic(slices: int, budget: int) -> tuple[Prefix, ...]:
    """Return ``cyclic(L, B)``: the first ``budget`` orders of ``branch``, each computed on its own."""
    return tuple(_branch(tuple(range(slices)), number) for number in range(budget))


def _branch(items: Prefix, number: int) -> Prefix:
    """Return order ``number`` of branch(items): of the rotation by number mod L, then order number // L of the rest."""
    if not items:
        return ()
    turn, rest = number % len(items), number // len(items)
    rotated = items[turn:] + items[:turn]
    return (rotated[0], *_branch(rotated[1:], rest))


def seed(run_seed: int, shard: int, prefix: Prefix, purpose: str) -> int:
    """Return seed(purpose) of the node (shard, prefix), in 0 .. 2^63 - 1."""
    return int.from_bytes(digest(["s3t seed v1", run_seed, shard, list(prefix), purpose])[:8], "big") % 2**63


def epoch_rows(ids: Sequence[str], batch_seed: int, epoch: int, epochs: float) -> list[str]:
    """Return the ids that epoch ``epoch`` reads, in shuffled order (steps 1 and 2)."""
    shuffled = sorted(ids, key=lambda name: digest(["s3t epoch v1", batch_seed, epoch, name]))
    share = epochs - math.floor(epochs)
    if share and epoch == math.ceil(epochs) - 1:
        return shuffled[: math.floor(share * len(ids) + 0.5)]
    return shuffled


def visited(ids: Sequence[str], batch_seed: int, epochs: float) -> frozenset[str]:
    """Return the ids that any epoch reads: all of them from one whole epoch on."""
    return frozenset(name for e in range(math.ceil(epochs)) for name in epoch_rows(ids, batch_seed, e, epochs))


def batches(
    ids: Sequence[str],
    lengths: Mapping[str, int],
    batch_seed: int,
    *,
    epochs: float,
    batch_size: int,
    window: int,
) -> list[list[str]]:
    """Return the batches of a node, all epochs in one list (steps 1 to 4), as lists of ids."""
    everything: list[list[str]] = []
    for epoch in range(math.ceil(epochs)):
        order = epoch_rows(ids, batch_seed, epoch, epochs)
        cut: list[list[str]] = []
        for start in range(0, len(order), window * batch_size):
            near = sorted(order[start : start + window * batch_size], key=lambda name: lengths[name])
            cut += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
        cut.sort(key=lambda batch: digest(["s3t batch v1", batch_seed, epoch, batch[0]]))
        everything += cut
    return everything


def node_key(
    run: Mapping[str, Any],
    *,
    shard: int,
    prefix: Prefix,
    parent: str | None,
    commitments: Sequence[str],
    environment: Mapping[str, Any],
) -> str:
    """Return the key of a node of ``run`` (the parsed run.json); ``commitments`` in row order."""
    return digest(
        {
            "format": 4,
            "kernel": run["kernel"],
            "parent": parent,
            "shard": shard,
            "prefix": list(prefix),
            "stage": run["plan"]["stages"][len(prefix) - 1],
            "rows": list(commitments),
            "recipe": run["recipe"],
            "seed": run["seed"],
            "base": run["model"]["digest"],
            "environment": environment,
        }
    ).hex()


def head_key(run: Mapping[str, Any], *, commitments: Sequence[str], environment: Mapping[str, Any]) -> str:
    """Return the key of the analytic head of ``run`` (the parsed run.json) over the retained rows' ``commitments``."""
    about = [run["plan"]["head"], run["seed"], run["model"]["digest"], environment, sorted(commitments)]
    return digest(["s3t head v1", *about]).hex()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of a mapping name -> tensor, in hex."""
    import torch

    summary = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        summary.update(encode([name, str(tensor.dtype).split(".")[-1], [int(n) for n in tensor.shape]]))
        summary.update(b"\x00")
        summary.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return summary.hexdigest()
