"""Tiny randomly initialised encoders of every family, weights from a fixed seed: for tests, and for trials offline."""

from __future__ import annotations

from typing import Any

VOCABULARY = 512
SEED = 20240616


def tiny_model(family: str, layers: int, hidden: int) -> tuple[Any, int]:
    """Return a model of ``family`` with 2 heads and 64 positions (images: 16 pixels squared), and the id that it pads with."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return _make(family, layers, hidden), 0 if family in ("bert", "distilbert", "electra", "deberta-v2") else 1


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
    bare: dict[str, Any] = {"add_pooling_layer": False}
    if family == "bert":
        return t.BertModel(t.BertConfig(**size), **bare)
    if family in ("roberta", "xlm-roberta", "camembert"):
        name = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}[family]
        config = getattr(t, f"{name}Config")(**size, type_vocab_size=1, pad_token_id=1)
        return getattr(t, f"{name}Model")(config, **bare)
    if family == "mpnet":
        return t.MPNetModel(t.MPNetConfig(**size | {"attn_implementation": "eager"}, pad_token_id=1), **bare)
    if family == "electra":
        return t.ElectraModel(t.ElectraConfig(**size, embedding_size=hidden // 2))
    if family == "deberta-v2":
        relative: dict[str, Any] = {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
        }
        size |= {"attn_implementation": "eager", "type_vocab_size": 0, "norm_rel_ebd": "layer_norm"}
        return t.DebertaV2Model(t.DebertaV2Config(**size, **relative, position_biased_input=False))
    if family in ("vit", "deit", "dinov2"):
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "attn_implementation")
        square: dict[str, Any] = {**{name: size[name] for name in names}, "image_size": 16, "patch_size": 4}
        if family == "dinov2":
            return t.Dinov2Model(t.Dinov2Config(**square, mlp_ratio=2))
        square["intermediate_size"] = size["intermediate_size"]
        return (
            t.ViTModel(t.ViTConfig(**square), **bare)
            if family == "vit"
            else t.DeiTModel(t.DeiTConfig(**square), **bare)
        )
    if family == "distilbert":
        shape: dict[str, Any] = {"dim": hidden, "n_layers": layers, "n_heads": 2, "hidden_dim": 2 * hidden}
        rest = {name: size[name] for name in ("vocab_size", "max_position_embeddings", "attn_implementation")}
        return t.DistilBertModel(t.DistilBertConfig(**shape, **rest))
    return _decoder(t, family, size)


def _decoder(t: Any, family: str, size: dict[str, Any]) -> Any:
    if family == "gpt2":
        shape: dict[str, Any] = {
            "n_embd": size["hidden_size"],
            "n_layer": size["num_hidden_layers"],
            "n_head": 2,
            "n_positions": 66,
        }
        return t.GPT2Model(
            t.GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **shape, attn_implementation="sdpa")
        )
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    heads = {"num_key_value_heads": 1} | ({"head_dim": size["hidden_size"] // 2} if family == "qwen3" else {})
    return getattr(t, f"{name}Model")(getattr(t, f"{name}Config")(**size, **heads))
