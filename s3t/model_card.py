"""The model card of an export: what it was trained on, what was deleted so far, and how to use it (Mitchell et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from s3t.answers import in_words

if TYPE_CHECKING:
    from s3t.backbone import Backbone, Pooling
    from s3t.exporting import Statement
    from s3t.runs import Run

FEATURES: Mapping[Pooling, tuple[str, ...]] = {
    "mean": (
        'real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)',
        "features = (hidden * real).sum(1) / real.sum(1)",
    ),
    "last": ('features = hidden[range(len(hidden)), batch["attention_mask"].sum(1) - 1]',),
    "first": ("features = hidden[:, 0]",),
}


def _reading(model: Backbone) -> str:
    """Say what a batch is."""
    from s3t.images import ImageBackbone

    if not isinstance(model, ImageBackbone):
        return "rows padded on the right"
    side, mean, deviation = model.size, list(model.mean), list(model.deviation)
    return f"pixel_values: RGB of {side} x {side}, bilinear, (x / 255 - {mean}) / {deviation}"


_TEXT = (
    "```python", "from peft import AutoPeftModelForCausalLM", "",
    "model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)",
    "logits = model(**batch).logits  # (rows, tokens, vocabulary); model.generate(**batch) writes on", "```",
)  # fmt: skip


def _scores(model: Backbone) -> list[str]:
    """Return the card's lines that make scores."""
    return [
        "```python", "from peft import AutoPeftModelForFeatureExtraction", "from safetensors.torch import load_file", "",
        'body = AutoPeftModelForFeatureExtraction.from_pretrained(FOLDER)', 'head = load_file(f"{FOLDER}/head.safetensors")',
        f"hidden = body(**batch).last_hidden_state  # (rows, tokens, hidden); {_reading(model)}",
        *FEATURES[model.family.pooling],
        'scores = features @ head["weight"].T + head["bias"]', "```",
    ]  # fmt: skip


def card(told: Statement, run: Run, model: Backbone, certificate: str) -> str:
    """Return the model card (Mitchell et al. 2019) with the front matter that model hubs read.

    ``certificate``: the file that has it, or "none".
    """
    plan, data = run.config.plan, run.config.data
    kind = run.config.recipe.adapter
    named = {"lora": "A LoRA", "ia3": "An (IA)3"}[kind]
    head = {"base_model": told.model, "library_name": "peft", "tags": ["s3t", "machine-unlearning", kind]}
    head_too = "" if model.predicts_text else " and a linear head"
    lines = [
        "---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "",
        f"# {plan.method}, shard {told.shard} of {plan.layout.shards}", "",
        f"{named} adapter{head_too} for {told.model}, exported from an exact-unlearning run "
        f"({data['name'] or 'own data'}; {in_words(told.classes)[0]}).", "",
        "| | |", "| --- | --- |",
        f"| trained on | slices {', '.join(map(str, told.order))} of shard {told.shard}, in this order; "
        f"{told.rows} retained records |",
        f"| layout | {plan.layout.shards} shards, {plan.layout.slices} slices each, {plan.layout.budget} orders |",
        f"| deleted from the run so far | {told.deletions} records; none of them has influenced these tensors |",
        f"| state of the run | ledger entry {told.entry}, configuration sha256 {told.run} |",
        f"| numerics | kernel {told.kernel}; base model sha256 {told.model_digest} |",
        f"| certificate | {certificate} |",
        "", "A deletion from the run does not reach this copy. `s3t check-export FOLDER RUN` says whether a later request has "
        "hit what it was trained on; then withdraw it and export anew.", "",
        *(_TEXT if model.predicts_text else _scores(model)), "",
        f"{in_words(told.classes)[1]} A run serves the mean of them over its shards.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
