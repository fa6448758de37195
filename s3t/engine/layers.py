"""One transformer layer with frozen weights, lean: few large operations, and no gradient for what does not learn.

Matrix products use a weight in both layouts (row-major for the backward pass, transposed for the forward one), which is what
the processor's matrix units read fastest; on a GPU a weight is kept in one. Attention has its module (s3t.engine.attention).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from s3t.engine.attention import attention

PROJECTIONS = ("q", "k", "v", "o", "up", "down")
"""The linear maps of a layer that can carry an adapter, in the order in which models define them."""


class Delta(Protocol):
    """What an adapter adds to a linear map: from its input (rows, inputs) to (rows, outputs)."""

    def __call__(self, x: Tensor) -> Tensor: ...


Deltas = Mapping[str, Delta]
"""Deltas of one layer by projection; projections without an adapter are left out."""


class Block(Protocol):
    """A frozen transformer layer of any family."""

    def __call__(self, x: Tensor, bias: Tensor | None, deltas: Deltas | None = None) -> Tensor:
        """Map hidden states (batch, tokens, hidden) to the same shape; ``bias`` is added to attention scores."""

    def merged(self, added: Mapping[str, Tensor]) -> Block:
        """Return the layer with ``added`` (projection -> (outputs, inputs), float32) summed into its weights."""

    def shape(self, projection: str) -> tuple[int, int]:
        """Return (outputs, inputs) of a projection."""

    def tensors(self) -> list[Tensor]:
        """Return everything frozen here."""


@dataclass(frozen=True)
class Linear:
    """A frozen linear map: ``weight`` (outputs, inputs), the same ``transposed``, ``bias`` (outputs,) or None.

    On the CPU ``transposed`` is contiguous; GPUs read either layout as fast, so there it is a view.
    """

    weight: Tensor
    transposed: Tensor
    bias: Tensor | None

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None, precision: torch.dtype, *, copy: bool = True) -> Linear:
        """Return the map in ``precision``; both arguments are copied, without ``copy`` only where they have another one."""
        weight = weight.detach().to(precision, copy=copy)
        transposed = weight.t().contiguous() if weight.device.type == "cpu" else weight.t()
        return Linear(weight, transposed, None if bias is None else bias.detach().to(precision, copy=copy))

    def part(self, start: int, stop: int) -> Linear:
        """Return the map to outputs ``start`` up to ``stop`` alone; it shares the tensors."""
        bias = None if self.bias is None else self.bias[start:stop]
        return Linear(self.weight[start:stop], self.transposed[:, start:stop], bias)

    def plus(self, added: Tensor) -> Linear:
        """Return the map with ``added`` (outputs, inputs) summed into its weight, in float32 before it is rounded."""
        return Linear.of(self.weight.float() + added, self.bias, self.weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map rows (rows, inputs) to (rows, outputs); the gradient flows to ``x`` alone."""
        y: Tensor = _FrozenLinear.apply(x, self.weight, self.transposed, self.bias)  # type: ignore[no-untyped-call]
        return y

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything frozen here."""
        return (self.weight, self.transposed, *(() if self.bias is None else (self.bias,)))


@dataclass(frozen=True)
class Norm:
    """A frozen layer normalisation over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., hidden)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class RMSNorm:
    """A frozen root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019)."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., hidden)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Layer:
    """A post-norm encoder layer (BERT and its kin): attention, norm, feed-forward with GELU, norm. All frozen.

    ``qkv`` maps hidden -> 3 x hidden, in this order. ``heads``: attention heads.
    """

    qkv: Linear
    o: Linear
    up: Linear
    down: Linear
    norm1: Norm
    norm2: Norm
    heads: int

    def __call__(self, x: Tensor, bias: Tensor | None, deltas: Deltas | None = None) -> Tensor:
        """Map hidden states (batch, tokens, hidden) to the same shape.

        ``bias``: float32, added to attention scores, broadcast to (batch, heads, tokens, tokens); None adds nothing.
        """
        deltas = deltas or {}
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        q, k, v = self.qkv(x).chunk(3, dim=1)
        q, k, v = (plus(y, deltas.get(name), x) for name, y in (("q", q), ("k", k), ("v", v)))
        context = attention(q, k, v, bias, shape[0], self.heads)
        x = self.norm1(x + plus(self.o(context), deltas.get("o"), context))
        inner = F.gelu(plus(self.up(x), deltas.get("up"), x))
        return self.norm2(x + plus(self.down(inner), deltas.get("down"), inner)).view(shape)

    def merged(self, added: Mapping[str, Tensor]) -> Layer:
        """Return the layer with ``added`` (projection -> (outputs, inputs), float32) summed into its weights.

        The sum is taken in float32 of the weights as they are here, then rounded to their precision.
        """
        parts: dict[str, Any] = {}
        hidden = self.o.weight.shape[0]
        at = {"q": 0, "k": hidden, "v": 2 * hidden}
        if stacked := {name: value for name, value in added.items() if name in at}:
            whole = self.qkv.weight.to(torch.float32, copy=True)
            for name, value in stacked.items():
                whole[at[name] : at[name] + hidden] += value
            parts["qkv"] = Linear.of(whole, self.qkv.bias, self.qkv.weight.dtype)
        for name in ("o", "up", "down"):
            if name in added:
                parts[name] = getattr(self, name).plus(added[name])
        return replace(self, **parts)

    def shape(self, projection: str) -> tuple[int, int]:
        """Return (outputs, inputs) of a projection."""
        if projection in "qkv":
            outputs, inputs = self.qkv.weight.shape
            return outputs // 3, inputs
        outputs, inputs = getattr(self, projection).weight.shape
        return outputs, inputs

    def tensors(self) -> list[Tensor]:
        """Return everything frozen here."""
        norms = [t for norm in (self.norm1, self.norm2) for t in (norm.weight, norm.bias)]
        return [*(t for linear in (self.qkv, self.o, self.up, self.down) for t in linear.tensors()), *norms]


def plus(y: Tensor, delta: Delta | None, x: Tensor) -> Tensor:
    """Return ``y``, with what an adapter makes of ``x`` if there is one."""
    return y if delta is None else y + delta(x)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return x @ transposed if bias is None else torch.addmm(bias, x, transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return (grads[0] @ weight if ctx.needs_input_grad[0] else None), None, None, None
