"""Tiny randomly initialised encoders of every family, weights from a fixed seed: for tests, and for trials offline."""

from __future__ import annotations

from typing import Any

VOCABULARY = 512
SEED = 20240616


def tiny_model(family: str, layers: int, hidden: int) -> tuple[Any, int]:
    """Return a model of ``family`` with 2 heads and 64 positions, and the id that it pads with."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return _make(family, layers, hidden), 0 if family in ("bert", "distilbert") else 1


def _make(family: str, layers: int, hidden: int) -> Any:
    import transformers as t

    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 64 if family == "bert" else 66,
        "attn_implementation": "sdpa",
    }
    if family == "bert":
        return t.BertModel(t.BertConfig(**size), add_pooling_layer=False)
    if family == "roberta":
        return t.RobertaModel(t.RobertaConfig(**size, type_vocab_size=1, pad_token_id=1), add_pooling_layer=False)
    if family == "mpnet":
        return t.MPNetModel(
            t.MPNetConfig(**size | {"attn_implementation": "eager"}, pad_token_id=1), add_pooling_layer=False
        )
    shape: dict[str, Any] = {"dim": hidden, "n_layers": layers, "n_heads": 2, "hidden_dim": 2 * hidden}
    rest = {name: size[name] for name in ("vocab_size", "max_position_embeddings", "attn_implementation")}
    return t.DistilBertModel(t.DistilBertConfig(**shape, **rest))
