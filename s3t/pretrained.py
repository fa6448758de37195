"""Base models as transformers has them, and the tiny ones: weights, tokenizer or image settings, and what identifies them."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from s3t.backbone import FAMILIES, TINY, Encoded, Encoder
from s3t.errors import ModelError, did_you_mean
from s3t.language import Words, encoder
from s3t.records import Inputs, sha256


@dataclass(frozen=True)
class Text:
    """A model with its tokenizer: how to encode, what to pad with, and what identifies the tokenizer.

    ``output``: the output layer (vocabulary, hidden) of a language model that has one of its own; ``language``: its words.
    """

    model: Any
    encoder: Encoder
    pad: dict[str, int]
    words: str
    output: Tensor | None = None
    language: Words | None = None


@dataclass(frozen=True)
class Vision:
    """A vision model and the settings of its image processor."""

    model: Any
    settings: Mapping[str, Any]


_TINY = re.compile(rf"{TINY}(-(?P<kind>[a-z][a-z0-9-]*?))?(-(?P<layers>[0-9]{{1,2}}))?")


def tiny(name: str, language: bool = False) -> Text | Vision | None:
    """Return the tiny model of this name, to predict texts if it is a ``language`` model; None if it names none."""
    from s3t.tiny import tiny_model

    if not (asked := _TINY.fullmatch(name)):
        return None
    kind, layers = asked["kind"] or "bert", int(asked["layers"] or (4 if asked["kind"] else 6))
    if kind not in FAMILIES or not layers:
        return None
    model, pad = tiny_model(kind, layers, 32 if name == TINY else 16)
    if language:
        _check_decoder(name, kind)
        model.config.tie_word_embeddings = True
        end = _word_id(".")
        spoken = Words(lambda text: [_word_id(word) for word in text.lower().split()], (), end, end, 64)
        return Text(model, encoder(spoken), {"input_ids": pad}, "crc32 words, end of text v1", language=spoken)
    if FAMILIES[kind].reads == "image":
        return Vision(model, {})

    def encode(inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
        rows = []
        for fields in inputs:
            said = " ".join(str(fields[name]) for name in ("text", "text_pair") if name in fields)
            ids = [_word_id(word) for word in said.lower().split()[: min(max_length, 64)]]
            rows.append(Encoded({"input_ids": ids}, len(ids)))
        return rows

    return Text(model, encode, {"input_ids": pad}, "crc32 words v2")


def _word_id(word: str) -> int:
    return 2 + zlib.crc32(word.encode()) % 510


def _check_decoder(name: str, kind: str) -> None:
    """ModelError unless models of this kind predict the next token."""
    if FAMILIES[kind].pooling != "last":
        known = ", ".join(sorted(kind for kind, family in FAMILIES.items() if family.pooling == "last"))
        raise ModelError(f"model {name!r} is of type {kind!r}, which predicts no text; those that do are {known}")


def _padding(name: str, kind: str, tokenizer: Any) -> int:
    """Return the id to pad with. A decoder that reads its last token never sees the padding behind it, so any id will do."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    if FAMILIES[kind].pooling == "last":
        return int(tokenizer.eos_token_id or 0)
    raise ModelError(f"model {name!r} has a tokenizer without a padding token; choose one that has it")


def pretrained(name: str, device: torch.device, language: bool = False) -> Text | Vision:
    """Load a pack, a folder or a hub name in float32; ``language``: to predict texts, with the output layer.

    ModelError if that cannot be done, or it is of no known family.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    from s3t.data import model_source

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = str(model_source(name))
    attention = {} if device.type == "cpu" else {"attn_implementation": "eager"}  # on the CPU what the class prefers
    if (file := Path(source) / "vit_s_focus.onnx").is_file():
        from s3t.onnx_vit import SETTINGS, read_vit

        return Vision(read_vit(file, attention), SETTINGS)
    packed = _gguf(source)
    try:
        kind = str(AutoConfig.from_pretrained(source, **packed).model_type)
        if kind not in FAMILIES:
            raise ModelError(f"model {name!r} is of type {kind!r}; known families are {', '.join(sorted(FAMILIES))}")
        if language:
            _check_decoder(name, kind)
        how = attention | packed
        model, output = _causal(source, how) if language else (_whole(source, how), None)
        if packed:
            _unpacked(model)
        if FAMILIES[kind].reads == "image":
            return Vision(model, _processor(source))
        tokenizer = _packed_tokenizer(source, **packed) if packed else AutoTokenizer.from_pretrained(source)
    except ImportError as error:
        raise ModelError(f"model {name!r} cannot be read ({error}); for GGUF files: pip install 's3t[gguf]'") from error
    except (OSError, ValueError) as error:
        hint = did_you_mean(name, ("minilm", "mpnet", TINY))
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {name!r} cannot be loaded{hint}: {first}. Give a pack, a folder or a hub name that is reachable here"
        ) from error
    limit = int(getattr(model.config, "max_position_embeddings", 512)) - 2
    padding = _padding(name, kind, tokenizer)
    words = sha256(tokenizer.backend_tokenizer.to_str().encode())
    if language:
        spoken = _for_language(name, tokenizer, limit)
        return Text(model, encoder(spoken), {"input_ids": padding}, words, output, spoken)

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
    return Text(model, encode, pad, words)


def _gguf(source: str) -> dict[str, str]:
    """Return how transformers is told of the only GGUF file in a folder without other weights; nothing else."""
    folder = Path(source)
    found = [path.name for path in sorted(folder.glob("*.gguf"))] if folder.is_dir() else []
    return {"gguf_file": found[0]} if len(found) == 1 and not (folder / "config.json").exists() else {}


@functools.lru_cache(maxsize=1)
def _packed_tokenizer(source: str, gguf_file: str) -> Any:
    """Return the tokenizer in a GGUF file, converted once per process: that takes half a minute."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)


def _unpacked(model: Any) -> None:
    """Forget that a model's weights, float32 now, were read from fewer bits: they are trained and saved as any others.

    Where they came from is forgotten too: PEFT would look for a configuration there, and warn that there is none.
    """
    model.name_or_path = model.config._name_or_path = ""
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _whole(source: str, attention: Mapping[str, str]) -> Any:
    """Return the bare model without anything random in it: a pooler that the checkpoint lacks, which nothing here reads, is
    left out. ModelError if it lacks more.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what is missing is said below, in one line
    try:
        how: dict[str, Any] = {"dtype": torch.float32, **attention}
        model, told = AutoModel.from_pretrained(source, output_loading_info=True, **how)
        missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
        if told["missing_keys"] and not missing:
            return AutoModel.from_pretrained(source, add_pooling_layer=False, **how)
    finally:
        logging.set_verbosity(before)
    if missing:
        raise ModelError(
            f"model {source!r} lacks the weights of {missing[0]!r} and {len(missing) - 1} more, which would be random; "
            "give a complete one"
        )
    return model


def _causal(source: str, attention: Mapping[str, str]) -> tuple[Any, Tensor | None]:
    """Return a causal language model's body, and its output layer unless that is the input embeddings' tensor.

    ModelError if the checkpoint lacks weights.
    """
    from transformers import AutoModelForCausalLM

    how: dict[str, Any] = {"dtype": torch.float32, **attention}
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **how)
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"model {source!r} lacks the weights of {missing[0]!r}, which would be random; give a complete one"
        )
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model.base_model, None if tied else model.get_output_embeddings().weight


def _for_language(name: str, tokenizer: Any, limit: int) -> Words:
    """Return how prompts and answers become ids. ModelError for a tokenizer without an end of text."""
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {name!r} has a tokenizer without an end of text; choose one that has it")
    begin, end = tokenizer.bos_token_id, int(tokenizer.eos_token_id)
    begins = tokenizer("a")["input_ids"][:1] == [begin]

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Words(tokenize, (begin,) if begins else (), end, end if begin is None else int(begin), limit)


def _processor(source: str) -> Mapping[str, Any]:
    """Return the settings of a model's image processor, none if it has none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return cast(Mapping[str, Any], ImageProcessingMixin.get_image_processor_dict(source)[0])
    except OSError:
        return {}
