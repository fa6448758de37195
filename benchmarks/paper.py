"""What the paper evaluates (arXiv 2406.16257, section 5), as declared cases with its recipes; no numbers of the paper here.

Recipes are those that the paper and its implementation report: LoRA on query and value projections of encoders and ViTs, rank
16, rank-stabilised, alpha the rank (ViT) or twice that, 5 shards of 4 slices and up to 24 orders in the deletion experiments.
Where a case here differs from what is reported, ``differs`` says how.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.profiles import FULL
from s3t.design import Design
from s3t.records import Layout, Recipe

SHARDS, SLICES = 5, 4
"""Of the deletion experiments."""
BUDGETS = (1, 2, 3, 4, 6, 12, 24)
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
SUPERGLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
LLMS = ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf", "meta-llama/Meta-Llama-3-8B")
JUDGES = ("MMLU", "HellaSwag", "PIQA", "ARC")
"""Tasks of `s3t judge` (mmlu, hellaswag, piqa, arc_easy and arc_challenge), whose data come from the hub."""

_LORA: dict[str, Any] = {"rank": 16, "rslora": True}
ROBERTA = Recipe(**_LORA, alpha=32.0, dropout=0.1, epochs=30.0, batch_size=32, lr=1e-4, head_lr=1e-4)
VIT = Recipe(**_LORA, alpha=16.0, dropout=0.1, epochs=15.0, batch_size=128, lr=2e-3, head_lr=2e-3)


@dataclass(frozen=True)
class Tuned:
    """A model fine-tuned with S3T and its competitors on one task, compared after each number of deletions in ``deletes``.

    ``weights``: of the base model, for the memory that it takes. ``design``: how S3T's blocks lie.
    """

    study: str
    data: str
    model: str
    weights: int
    layout: Layout
    recipe: Recipe
    methods: tuple[str, ...] = ("s3t", "sisa-lora-lazy", "retrain-lora", "retrain-full")
    deletes: tuple[int, ...] = (0,)
    design: Design = Design()  # noqa: RUF009 - frozen
    differs: str = ""

    def recipe_of(self, method: str) -> Recipe:
        """Return the recipe of a method; full fine-tuning, for which none is reported, takes the suite's learning rates."""
        full = method.endswith(("-full", "-full-lazy"))
        return replace(self.recipe, lr=FULL.lr, head_lr=FULL.head_lr) if full else self.recipe

    @property
    def name(self) -> str:
        """What tests and rows call the case."""
        return f"{self.study}: {self.data}, {self.model}"


def tuned() -> Iterator[Tuned]:
    """Yield the cases in which a model is trained."""
    text = Layout(1, 7, 1)
    design = Design(block_layers=(3, 2, 2, 2, 2, 2, 2))
    differs = (
        "of the 15 adapted layers that are reported over 7 slices, the first slice has three; which has is not reported"
    )
    for benchmark, tasks in (("glue", GLUE), ("superglue", SUPERGLUE)):
        for task in tasks:
            data = f"{benchmark}/{task}"
            yield Tuned(
                "fine-tuning",
                data,
                "FacebookAI/roberta-large",
                355 * 10**6,
                text,
                ROBERTA,
                design=design,
                differs=differs,
            )
    base, large = "google/vit-base-patch16-224-in21k", "google/vit-large-patch16-224-in21k"
    vision = ((base, 86, "images/cifar10"), (base, 86, "images/cifar100"), (large, 304, "images/tiny-imagenet"))
    for model, millions, data in vision:
        yield Tuned("fine-tuning", data, model, millions * 10**6, Layout(1, 6, 1), VIT)
        layout = Layout(SHARDS, SLICES, SLICES)
        yield Tuned("deletion", data, model, millions * 10**6, layout, VIT, deletes=(0, 10, 20, 40, 60, 80, 100))
    for model, billions in zip(LLMS, (7, 13, 8), strict=True):
        recipe = Recipe(rank=32, alpha=64.0, rslora=True, dropout=0.05, epochs=3.0, batch_size=128, lr=2e-5)
        differs = (
            f"judged by the likelihood of held-out answers; `s3t judge` judges a run by {', '.join(JUDGES)}, which has not "
            "been done: neither the models nor the tasks' data could be had offline"
        )
        yield Tuned(
            "instructions", "tatsu-lab/alpaca", model, billions * 10**9, Layout(1, 4, 1), recipe, differs=differs
        )


@dataclass(frozen=True)
class Grown:
    """Deletion capacity as one size of the layout grows."""

    by: str
    layouts: tuple[Layout, ...]


GROWN = (
    Grown("budget", tuple(Layout(SHARDS, SLICES, budget) for budget in BUDGETS)),
    Grown("shards", tuple(Layout(shards, SLICES, SLICES) for shards in (1, 2, 3, 5, 8, 10, 20))),
    Grown("slices", tuple(Layout(SHARDS, slices, slices) for slices in (1, 2, 3, 4, 6, 8))),
)
SHAPES: dict[str, tuple[int, int, int]] = {
    "FacebookAI/roberta-large": (24, 1024, 2),
    "google/vit-base-patch16-224-in21k": (12, 768, 10),
    "google/vit-large-patch16-224-in21k": (24, 1024, 200),
}
"""Layers, hidden size and classes: all that storage depends on."""


def stored_bytes(model: str, layout: Layout, recipe: Recipe, nodes: int) -> int:
    """Return the bytes of stored ``nodes``, float32: A and B of query and value in each layer of a block, and the head."""
    layers, hidden, classes = SHAPES[model]
    block = layers // layout.slices * 2 * (2 * recipe.rank * hidden)
    return 4 * nodes * (block + classes * (hidden + 1))
