"""A base model as the fast engine runs it: its embeddings, its lean layers, and where a family keeps them.

Adding a family is one entry in ``LEAN`` for post-norm encoders whose feed-forward uses GELU, in ``PRENORM`` of
s3t/engine/prenorm.py or ``CAUSAL`` of s3t/engine/causal.py for those shapes; all else stays with the reference engine, and
asking for the fast one says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from s3t.backbone import Backbone, Encoded
from s3t.engine.layers import PROJECTIONS, Block, Deltas, Layer, Linear, Norm
from s3t.engine.mode import Form, Precision
from s3t.errors import ModelError, RecipeError


@dataclass(frozen=True)
class Lean:
    """Where a model class keeps the parts of a layer: module paths inside the layer, and the names of two sizes."""

    q: str
    k: str
    v: str
    o: str
    up: str
    down: str
    norm1: str
    norm2: str
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"
    gate: str = ""

    def path(self, projection: str) -> str:
        """Return the module path of a projection inside a layer."""
        return str(getattr(self, projection))


_BERT = Lean(
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    norm1="attention.output.LayerNorm",
    norm2="output.LayerNorm",
)
LEAN: dict[str, Lean] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": Lean(
        q="attention.attn.q",
        k="attention.attn.k",
        v="attention.attn.v",
        o="attention.attn.o",
        up="intermediate.dense",
        down="output.dense",
        norm1="attention.LayerNorm",
        norm2="output.LayerNorm",
    ),
    "distilbert": Lean(
        q="attention.q_lin",
        k="attention.k_lin",
        v="attention.v_lin",
        o="attention.out_lin",
        up="ffn.lin1",
        down="ffn.lin2",
        norm1="sa_layer_norm",
        norm2="output_layer_norm",
        heads="n_heads",
        activation="activation",
    ),
}


class Encoder:
    """The frozen base model in one precision. ``layers``: lean layers from the input side.

    This class runs post-norm encoders (BERT and its kin), whose features are the mean over tokens; its subclasses other
    shapes. ``projections``: the linear maps of a layer that can carry an adapter, in the order in which models define them.
    ``one_length``: whether all records have as many tokens.
    """

    families: ClassVar[Mapping[str, Lean]] = LEAN
    projections: ClassVar[tuple[str, ...]] = PROJECTIONS
    activation: ClassVar[str] = "gelu"
    one_length: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, precision: Precision) -> None:
        self.backbone = backbone
        self.lean = self.families[backbone.kind]
        if (used := getattr(self._config, self.lean.activation)) != self.activation:
            raise ModelError(
                f"the fast engine knows the activation {self.activation}, not {used!r}; use engine=reference"
            )
        self.dtype: torch.dtype = getattr(torch, precision)
        self.layers: tuple[Block, ...] = tuple(self._layer(module) for module in backbone.layer_modules(backbone.model))

    @staticmethod
    def of(backbone: Backbone, precision: Precision) -> Encoder:
        """Return the encoder of ``backbone``, made once for each precision. ModelError if it has no lean form."""
        if precision not in backbone.lean:
            backbone.lean[precision] = _form(backbone.kind)(backbone, precision)
        found: Encoder = backbone.lean[precision]
        return found

    def check_form(self, form: Form) -> None:
        """RecipeError if records differ in length, and steps of ``form`` need one."""
        if form != "plain" and not self.one_length:
            raise RecipeError(
                f"engine={form} needs records of one length, as images are, and those of a {self.backbone.kind} differ; "
                "use engine=fast"
            )

    @property
    def _config(self) -> Any:
        return self.backbone.model.config

    def _layer(self, module: nn.Module) -> Block:
        return Layer(**self._parts(module))

    def _parts(self, module: nn.Module) -> dict[str, Any]:
        """Return the fields of :class:`Layer`."""
        part: dict[str, Any] = {name: module.get_submodule(self.lean.path(name)) for name in PROJECTIONS}
        weight = torch.cat([part[name].weight for name in "qkv"])
        bias = None if part["q"].bias is None else torch.cat([part[name].bias for name in "qkv"])
        linear = {name: Linear.of(part[name].weight, part[name].bias, self.dtype) for name in ("o", "up", "down")}
        norms = {name: self._norm(module.get_submodule(getattr(self.lean, name))) for name in ("norm1", "norm2")}
        heads = int(getattr(self._config, self.lean.heads))
        return {"qkv": Linear.of(weight, bias, self.dtype), **linear, **norms, "heads": heads}

    def _norm(self, module: Any) -> Norm:
        weight, bias = (part.detach().to(self.dtype, copy=True) for part in (module.weight, module.bias))
        return Norm(weight, bias, float(module.eps))

    def targets(self, wanted: Sequence[str]) -> list[str]:
        """Return the projections that LoRA targets name, as PEFT matches them. RecipeError for one that names none here."""
        chosen = []
        for target in wanted or self.backbone.family.targets:
            fits = [p for p in self.projections if ("." + self.lean.path(p)).endswith("." + target)]
            if not fits:
                paths = ", ".join(self.lean.path(p) for p in self.projections)
                raise RecipeError(f"target {target!r} names no linear map of the fast engine's layers ({paths})")
            chosen += fits
        return [p for p in self.projections if p in chosen]

    def embed(self, rows: Sequence[Encoded]) -> Tensor:
        """Return the input of layer 0 for ``rows``, padded to their own longest: (rows, longest, hidden)."""
        batch = self.backbone.collate(rows)
        batch.pop("attention_mask", None)
        hidden: Tensor = cast(Any, self.backbone.model).embeddings(**batch)
        return hidden.to(self.dtype)

    def bias(self, lengths: Sequence[int]) -> Tensor | None:
        """Return what is added to the attention scores of rows of ``lengths``: minus infinity on padding, in float32.

        None if there is nothing to add. MPNet adds its bias by distance (Song et al. 2020, section 3).
        """
        device, longest = self.backbone.device, max(lengths)
        bias = None
        if min(lengths) < longest:
            real = torch.arange(longest, device=device)[None] < torch.tensor(lengths, device=device)[:, None]
            bias = torch.zeros(real.shape, device=device).masked_fill_(~real, float("-inf"))[:, None, None, :]
        if self.backbone.kind == "mpnet":
            model: Any = self.backbone.model
            probe = torch.empty(1, longest, 1, device=device)
            near = model.encoder.compute_position_bias(probe).float()
            bias = near if bias is None else near + bias
        return bias

    def pool(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the features of rows of ``lengths`` from the last layer's output (rows, tokens, hidden).

        (rows, hidden), float32: here the mean over each row's first ``lengths`` tokens.
        """
        counts = torch.tensor(lengths, device=hidden.device)
        real = torch.arange(hidden.shape[1], device=hidden.device)[None] < counts[:, None]
        return (hidden.float() * real[:, :, None]).sum(1) / counts[:, None]

    def finish(
        self, layer: Block, hidden: Tensor, bias: Tensor | None, lengths: Sequence[int], deltas: Deltas | None
    ) -> Tensor:
        """Put ``hidden`` through the last layer and :meth:`pool` it, computing no more outputs than features need."""
        return self.pool(layer(hidden, bias, deltas), lengths)


def _form(kind: str) -> type[Encoder]:
    """Return the class that runs models of type ``kind``. ModelError if none does."""
    from s3t.engine.causal import Decoder
    from s3t.engine.prenorm import PreNormEncoder

    forms = (Encoder, PreNormEncoder, Decoder)
    for form in forms:
        if kind in form.families:
            return form
    known = sorted(name for form in forms for name in form.families)
    raise ModelError(
        f"the fast engine has no lean form of model type {kind!r}, only of {', '.join(known)}; use engine=reference"
    )
