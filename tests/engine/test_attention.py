"""Attention written out: blocks, masks and short rows against PyTorch's own, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s3t.engine import attention as module
from s3t.engine.attention import attention

BATCH, HEADS, SIZE = 5, 3, 8
APART = {torch.float32: 1e-5, torch.bfloat16: 0.03}
"""Largest difference over the largest value, in output and gradients."""


def _masks(tokens: int) -> dict[str, Tensor | None]:
    lengths = torch.arange(BATCH)[:, None] + max(1, tokens - BATCH)
    padding = torch.zeros(BATCH, tokens).masked_fill_(torch.arange(tokens)[None] >= lengths, float("-inf"))
    distance = torch.randn(1, HEADS, tokens, tokens)
    return {
        "none": None,
        "padding": padding[:, None, None],
        "one for all": torch.full((tokens, tokens), float("-inf")).triu_(1)[None, None],
        "by distance, padded": distance + padding[:, None, None],
    }


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    split = [y.double().view(BATCH, -1, HEADS, SIZE).transpose(1, 2) for y in (q, k, v)]
    mask = None if bias is None else bias.double()
    out = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=mask)
    return out.transpose(1, 2).reshape(-1, HEADS * SIZE)


def _both(tokens: int, kind: str, precision: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return output and gradients: ours, and PyTorch's in float64."""
    torch.manual_seed(tokens)
    q, k, v = (torch.randn(BATCH * tokens, HEADS * SIZE).to(precision).requires_grad_() for _ in range(3))
    bias, weight = _masks(tokens)[kind], torch.randn(BATCH * tokens, HEADS * SIZE)

    def all_of(attend: Callable[[], Tensor]) -> list[Tensor]:
        out = attend()
        return [out.detach(), *torch.autograd.grad((out * weight).sum(), [q, k, v])]

    return all_of(lambda: attention(q, k, v, bias, BATCH, HEADS)), all_of(lambda: _plain(q, k, v, bias))


@pytest.mark.parametrize("precision", APART, ids=str)
@pytest.mark.parametrize("kind", _masks(2))
@pytest.mark.parametrize("tokens", [1, 7, 15, 16, 31, 32, 40])
@pytest.mark.parametrize("block", [1, 2 * HEADS * 40 * 40, 2**21], ids=["row by row", "two rows", "whole"])
def test_every_mask_length_and_block(
    tokens: int, kind: str, block: int, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    ours, theirs = _both(tokens, kind, precision)
    for name, mine, other in zip(("output", "q", "k", "v"), ours, theirs, strict=True):
        largest = max(float(other.abs().max()), 0.1)
        assert float((mine - other).abs().max()) / largest < APART[precision], name
        assert mine.dtype == precision


@pytest.mark.parametrize(("tokens", "rows"), [(40, [5]), (400, [4, 1]), (700, [1] * 5), (1000, [1] * 5)])
def test_blocks_are_rows_of_the_batch_and_a_function_of_shapes(tokens: int, rows: list[int]) -> None:
    elsewhere = torch.empty(BATCH * HEADS, tokens, SIZE, device="meta")
    assert [part.stop - part.start for part in module._blocks(elsewhere, elsewhere, BATCH)] == [BATCH]  # one block
    here = torch.empty(1).expand(BATCH * HEADS, tokens, SIZE)
    found = list(module._blocks(here, here, BATCH))
    assert [part.stop - part.start for part in found] == rows
    assert [part.start for part in found] == [sum(rows[:i]) for i in range(len(rows))]


@pytest.mark.parametrize("precision", APART, ids=str)
@pytest.mark.parametrize("block", [1, 2**21], ids=["row by row", "whole"])
def test_without_gradients_nothing_is_kept_and_the_bits_are_the_same(
    block: int, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    torch.manual_seed(0)
    q, k, v = (torch.randn(BATCH * 9, HEADS * SIZE).to(precision).requires_grad_() for _ in range(3))
    bias = _masks(9)["padding"]
    kept = attention(q, k, v, bias, BATCH, HEADS)
    assert kept.grad_fn is not None
    with torch.no_grad():
        alone = attention(q, k, v, bias, BATCH, HEADS)
    assert torch.equal(kept, alone)
