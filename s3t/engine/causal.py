"""Llama-like decoders: RMSNorm, rotary positions, causal attention with grouped heads, SwiGLU; features are the last token.

Rows are padded on the right, where no real token looks, so padding needs no mask. Of the last layer nothing but each row's
last token is needed: keys and values are computed for all tokens, the rest for that token alone.
Sources: Touvron et al. 2023 (arXiv 2302.13971), section 2.2; Su et al. 2021; Shazeer 2020; Ainslie et al. 2023 (grouped heads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3t.backbone import Backbone, Encoded
from s3t.engine.attention import attention, fused_attention, on_gpu
from s3t.engine.encoder import Encoder, Lean
from s3t.engine.layers import Block, Deltas, Linear, RMSNorm, plus
from s3t.engine.mode import Precision
from s3t.errors import ModelError

CAUSAL: dict[str, Lean] = {
    "llama": Lean(
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.o_proj",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        norm1="input_layernorm",
        norm2="post_attention_layernorm",
    ),
}
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
LENGTHWISE = ("dynamic", "longrope")
"""Rotary positions whose angles depend on how long a batch is: the features of a row would depend on its batch mates."""


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: ``frequencies`` (size / 2,) in float32, and what cosine and sine are multiplied with."""

    frequencies: Tensor
    scaling: float

    def __call__(self, tokens: int, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, (1, tokens, 1, size) each."""
        places = torch.arange(tokens, device=self.frequencies.device, dtype=torch.float32)
        angles = (places[:, None] * self.frequencies).repeat(1, 2)[None, :, None]
        return (angles.cos() * self.scaling).to(precision), (angles.sin() * self.scaling).to(precision)


@dataclass(frozen=True)
class DecoderLayer:
    """A decoder layer, frozen. ``heads`` of queries share ``groups`` heads of keys and values."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    norm1: RMSNorm
    norm2: RMSNorm
    heads: int
    groups: int
    rotary: Rotary

    def __call__(self, x: Tensor, bias: Tensor | None, deltas: Deltas | None = None) -> Tensor:
        """Map hidden states (batch, tokens, hidden) to the same shape. ``bias`` is None: the layer knows what it masks."""
        deltas, (batch, tokens, hidden) = deltas or {}, x.shape
        flat = x.reshape(-1, hidden)
        inner = self.norm1(flat)
        cosine, sine = self.rotary(tokens, x.dtype)
        k, v = self._keys(inner, batch, cosine, sine, deltas)
        q = self._turned(plus(self.q(inner), deltas.get("q"), inner), batch, self.heads, cosine, sine)
        if on_gpu(q):
            context = fused_attention(q, k, v, batch, self.heads, causal=True)
        else:
            context = attention(q, k, v, _later(tokens, x.device), batch, self.heads)
        return self._above(flat, context, deltas).view(x.shape)

    def one(self, x: Tensor, ends: Tensor, deltas: Deltas | None = None) -> Tensor:
        """Return the layer's output at token ``ends[i]`` of row ``i``, (batch, hidden), without computing the rest of it."""
        deltas, (batch, tokens, hidden) = deltas or {}, x.shape
        rows = torch.arange(batch, device=x.device)
        inner = self.norm1(x)
        cosine, sine = self.rotary(tokens, x.dtype)
        k, v = self._keys(inner.reshape(-1, hidden), batch, cosine, sine, deltas)
        lone = inner[rows, ends]
        turn = [y[0, ends][:, None] for y in (cosine, sine)]
        q = self._turned(plus(self.q(lone), deltas.get("q"), lone), batch, self.heads, *turn)
        beyond = torch.arange(tokens, device=x.device)[None] > ends[:, None]
        bias = torch.zeros(beyond.shape, device=x.device).masked_fill_(beyond, float("-inf"))[:, None, None]
        return self._above(x[rows, ends], attention(q, k, v, bias, batch, self.heads), deltas)

    def _keys(self, inner: Tensor, batch: int, cosine: Tensor, sine: Tensor, deltas: Deltas) -> tuple[Tensor, Tensor]:
        """Return keys, turned, and values, each repeated for all heads of queries: (batch x tokens, hidden)."""
        k = self._turned(plus(self.k(inner), deltas.get("k"), inner), batch, self.groups, cosine, sine)
        v = plus(self.v(inner), deltas.get("v"), inner)
        if self.groups == self.heads:
            return k, v
        wide = [y.view(len(y), self.groups, 1, -1).expand(-1, -1, self.heads // self.groups, -1) for y in (k, v)]
        return wide[0].reshape(len(k), -1), wide[1].reshape(len(v), -1)

    @staticmethod
    def _turned(y: Tensor, batch: int, heads: int, cosine: Tensor, sine: Tensor) -> Tensor:
        """Rotate each head of ``y`` (batch x tokens, heads x size) by its position."""
        split = y.view(batch, -1, heads, y.shape[1] // heads)
        low, high = split.chunk(2, dim=3)
        return (split * cosine + torch.cat((-high, low), dim=3) * sine).view(y.shape)

    def _above(self, x: Tensor, context: Tensor, deltas: Deltas) -> Tensor:
        """Return the layer's output from its input and its attention's, (tokens, hidden) both."""
        x = x + plus(self.o(context), deltas.get("o"), context)
        inner = self.norm2(x)
        gate = F.silu(plus(self.gate(inner), deltas.get("gate"), inner))
        wide = gate * plus(self.up(inner), deltas.get("up"), inner)
        return x + plus(self.down(wide), deltas.get("down"), wide)

    def merged(self, added: Mapping[str, Tensor]) -> DecoderLayer:
        """Return the layer with ``added`` (projection -> (outputs, inputs), float32) summed into copies of its weights."""
        parts: dict[str, Any] = {name: getattr(self, name).plus(value) for name, value in added.items()}
        return replace(self, **parts)

    def shape(self, projection: str) -> tuple[int, int]:
        """Return (outputs, inputs) of a projection."""
        outputs, inputs = getattr(self, projection).weight.shape
        return outputs, inputs

    def tensors(self) -> list[Tensor]:
        """Return everything frozen here."""
        linear = [t for name in PROJECTIONS for t in getattr(self, name).tensors()]
        return [*linear, self.norm1.weight, self.norm2.weight, self.rotary.frequencies]


class Decoder(Encoder):
    """A Llama-like decoder: features are each row's last real token after the final norm.

    Where the model is in this precision already its weights are shared, not copied: such models fill a GPU once.
    ModelError for rotary positions that depend on the length of a batch.
    """

    families: ClassVar[Mapping[str, Lean]] = CAUSAL
    projections: ClassVar[tuple[str, ...]] = PROJECTIONS
    activation: ClassVar[str] = "silu"

    def __init__(self, backbone: Backbone, precision: Precision) -> None:
        model = cast(Any, backbone.model)
        if (kind := model.rotary_emb.rope_type) in LENGTHWISE:
            raise ModelError(f"rotary positions of type {kind!r} depend on a row's batch mates; use engine=reference")
        self.rotary = Rotary(model.rotary_emb.inv_freq.detach().float(), float(model.rotary_emb.attention_scaling))
        super().__init__(backbone, precision)
        self.norm = self._rms(model.norm)

    def _layer(self, module: nn.Module) -> Block:
        part: dict[str, Any] = {name: module.get_submodule(self.lean.path(name)) for name in PROJECTIONS}
        linear: dict[str, Any] = {name: Linear.of(p.weight, p.bias, self.dtype, copy=False) for name, p in part.items()}
        norms: dict[str, Any] = {
            name: self._rms(module.get_submodule(getattr(self.lean, name))) for name in ("norm1", "norm2")
        }
        heads, groups = int(self._config.num_attention_heads), int(self._config.num_key_value_heads)
        return DecoderLayer(**linear, **norms, heads=heads, groups=groups, rotary=self.rotary)

    def _rms(self, module: Any) -> RMSNorm:
        return RMSNorm(module.weight.detach().to(self.dtype), float(module.variance_epsilon))

    def embed(self, rows: Sequence[Encoded]) -> Tensor:
        """Return the embeddings of ``rows``, padded on the right to their own longest: (rows, longest, hidden)."""
        hidden: Tensor = cast(Any, self.backbone.model).embed_tokens(self.backbone.collate(rows)["input_ids"])
        return hidden.to(self.dtype)

    def bias(self, lengths: Sequence[int]) -> Tensor | None:
        """Return None: the layers mask what stands later, and padding does."""
        return None

    def pool(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return each row's last real token after the final norm: (rows, hidden), float32."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.norm(hidden[rows, self._ends(lengths)]).float()

    def finish(
        self, layer: Block, hidden: Tensor, bias: Tensor | None, lengths: Sequence[int], deltas: Deltas | None
    ) -> Tensor:
        """Put ``hidden`` through the last layer as far as each row's last real token needs it."""
        return self.norm(cast(DecoderLayer, layer).one(hidden, self._ends(lengths), deltas)).float()

    def _ends(self, lengths: Sequence[int]) -> Tensor:
        return torch.tensor(lengths, device=self.backbone.device) - 1


def _later(tokens: int, device: torch.device) -> Tensor:
    """Return the bias that hides what stands later: (1, 1, tokens, tokens), float32."""
    return torch.full((tokens, tokens), float("-inf"), device=device).triu_(1)[None, None]
