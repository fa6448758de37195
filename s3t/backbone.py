"""The frozen transformer: loading, its layers by family, encoding of inputs, pooled features.

A family says where a model class keeps its layers and which linear modules LoRA adapts by default. Nothing else in the
suite knows a model class. Adding a family is one line in ``FAMILIES``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmuls on CUDA, read at its first use

import torch
from torch import Tensor, nn

from s3t.digests import tensors_digest
from s3t.engine.mode import Mode
from s3t.errors import DataError, ModelError, did_you_mean
from s3t.records import Inputs, canonical_json, sha256

TINY = "tiny"
"""Name of the small randomly initialised encoder that tests and the smoke profile use; it has learned nothing.

It has 6 layers of 32 features; ``tiny-N`` has N layers of 16 (2 for very many small runs, 12 where indices have two digits);
``tiny-bert``, ``tiny-roberta`` and so on are of another family, with 4 layers of 16.
"""


Pooling = Literal["mean", "last", "first"]


@dataclass(frozen=True)
class Family:
    """Where a model class keeps its layers, the suffixes of the modules that LoRA adapts in each of them, and what a row's
    features are: the mean of the last hidden states over its tokens, that of its last token (decoders), or of its first
    (the class token of vision transformers).

    ``transposed``: these modules hold (inputs, outputs), as GPT-2's do. ``reads``: text, or images (:mod:`s3t.images`).
    """

    layers: str
    targets: tuple[str, ...]
    pooling: Pooling = "mean"
    transposed: bool = False
    reads: Literal["text", "image"] = "text"


_BERT = Family("encoder.layer", ("query", "value"))
_LLAMA = Family("layers", ("q_proj", "v_proj"), "last")
_VIT = Family("layers", ("q_proj", "v_proj"), "first", reads="image")
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "deberta-v2": Family("encoder.layer", ("query_proj", "value_proj")),
    "mpnet": Family("encoder.layer", ("attn.q", "attn.v")),
    "distilbert": Family("transformer.layer", ("q_lin", "v_lin")),
    "gpt2": Family("h", ("c_attn",), "last", transposed=True),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": Family("encoder.layer", ("q_proj", "v_proj"), "first", reads="image"),
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
        longest = max(row.length for row in rows)
        batch = {
            name: torch.tensor([row.fields[name] + [pad] * (longest - row.length) for row in rows])
            for name, pad in self.pad.items()
        }
        batch["attention_mask"] = torch.tensor([[1] * row.length + [0] * (longest - row.length) for row in rows])
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def layer_modules(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of transformer layers inside ``model`` (the bare model or a copy of it)."""
        return cast(nn.ModuleList, model.get_submodule(self.family.layers))


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
        "engine": (mode or Mode()).engine,
    }


def default_device() -> torch.device:
    """Return CUDA when present, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(name: str, device: torch.device | None = None) -> Backbone:
    """Load a base model by pack name, folder, hub name, or ``tiny``.

    Raises ModelError if it is unknown, cannot be loaded here, or belongs to no known family.
    """
    device = device or default_device()
    made = _tiny(name) or _pretrained(name, device)
    if isinstance(made, tuple):
        from s3t.images import image_backbone

        model, settings = made
        return image_backbone(model, name, device, settings=settings)
    model, encoder, pad, words = made.model, made.encoder, made.pad, made.words
    model.requires_grad_(False).eval().to(device)
    family = FAMILIES[str(model.config.model_type)]
    if family.pooling == "last":
        model.config.use_cache = False  # whole rows are read; nothing is generated
    layers = len(cast(nn.ModuleList, model.get_submodule(family.layers)))
    digest = sha256(canonical_json([tensors_digest(model.state_dict()), words]))
    return Backbone(name, model, family, layers, int(model.config.hidden_size), digest, device, encoder, pad)


@dataclass(frozen=True)
class _Text:
    """A model with its tokenizer: how to encode, what to pad with, and what identifies the tokenizer."""

    model: Any
    encoder: Encoder
    pad: dict[str, int]
    words: str


_Image = tuple[Any, Mapping[str, Any]]
"""A vision model, and the settings of its image processor."""


def _tiny(name: str) -> _Text | _Image | None:
    """Return the tiny model of this name, None if it names none."""
    from s3t.tiny import tiny_model

    kind = name.removeprefix(TINY + "-")
    if name == TINY:
        model, pad = tiny_model("bert", 6, 32)
    elif kind.isdecimal() and 1 <= int(kind) <= 99:
        model, pad = tiny_model("bert", int(kind), 16)
    elif kind != name and kind in FAMILIES:
        model, pad = tiny_model(kind, 4, 16)
        if FAMILIES[kind].reads == "image":
            return model, {}
    else:
        return None

    def encode(inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
        rows = []
        for fields in inputs:
            words = str(fields["text"]).lower().split()[: min(max_length, 64)]
            ids = [2 + zlib.crc32(word.encode()) % 510 for word in words]
            rows.append(Encoded({"input_ids": ids}, len(ids)))
        return rows

    return _Text(model, encode, {"input_ids": pad}, "crc32 words v1")


def _padding(name: str, kind: str, tokenizer: Any) -> int:
    """Return the id to pad with. A decoder that reads its last token never sees the padding behind it, so any id will do."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    if FAMILIES[kind].pooling == "last":
        return int(tokenizer.eos_token_id or 0)
    raise ModelError(f"model {name!r} has a tokenizer without a padding token; choose one that has it")


def _pretrained(name: str, device: torch.device) -> _Text | _Image:
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    from s3t.data import model_source

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = str(model_source(name))
    attention = {} if device.type == "cpu" else {"attn_implementation": "eager"}  # on the CPU what the class prefers
    try:
        kind = str(AutoConfig.from_pretrained(source).model_type)
        if kind not in FAMILIES:
            raise ModelError(f"model {name!r} is of type {kind!r}; known families are {', '.join(sorted(FAMILIES))}")
        model = AutoModel.from_pretrained(source, dtype=torch.float32, **attention)
        if FAMILIES[kind].reads == "image":
            return model, _processor(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        hint = did_you_mean(name, ("minilm", "mpnet", TINY))
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {name!r} cannot be loaded{hint}: {first}. Give a pack, a folder or a hub name that is reachable here"
        ) from error
    limit = int(getattr(model.config, "max_position_embeddings", 512)) - 2
    padding = _padding(name, kind, tokenizer)

    def encode(inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
        texts = [str(fields["text"]) for fields in inputs]
        pairs = [str(fields["text_pair"]) for fields in inputs] if "text_pair" in inputs[0] else None
        out = tokenizer(texts, pairs, truncation=True, max_length=min(max_length, limit))
        names = [field for field in tokenizer.model_input_names if field in out and field != "attention_mask"]
        return [
            Encoded({field: list(out[field][i]) for field in names}, len(out["input_ids"][i]))
            for i in range(len(texts))
        ]

    pad = {"input_ids": padding}
    if "token_type_ids" in tokenizer.model_input_names:
        pad["token_type_ids"] = 0
    words = sha256(tokenizer.backend_tokenizer.to_str().encode())
    return _Text(model, encode, pad, words)


def _processor(source: str) -> Mapping[str, Any]:
    """Return the settings of a model's image processor, none if it has none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return cast(Mapping[str, Any], ImageProcessingMixin.get_image_processor_dict(source)[0])
    except OSError:
        return {}
