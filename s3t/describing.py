"""What a run is made with, described and checked before anything is written or continued. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.answers import LANGUAGE, check_label, in_words, is_text, model_name
from s3t.engine.mode import Mode
from s3t.errors import DataError, LayoutError, ModelError, RecipeError, RunError
from s3t.partition import slot
from s3t.plan import Plan
from s3t.records import Layout, Recipe, Record
from s3t.runs import Run, RunConfig, open_run
from s3t.unique import check_unique

if TYPE_CHECKING:
    from s3t.backbone import Backbone


def describe(
    plan: Plan, recipe: Recipe, backbone: Backbone, data: dict[str, Any], seed: int, mode: Mode | None = None
) -> RunConfig:
    """Return the configuration of a new run. LayoutError if the plan names layers that the model does not have.

    ``mode``: the engine and its precision, the reference if None; ModelError or RecipeError if the model or the LoRA
    targets do not fit it.
    """
    import s3t

    mode = mode or Mode()
    if len(data["classes"]) == 1 and recipe.ensemble != "mean-logits":
        raise RecipeError(
            f"ensemble={recipe.ensemble!r} needs classes, and the task's answers are {in_words(data['classes'])[0]}; "
            "choose mean-logits"
        )
    text = is_text(data["classes"])
    if text is not backbone.predicts_text:
        wanted = in_words(data["classes"])[0]
        raise ModelError(
            f"the task asks for {wanted}, and {backbone.name!r} is loaded for others; give its name, "
            f"with {LANGUAGE!r} before it for texts alone"
        )
    if recipe.packing:
        backbone.check_packing(recipe.max_length)
    if plan.head is not None:
        from s3t.analytic.features import check_backbone
        from s3t.analytic.solving import check_form

        check_backbone(backbone, plan.head)
        check_form(plan.head, len(data["classes"]))
    if text and mode.engine == "fast":
        raise RecipeError("the fast engine trains classes and numbers, not texts; use engine=reference")
    if mode.engine == "fast" and any(stage.kind == "lora" for stage in plan.stages):
        from s3t.engine.encoder import Encoder

        if recipe.dora:
            raise RecipeError("the fast engine has no DoRA, dora=True; use engine=reference")
        if recipe.adapter != "lora":
            raise RecipeError(f"the fast engine trains LoRA, not adapter={recipe.adapter!r}; use engine=reference")
        encoder = Encoder.of(backbone, mode.precision)
        encoder.targets(recipe.targets)
        encoder.check_form(mode.form)

    beyond = [layer for stage in plan.stages for layer in stage.layers if layer >= backbone.layers]
    if beyond:
        raise LayoutError(
            f"the plan names layer {beyond[0]}, but {backbone.name!r} has layers 0..{backbone.layers - 1}"
        )
    model = {name: getattr(backbone, name) for name in ("name", "digest", "layers", "hidden")}
    about = {"name": "", "source": "", "digest": ""} | data
    return RunConfig(plan, recipe, model, about, seed, mode.kernel, s3t.__version__)


def base_model(model: str | Backbone, classes: Sequence[str] = ()) -> Backbone:
    """Return the base model, loaded for a task with ``classes`` if it is given by name. ModelError as
    :func:`s3t.backbone.load`.
    """
    if not isinstance(model, str):
        return model
    from s3t.backbone import load

    return load(model_name(model, classes))


def check_records(
    records: Sequence[Record], classes: Sequence[str], evaluation: Iterable[Sequence[Record]] = ()
) -> None:
    """Raise DataError for an id that occurs twice, also among the ``evaluation`` records, or a label outside ``classes``."""
    check_unique(records)
    kept = [*chain.from_iterable(evaluation)]
    fixed = {record.id for record in kept}
    for record in records:
        if record.id in fixed:
            raise DataError(
                f"record id {record.id!r} occurs among the training and the evaluation records; a deletable record "
                "cannot be a never-deletable one too: rename or drop one of them"
            )
    check_unique(kept)
    for record in records:
        check_label(record.id, record.label, classes)


def check_slots(key: bytes, records: Sequence[Record], layout: Layout) -> None:
    """Raise DataError if a slot would hold no record."""
    empty = {(s, p) for s in range(layout.shards) for p in range(layout.slices)}
    empty -= {slot(key, record.id, layout) for record in records}
    if empty:
        raise DataError(
            f"{len(empty)} of {layout.shards * layout.slices} slots have no record, slot {min(empty)} first "
            f"({len(records)} records in all); use fewer shards or slices, or allow empty slices"
        )


def open_same(path: Path, config: RunConfig, key: bytes | None) -> Run:
    """Open the run at ``path``, which must have been made with ``config`` and ``key`` (:func:`check_same`)."""
    run = open_run(path)
    try:
        check_same(run, config, key)
    except RunError:
        run.close()
        raise
    return run


def check_same(run: Run, config: RunConfig, key: bytes | None) -> None:
    """Raise RunError unless ``run`` was made with ``config`` (by whatever version) and, if given, with slot ``key``."""
    ours = dataclasses.replace(config, version=run.config.version)
    if ours.to_bytes() != run.config.to_bytes():
        differing = [f.name for f in dataclasses.fields(ours) if getattr(ours, f.name) != getattr(run.config, f.name)]
        raise RunError(f"{run.path} was made with another {', '.join(differing)}; use that, or another folder")
    if key is not None and key != run.key:
        raise RunError(f"{run.path} was made with another slot key; leave the key out, or use another folder")


def check_model(config: RunConfig, backbone: Backbone) -> None:
    """Raise RunError unless ``backbone`` is, to the byte, the base model that the run was made with."""
    if backbone.digest != config.model["digest"]:
        raise RunError(
            f"base model {config.model['name']!r} is not the one this run was trained with (digest "
            f"{backbone.digest[:12]}, expected {config.model['digest'][:12]}); restore the right one"
        )
