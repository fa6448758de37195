"""Attention within each row of a batch, written out: few operations over the scores, in blocks that stay in the caches.

Scores are as many as tokens squared, so on long texts what is done to them costs more than the layer's products. Here they
are made scaled, in the precision of the queries, softmaxed once, and never copied; backward the same. On the CPU they are
made for a few rows of the batch at a time. PyTorch's fused attention takes several times longer backward in bfloat16 there
(docs/ENGINE.md has the figures); on a GPU it is the faster and, with deterministic algorithms on, deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**21
"""Most scores that are made at a time on a CPU; one row of a batch may have more. Measured (docs/ENGINE.md)."""
REGISTER = 64
"""Bytes in a vector register: over shorter rows PyTorch's softmax works number by number."""


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, batch: int, heads: int) -> Tensor:
    """Attend within each row of a batch: q, k, v and the result have shape (batch x tokens, hidden).

    k and v may have another number of tokens than q and the result. ``bias``: added to the scaled scores, broadcast to
    (batch, heads, tokens, tokens); None adds nothing.
    """
    if bias is None and on_gpu(q):
        return fused_attention(q, k, v, batch, heads)
    context: Tensor = _Attention.apply(q, k, v, bias, batch, heads)  # type: ignore[no-untyped-call]
    return context


def on_gpu(q: Tensor) -> bool:
    """Say whether attention of ``q`` without a bias is left to :func:`fused_attention`."""
    return q.is_cuda and q.dtype is torch.bfloat16


def fused_attention(q: Tensor, k: Tensor, v: Tensor, batch: int, heads: int, *, causal: bool = False) -> Tensor:
    """Attend as :func:`attention` does, by PyTorch's fused kernel; ``causal``: to oneself and what stands before.

    With deterministic algorithms on, which all training here has, PyTorch takes deterministic kernels alone.
    """
    q, k, v = (y.reshape(batch, -1, heads, y.shape[1] // heads).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(-1, heads * q.shape[3])


class _Attention(torch.autograd.Function):
    """softmax(q k' / sqrt(size) + bias) v per head. Scores and weights are in the precision of q, the softmax in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, batch: int, heads: int) -> Tensor:
        q, k, v = (_by_head(y, batch, heads) for y in (q, k, v))
        scale, bias = q.shape[2] ** -0.5, None if bias is None else bias.to(q.dtype)
        kept = q.new_empty(len(q), q.shape[1], k.shape[1]) if any(ctx.needs_input_grad) else None
        context = torch.empty_like(q)
        for rows in _blocks(q, k, batch):
            part = slice(rows.start * heads, rows.stop * heads)
            scores = _scaled(q[part], k[part].transpose(1, 2), scale)
            if bias is not None:
                scores.view(-1, heads, *scores.shape[1:]).add_(bias[rows] if len(bias) > 1 else bias)
            weights = torch.empty_like(scores) if kept is None else kept[part]
            _softmax(scores, weights)
            torch.bmm(weights, v[part], out=context[part])
        if kept is not None:
            ctx.save_for_backward(q, k, v, kept)
            ctx.batch = batch
        return _by_row(context, batch)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        batch, heads = ctx.batch, len(q) // ctx.batch
        scale, grad = q.shape[2] ** -0.5, _by_head(grads[0], batch, heads)
        to_q, to_k, to_v = (torch.empty_like(y) for y in (q, k, v))
        for rows in _blocks(q, k, batch):
            part = slice(rows.start * heads, rows.stop * heads)
            to_scores = _softmax_backward(torch.bmm(grad[part], v[part].transpose(1, 2)), weights[part])
            _scaled(to_scores, k[part], scale, out=to_q[part])
            _scaled(to_scores.transpose(1, 2), q[part], scale, out=to_k[part])
            torch.bmm(weights[part].transpose(1, 2), grad[part], out=to_v[part])
        return (*(_by_row(y, batch) for y in (to_q, to_k, to_v)), None, None, None)


def _blocks(q: Tensor, k: Tensor, batch: int) -> Iterator[slice]:
    """Yield the rows of a batch whose scores are made together, in order: a function of shapes and device alone.

    q, k: (batch x heads, tokens, size).
    """
    scores = len(q) // batch * q.shape[1] * k.shape[1]
    size = batch if q.device.type != "cpu" else max(1, BLOCK // max(1, scores))
    yield from (slice(at, min(at + size, batch)) for at in range(0, batch, size))


def _scaled(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """Return scale * a b, batched; rounded to their precision once."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale, out=out)


def _is_short(scores: Tensor) -> bool:
    return scores.device.type == "cpu" and scores.shape[-1] * scores.element_size() < REGISTER


def _softmax(scores: Tensor, out: Tensor) -> None:
    """Write the softmax of ``scores`` over the last dimension to ``out``; it is made in float32."""
    if not _is_short(scores):
        torch.softmax(scores, -1, out=out)
        return
    wide = scores.float()
    raised = (wide - wide.amax(-1, keepdim=True)).exp_()
    out.copy_(raised.div_(raised.sum(-1, keepdim=True)))


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the scores from that of their softmax ``weights``, in their precision; it is made in float32."""
    if not _is_short(weights):
        return torch._softmax_backward_data(grad, weights, -1, weights.dtype)
    wide = weights.float()
    products = grad.float() * wide
    return torch.addcmul(products, wide, products.sum(-1, keepdim=True), value=-1).to(weights.dtype)


def _by_head(y: Tensor, batch: int, heads: int) -> Tensor:
    """(batch x tokens, hidden) -> (batch x heads, tokens, size), contiguous."""
    y = y.reshape(batch, -1, heads, y.shape[1] // heads).transpose(1, 2)
    return y.reshape(-1, y.shape[2], y.shape[3])


def _by_row(y: Tensor, batch: int) -> Tensor:
    """(batch x heads, tokens, size) -> (batch x tokens, hidden)."""
    heads = y.shape[0] // batch
    return y.view(batch, heads, y.shape[1], y.shape[2]).transpose(1, 2).reshape(-1, heads * y.shape[2])
