"""PEFT's configuration of a stage's adapter, as the oracle makes it: apart from s3t.blocks, from docs/DERIVATION.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import IA3Config, LoraConfig

from s3t.records import Recipe
from verify.plans import Stage

if TYPE_CHECKING:
    from s3t.backbone import Backbone


def adapter_config(backbone: Backbone, stage: Stage, recipe: Recipe) -> LoraConfig | IA3Config:
    """Return the configuration of the adapter that the recipe asks for, on the stage's layers."""
    if recipe.adapter == "ia3":
        return _scaling(backbone, stage, recipe)
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        target_modules=list(recipe.targets or backbone.family.targets),
        layers_to_transform=list(stage.layers),
        layers_pattern=backbone.family.layers.split(".")[-1],
        fan_in_fan_out=backbone.family.transposed,
    )


def _scaling(backbone: Backbone, stage: Stage, recipe: Recipe) -> IA3Config:
    """Return the configuration of (IA)3 on the stage's layers, every module by its full path."""
    family = backbone.family
    layers = [f"{family.layers}.{layer}." for layer in stage.layers]
    inputs = [layer + path for layer in layers for path in family.ia3_inputs]
    chosen = [layer + path for layer in layers for path in family.ia3] + inputs
    if recipe.targets:
        ends = tuple(f".{target}" for target in recipe.targets)
        chosen = [
            n for n, _ in backbone.model.named_modules() if n.startswith(tuple(layers)) and f".{n}".endswith(ends)
        ]
    return IA3Config(
        target_modules=chosen, feedforward_modules=[n for n in inputs if n in chosen], fan_in_fan_out=family.transposed
    )
