"""The frozen transformer: loading, its layers by family, encoding of inputs, pooled features.

A family says where a model class keeps its layers and which linear modules LoRA adapts by default. Nothing else in the
suite knows a model class. Adding a family is one line in ``FAMILIES``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmuls on CUDA, read at its first use

import torch
from torch import Tensor, nn

from s3t.digests import tensors_digest
from s3t.engine.mode import Mode
from s3t.errors import DataError, RecipeError
from s3t.losses import mean_loss
from s3t.records import Inputs, canonical_json, sha256

TINY = "tiny"
"""Name of the small randomly initialised encoder that tests and the smoke profile use; it has learned nothing.

It has 6 layers of 32 features; ``tiny-N`` has N layers of 16 (2 for very many small runs, 12 where indices have two digits);
``tiny-bert``, ``tiny-roberta`` and so on are of another family, with 4 layers of 16; ``tiny-vit-3`` has three.
"""


Pooling = Literal["mean", "last", "first"]


@dataclass(frozen=True)
class Family:
    """Where a model class keeps its layers, the suffixes of the modules that LoRA adapts in each of them, and what a row's
    features are: the mean of the last hidden states over its tokens, that of its last token (decoders), or of its first
    (the class token of vision transformers).

    ``transposed``: these modules hold (inputs, outputs), as GPT-2's do. ``reads``: text, or images (:mod:`s3t.images`).
    ``ia3``: paths inside a layer of the modules whose outputs (IA)3 scales, and ``ia3_inputs`` of those whose inputs: keys,
    values, and what the feed-forward's last map reads (Liu et al. 2022, section 3.3).
    """

    layers: str
    targets: tuple[str, ...]
    pooling: Pooling = "mean"
    transposed: bool = False
    reads: Literal["text", "image"] = "text"
    ia3: tuple[str, ...] = ()
    ia3_inputs: tuple[str, ...] = ()


_BERT = Family(
    "encoder.layer",
    ("query", "value"),
    ia3=("attention.self.key", "attention.self.value"),
    ia3_inputs=("output.dense",),
)
_LLAMA = Family(
    "layers",
    ("q_proj", "v_proj"),
    "last",
    ia3=("self_attn.k_proj", "self_attn.v_proj"),
    ia3_inputs=("mlp.down_proj",),
)
_VIT = Family(
    "layers",
    ("q_proj", "v_proj"),
    "first",
    reads="image",
    ia3=("attention.k_proj", "attention.v_proj"),
    ia3_inputs=("mlp.fc2",),
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "deberta-v2": replace(
        _BERT, targets=("query_proj", "value_proj"), ia3=("attention.self.key_proj", "attention.self.value_proj")
    ),
    "mpnet": replace(_BERT, targets=("attn.q", "attn.v"), ia3=("attention.attn.k", "attention.attn.v")),
    "distilbert": Family(
        "transformer.layer", ("q_lin", "v_lin"), ia3=("attention.k_lin", "attention.v_lin"), ia3_inputs=("ffn.lin2",)
    ),
    "gpt2": Family("h", ("c_attn",), "last", transposed=True, ia3=("attn.c_attn",), ia3_inputs=("mlp.c_proj",)),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": replace(_VIT, layers="encoder.layer"),
}
"""Families by the model type of transformers."""


@dataclass(frozen=True)
class Encoded:
    """One record as the model reads it: token ids by field name; ``length`` counts tokens after truncation."""

    fields: dict[str, list[int]]
    length: int


Encoder = Callable[[Sequence[Inputs], int], list[Encoded]]


@dataclass(frozen=True)
class Backbone:
    """A frozen pretrained model with its tokenizer. ``digest`` covers weights and tokenizer.

    ``layers`` (n) and ``hidden`` give its size; ``model`` returns hidden states of shape (batch, tokens, hidden).
    """

    name: str
    model: nn.Module
    family: Family
    layers: int
    hidden: int
    digest: str
    device: torch.device
    encoder: Encoder
    pad: dict[str, int]
    predicts_text: ClassVar[bool] = False
    lean: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """The fast engine's form of the model, by precision, made on first use."""

    @property
    def kind(self) -> str:
        """The model class, as transformers names it (``bert``)."""
        return str(cast(Any, self.model.config).model_type)

    def encode(self, inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
        """Tokenize each input on its own, truncated to ``max_length`` tokens. DataError if a text is empty."""
        for position, fields in enumerate(inputs):
            text = fields.get("text")
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"input {position} has no text; this model reads a non-empty field 'text'")
        return self.encoder(inputs, max_length) if inputs else []

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad ``rows`` to their own longest: tensors of shape (len(rows), longest), with ``attention_mask``."""
        batch = padded(rows, self.pad, self.device)
        longest = max(row.length for row in rows)
        mask = torch.tensor([[1] * row.length + [0] * (longest - row.length) for row in rows])
        return {**batch, "attention_mask": mask.to(self.device)}

    def check_packing(self, limit: int) -> None:
        """Raise RecipeError unless rows of up to ``limit`` tokens may hold several records: this model predicts no text."""
        raise RecipeError(
            f"packing=True is for models that predict text, and {self.name!r} is loaded for others; leave it out"
        )

    def outputs(self, body: Callable[..., Any], head: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return what the loss and the scores of a collated batch are made of: here logits, (rows, classes).

        ``body``: the model, or a copy with adapters; ``head``: maps features to logits.
        """
        return cast(Tensor, head(pooled(body, batch, self.family.pooling)))

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Return the mean loss of :meth:`outputs` for answers (rows,), a scalar."""
        return mean_loss(outputs, answers)

    def scores(self, outputs: Tensor) -> Tensor:
        """Return the scores (rows, classes) that :meth:`outputs` stand for."""
        return outputs

    def layer_modules(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of transformer layers inside ``model`` (the bare model or a copy of it)."""
        return cast(nn.ModuleList, model.get_submodule(self.family.layers))


def padded(rows: Sequence[Encoded], pad: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
    """Return the fields that ``pad`` names, padded on the right to the longest row: (len(rows), longest) each."""
    longest = max(row.length for row in rows)
    return {
        name: torch.tensor([row.fields[name] + [value] * (longest - row.length) for row in rows]).to(device)
        for name, value in pad.items()
    }


def pooled(model: Callable[..., Any], batch: dict[str, Tensor], pooling: Pooling = "mean") -> Tensor:
    """Return a batch's features (batch, hidden) from the last hidden states: their mean over real tokens, or one token's."""
    hidden = model(**batch).last_hidden_state
    if pooling == "first":
        return cast(Tensor, hidden[:, 0])
    if pooling == "last":
        ends = batch["attention_mask"].sum(1) - 1
        return cast(Tensor, hidden[torch.arange(len(hidden), device=hidden.device), ends])
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return cast(Tensor, (hidden * mask).sum(1) / mask.sum(1))


def environment(device: torch.device, mode: Mode | None = None) -> dict[str, Any]:
    """Return what numerics depend on besides code and data; part of every node's key (VERIFICATION, "Determinism").

    ``mode``: the engine and its precision, the reference if None.
    """
    import importlib.metadata

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "peft": importlib.metadata.version("peft"),
        "device": gpu or "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": (mode or Mode()).precision,
        "engine": (mode or Mode()).name,
    }


def default_device() -> torch.device:
    """Return CUDA when present, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(name: str, device: torch.device | None = None) -> Backbone:
    """Load a base model by pack name, folder, hub name, or ``tiny``; with ``lm:`` before the name, a language model with its
    output layer (:mod:`s3t.language`).

    Raises ModelError if it is unknown, cannot be loaded here, or belongs to no known family.
    """
    device = device or default_device()
    from s3t.answers import LANGUAGE
    from s3t.language import ASKED, LanguageBackbone, output_layer
    from s3t.pretrained import Vision, pretrained, tiny

    plain, language = name.removeprefix(LANGUAGE), name.startswith(LANGUAGE)
    made = tiny(plain, language) or pretrained(plain, device, language)
    if isinstance(made, Vision):
        from s3t.images import image_backbone

        return image_backbone(made.model, name, device, settings=made.settings)
    model, encoder, pad, words = made.model, made.encoder, made.pad, made.words
    model.requires_grad_(False).eval().to(device)
    family = FAMILIES[str(model.config.model_type)]
    if family.pooling == "last":
        model.config.use_cache = False  # whole rows are read; nothing is generated
    layers = len(cast(nn.ModuleList, model.get_submodule(family.layers)))
    parts, size = model.state_dict(), int(model.config.hidden_size)
    given: dict[str, Any] = {
        "name": name,
        "model": model,
        "family": family,
        "layers": layers,
        "hidden": size,
        "device": device,
    }
    if language:
        output = output_layer(model, made.output, name).to(device)
        digest = sha256(canonical_json([tensors_digest(parts | {LANGUAGE: output}), words]))
        given |= {"output": output, "words": made.language}
        return LanguageBackbone(**given, digest=digest, encoder=encoder, pad={**pad, ASKED: 0})
    digest = sha256(canonical_json([tensors_digest(parts), words]))
    return Backbone(**given, digest=digest, encoder=encoder, pad=pad)
