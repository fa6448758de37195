"""Pre-norm encoders (ViT and its kin): the norm stands before attention and feed-forward, features are the class token.

Of the last layer nothing but the class token's output is needed: its keys and values are computed for all tokens, its query,
output projection and feed-forward for that token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from s3t.backbone import Backbone
from s3t.engine.attention import attention
from s3t.engine.encoder import Encoder, Lean
from s3t.engine.layers import Block, Deltas, Layer, plus
from s3t.engine.mode import Precision
from s3t.errors import ModelError

_VIT = Lean(
    q="attention.q_proj",
    k="attention.k_proj",
    v="attention.v_proj",
    o="attention.o_proj",
    up="mlp.fc1",
    down="mlp.fc2",
    norm1="layernorm_before",
    norm2="layernorm_after",
)
PRENORM: dict[str, Lean] = {"vit": _VIT, "deit": _VIT, "dinov2": replace(_VIT, norm1="norm1", norm2="norm2")}

Pick = Callable[[Tensor], Tensor]
"""Takes one token of each row: (rows, tokens, hidden) to (rows, hidden)."""


class PreNormLayer(Layer):
    """A pre-norm encoder layer: x + attention(norm(x)), then that + feed-forward(norm(that)), with GELU. All frozen."""

    def __call__(self, x: Tensor, bias: Tensor | None, deltas: Deltas | None = None) -> Tensor:
        """Map hidden states as :class:`Layer` does."""
        deltas, shape = deltas or {}, x.shape
        x = x.reshape(-1, shape[-1])
        inner = self.norm1(x)
        q, k, v = self.qkv(inner).chunk(3, dim=1)
        q, k, v = (plus(y, deltas.get(name), inner) for name, y in (("q", q), ("k", k), ("v", v)))
        return self._above(x, attention(q, k, v, bias, shape[0], self.heads), deltas).view(shape)

    def one(self, x: Tensor, pick: Pick, bias: Tensor | None, deltas: Deltas | None = None) -> Tensor:
        """Return ``pick`` of the layer's output, (rows, hidden), without computing the rest of it."""
        deltas, shape, hidden = deltas or {}, x.shape, x.shape[-1]
        inner = self.norm1(x)
        every, lone = inner.reshape(-1, hidden), pick(inner)
        k, v = self.qkv.part(hidden, 3 * hidden)(every).chunk(2, dim=1)
        k, v = (plus(y, deltas.get(name), every) for name, y in (("k", k), ("v", v)))
        q = plus(self.qkv.part(0, hidden)(lone), deltas.get("q"), lone)
        return self._above(pick(x), attention(q, k, v, bias, shape[0], self.heads), deltas)

    def _above(self, x: Tensor, context: Tensor, deltas: Deltas) -> Tensor:
        """Return the layer's output from its input and its attention's, (tokens, hidden) both."""
        x = x + self._scaled(plus(self.o(context), deltas.get("o"), context), 0)
        inner = self.norm2(x)
        wide = nn.functional.gelu(plus(self.up(inner), deltas.get("up"), inner))
        return x + self._scaled(plus(self.down(wide), deltas.get("down"), wide), 1)

    def _scaled(self, y: Tensor, half: int) -> Tensor:
        """Return what attention (half 0) or feed-forward (1) adds, as the layer weighs it: here as it is."""
        return y


@dataclass(frozen=True)
class ScaledLayer(PreNormLayer):
    """A pre-norm layer with LayerScale (Touvron et al. 2021): what a half adds is multiplied by its ``scales``, (hidden,)."""

    scales: tuple[Tensor, Tensor]

    def _scaled(self, y: Tensor, half: int) -> Tensor:
        return y * self.scales[half]

    def tensors(self) -> list[Tensor]:
        """Return everything frozen here."""
        return [*super().tensors(), *self.scales]


class PreNormEncoder(Encoder):
    """A pre-norm encoder: features are the class token (the first one) after the final norm."""

    families: ClassVar[Mapping[str, Lean]] = PRENORM
    one_length: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, precision: Precision) -> None:
        if getattr(cast(Any, backbone.model).config, "use_swiglu_ffn", False):
            raise ModelError("the fast engine knows feed-forward layers with GELU, not SwiGLU; use engine=reference")
        super().__init__(backbone, precision)
        self.norm = self._norm(cast(Any, backbone.model).layernorm)

    def _layer(self, module: nn.Module) -> Block:
        if self.backbone.kind != "dinov2":
            return PreNormLayer(**self._parts(module))
        given = (module.get_parameter(f"layer_scale{half}.lambda1") for half in (1, 2))
        first, second = (scale.detach().to(self.dtype, copy=True) for scale in given)
        return ScaledLayer(**self._parts(module), scales=(first, second))

    def pool(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the class token after the final norm: (rows, hidden), float32."""
        return self.norm(_first(hidden)).float()

    def finish(
        self, layer: Block, hidden: Tensor, bias: Tensor | None, lengths: Sequence[int], deltas: Deltas | None
    ) -> Tensor:
        """Put ``hidden`` through the last layer as far as the class token needs it."""
        return self.norm(cast(PreNormLayer, layer).one(hidden, _first, bias, deltas)).float()


def _first(x: Tensor) -> Tensor:
    return x[:, 0]
