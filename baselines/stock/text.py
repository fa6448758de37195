"""Text for the stock pipeline: base model, tokens, pooling and partition as S3T's, padded by DataCollatorWithPadding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from baselines.stock.model import Base
from baselines.stock.training import Slot
from s3t.backbone import TINY, Backbone, pooled
from s3t.partition import slot
from s3t.records import Layout, Recipe, Record


def text_base(backbone: Backbone) -> Base:
    """Return S3T's base model as the stock pipeline reads it; :meth:`Base.prepared` chooses its attention."""
    return Base(
        model=backbone.model,
        layers=backbone.family.layers,
        depth=backbone.layers,
        hidden=backbone.hidden,
        targets=backbone.family.targets,
        device=backbone.device,
        features=pooled,
        collate=DataCollatorWithPadding(_tokenizer(backbone)),
        by_length=True,
    )


def text_examples(backbone: Backbone, records: Sequence[Record], recipe: Recipe) -> list[dict[str, Any]]:
    """Tokenize ``records`` once, truncated to the recipe's length. DataError if a text is empty."""
    encoded = backbone.encode([record.inputs for record in records], recipe.max_length)
    return [
        {**row.fields, "attention_mask": [1] * row.length, "labels": record.label}
        for row, record in zip(encoded, records, strict=True)
    ]


def partition(key: bytes, records: Sequence[Record], layout: Layout) -> dict[Slot, list[int]]:
    """Return the positions of the records of each (shard, slice), as S3T partitions them under ``key``."""
    found: dict[Slot, list[int]] = defaultdict(list)
    for position, record in enumerate(records):
        found[slot(key, record.id, layout)].append(position)
    return dict(found)


def _tokenizer(backbone: Backbone) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; for the tiny model, which hashes its words, one that pads alone."""
    if backbone.name.split("-")[0] == TINY:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        words = Tokenizer(WordLevel({"[PAD]": backbone.pad["input_ids"]}, unk_token="[PAD]"))
        names = ["input_ids", "attention_mask"]
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=words, pad_token="[PAD]", model_input_names=names
        )
    from transformers import AutoTokenizer

    from s3t.data import model_source

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(model_source(backbone.name)))
    return tokenizer
