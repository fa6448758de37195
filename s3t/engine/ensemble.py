"""Serving with the fast engine: chains over one frozen encoder, scored together.

Layers that carry no adapter in any chain so far are computed once for all chains: the trunk (chains grow from the top down,
so after deletions that is most of the model). Above it each chain has hidden states of its own. Of small batches those of
several chains are stacked, so that a frozen weight is one product for all and their adapters are batched products; of
large batches chains follow one another, which the processor's caches prefer (docs/ENGINE.md has the figures). Adapters are
applied beside the frozen weights, never merged: what serves are the very tensors of the nodes, and to switch a chain is to
let go of some of them. Nothing is kept between calls, so logits are a function of the chains and the rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from s3t.backbone import Backbone, Encoded
from s3t.blocks import ModelState
from s3t.engine import lora
from s3t.engine.encoder import Encoder
from s3t.engine.layers import Delta
from s3t.engine.mode import Precision
from s3t.records import Recipe

if TYPE_CHECKING:
    from s3t.plan import Stage

BATCH = 64
"""Most rows per batch when scoring."""
TOKENS = {"cpu": 1024, "cuda": 2**15}
"""Most tokens, padding included, of a batch and of a stack of chains, by kind of device; one row may be longer.

Measured for the CPU (docs/ENGINE.md): what one product writes should stay in the caches. A GPU wants wide products.
"""


class FastChain:
    """What one chain adds to the frozen encoder: its adapters' tensors and its head's, on the device, float32.

    IsolationError if the tensors are not exactly those of the stages' adapters.
    """

    def __init__(
        self, backbone: Backbone, stages: Sequence[Stage], state: ModelState, recipe: Recipe, precision: Precision
    ) -> None:
        self.encoder = Encoder.of(backbone, precision)
        self.adapters = {name: _on(backbone, tensors) for name, tensors in state.adapters.items()}
        self.head = _on(backbone, state.head)
        self.deltas: dict[int, dict[str, lora.LoraDelta]] = {}
        for stage in {stage.adapter: stage for stage in stages}.values():
            tensors = self.adapters[stage.adapter]
            lora.check_fits(self.encoder, stage, recipe, tensors)
            for layer, found in lora.deltas(self.encoder, stage, recipe, tensors).items():
                mine = self.deltas.setdefault(layer, {})
                for projection, delta in found.items():  # stacked blocks add up
                    mine[projection] = lora.joined(mine[projection], delta) if projection in mine else delta
        self.lowest = min(self.deltas)

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """Return adapter ``name``'s tensors under PEFT's file names; the live tensors, not copies."""
        return dict(self.adapters[name])

    def head_tensors(self) -> dict[str, Tensor]:
        """Return the head's ``weight`` (classes, hidden) and ``bias`` (classes,)."""
        return dict(self.head)


@dataclass(frozen=True)
class StackedDelta:
    """Adapters of several chains at one projection, for their rows stacked one chain after the other.

    ``at``: which of ``chains`` carry one; all ``deltas`` have the same rank and scale.
    """

    chains: int
    at: tuple[int, ...]
    deltas: tuple[lora.LoraDelta, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Map (chains x rows, inputs) to (chains x rows, outputs); zero where a chain carries no adapter here."""
        a = torch.stack([delta.a for delta in self.deltas]).to(x.dtype)
        b = (torch.stack([delta.b for delta in self.deltas]) * self.deltas[0].scale).to(x.dtype)
        wide = x.view(self.chains, -1, x.shape[1])
        some = len(self.at) < self.chains
        y = torch.bmm(torch.bmm(wide[list(self.at)] if some else wide, a.transpose(1, 2)), b.transpose(1, 2))
        if some:
            y = y.new_zeros(self.chains, *y.shape[1:]).index_copy_(0, torch.tensor(self.at, device=y.device), y)
        return y.view(-1, y.shape[2])


def score_together(
    chains: Mapping[int, FastChain], rows: Sequence[Encoded], *, tokens: int | None = None
) -> dict[int, Tensor]:
    """Return logits of shape (len(rows), classes) per shard, on the CPU, float32, in the order of ``rows``.

    Rows are sorted by length (stable) and cut into batches, each padded to its own longest, of at most 64 rows and
    ``tokens`` tokens; chains are stacked within the same limit. ``tokens``: None takes the device's of ``TOKENS``.
    """
    out = {shard: torch.zeros(len(rows), chains[shard].head["bias"].shape[0]) for shard in sorted(chains)}
    if not chains:
        return out
    limit = tokens or TOKENS[next(iter(chains.values())).encoder.backbone.device.type]
    with torch.no_grad():
        for chosen in cut([row.length for row in rows], limit):
            for shard, logits in _batch(chains, [rows[i] for i in chosen], limit):
                out[shard][chosen] = logits.cpu()
    return out


def cut(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices, shortest rows first, ties in order: at most 64 rows and ``tokens`` tokens, or one row."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(batch) == BATCH or (batch and (len(batch) + 1) * lengths[i] > tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _batch(chains: Mapping[int, FastChain], rows: Sequence[Encoded], tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each shard's logits (rows, classes). Stacks are cut from the shards in order of lowest layer, then of number."""
    encoder = next(iter(chains.values())).encoder
    lengths = [row.length for row in rows]
    bias, hidden = encoder.bias(lengths), encoder.embed(rows)
    shards = sorted(chains, key=lambda shard: (chains[shard].lowest, shard))
    leave = {chain.lowest for chain in chains.values()}
    trunk = {}
    for depth in range(max(leave) + 1):
        if depth:
            hidden = encoder.layers[depth - 1](hidden, bias)
        if depth in leave:
            trunk[depth] = hidden
    size = max(1, tokens // (len(rows) * max(lengths)))
    for at in range(0, len(shards), size):
        stack = shards[at : at + size]
        features = _above(encoder, [chains[shard] for shard in stack], trunk, bias, lengths)
        for shard, part in zip(stack, features.chunk(len(stack)), strict=True):
            yield shard, F.linear(part, chains[shard].head["weight"], chains[shard].head["bias"])


def _above(
    encoder: Encoder,
    chains: Sequence[FastChain],
    trunk: Mapping[int, Tensor],
    bias: Tensor | None,
    lengths: Sequence[int],
) -> Tensor:
    """Return the features of ``chains`` (chains x rows, hidden), one chain after the other.

    ``chains`` in order of lowest layer: each leaves the ``trunk`` (by depth) there and joins the stack.
    """
    stack: list[Tensor] = []
    last = len(encoder.layers) - 1
    for depth in range(chains[0].lowest, last + 1):
        stack += [trunk[depth] for chain in chains if chain.lowest == depth]
        inside = sum(chain.lowest <= depth for chain in chains)
        hidden = torch.cat(stack) if len(stack) > 1 else stack[0]
        wide = bias.repeat(inside, 1, 1, 1) if bias is not None and len(bias) > 1 else bias
        layer, deltas = encoder.layers[depth], _deltas(chains[:inside], depth)
        if depth < last:
            stack = [layer(hidden, wide, deltas)]
    return encoder.finish(layer, hidden, wide, list(lengths) * len(chains), deltas)


def _deltas(chains: Sequence[FastChain], depth: int) -> Mapping[str, Delta]:
    if len(chains) == 1:
        return chains[0].deltas.get(depth, {})
    out = {}
    for projection in dict.fromkeys(p for chain in chains for p in chain.deltas.get(depth, {})):
        there = {i: found for i, chain in enumerate(chains) if (found := chain.deltas.get(depth, {}).get(projection))}
        rank = max(delta.a.shape[0] for delta in there.values())
        alike = tuple(lora.widened(delta, rank) for delta in there.values())
        out[projection] = StackedDelta(len(chains), tuple(there), alike)
    return out


def _on(backbone: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the device, each in memory of its own: where a file was read to must not move a bit."""
    return {name: tensor.detach().to(backbone.device, copy=True) for name, tensor in tensors.items()}
