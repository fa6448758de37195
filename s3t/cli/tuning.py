"""``s3t tune``: recipes chosen on the validation split, with the same number of trials for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from s3t.answers import model_name
from s3t.cli.inputs import LAYOUT, choose_recipe, read_dataset, typed
from s3t.cli.options import (
    AnswerColumn,
    ChoiceColumns,
    Classes,
    Data,
    GroupColumn,
    IdColumn,
    ImageColumn,
    Json,
    LabelColumn,
    Limit,
    Number,
    Test,
    TextColumn,
    Validation,
)
from s3t.cli.output import print_result
from s3t.errors import RecipeError
from s3t.records import Layout, Recipe


def tune(
    out: Annotated[Path, typer.Argument(help="File for what was tried and chosen (JSON).")],
    data: Data = "trec6",
    model: Annotated[str, typer.Option(help="A pack, a folder or a hub name; 'tiny' for trials.")] = "minilm",
    method: Annotated[list[str] | None, typer.Option(help="Methods, each tuned alike (s3t).")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V1,V2,...", help="Values of a field of the recipe, for all methods."),
    ] = None,
    recipe: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A field that is not tuned.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="At most so many trials per method.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of each trial (100).")] = None,
    shards: Annotated[int, typer.Option(help="Disjoint parts of the data.")] = LAYOUT["shards"],
    slices: Annotated[int, typer.Option(help="Parts of a shard.")] = LAYOUT["slices"],
    engine: Annotated[str, typer.Option(help="reference, or fast.")] = "fast",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto.")] = "auto",
    text: TextColumn = None,
    answer: AnswerColumn = None,
    image: ImageColumn = None,
    choices: ChoiceColumns = None,
    label: LabelColumn = None,
    id_: IdColumn = None,
    group_by: GroupColumn = None,
    classes: Classes = None,
    number: Number = None,
    validation: Validation = None,
    test: Test = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Choose recipes on the validation split and write down all that was tried; `s3t train --tuned FILE` takes the best.

    With the same data options as `s3t train`, the split is the same, and the test records are not read.
    """
    from baselines.methods import METHODS, UNDIVIDED, find
    from s3t import tuning
    from s3t.backbone import load

    methods = list(dict.fromkeys(method or ["s3t"]))
    if out.exists():
        raise RecipeError(f"{out} exists already; nothing was tried, choose another file")
    for name in methods:
        find(name)
        if name == "analytic":
            raise RecipeError(
                "method analytic trains nothing, so there is no recipe to tune; `s3t train --head` sets its ridge"
            )
    base, wanted = choose_recipe({}, recipe or []), dict(_values(pair) for pair in grid or [])
    grids = {name: tuning.grid(base, wanted or _usual(name)) for name in methods}
    chosen = tuning.same_budget(grids, trials)
    columns = {"text": text, "answer": answer, "image": image, "choices": choices, "label": label, "id": id_}
    columns |= {"group": group_by}
    dataset = read_dataset(data, columns | {"validation": validation, "test": test, "number": number}, classes, limit)
    case = tuning.Case(dataset, load(model_name(model, dataset.classes)), tuple(seed or [100]), engine, precision)
    layouts = {name: Layout(1, 1, 1) if name in UNDIVIDED else Layout(shards, slices, 1) for name in methods}
    plans = {name: (layouts[name], METHODS[name]) for name in methods}
    tried = tuning.tune(case, plans, chosen, lambda trial: typer.echo(_told(trial, wanted, case.metric), err=True))
    written = tuning.write(out, case, tried, layouts)
    lines = [f"{name}: {_told(trial, wanted, case.metric)}" for name, trial in tuning.best(tried).items()]
    print_result(as_json, written, "\n".join(["best on validation:", *lines, f"all trials: {out}"]))


def _usual(method: str) -> Any:
    from s3t.tuning import FULL_GRID, LORA_GRID

    return FULL_GRID if method.endswith(("-full", "-full-lazy")) else LORA_GRID


def _values(pair: str) -> tuple[str, list[Any]]:
    """Return a field and the values tried. RecipeError for what is not NAME=V1,V2,..."""
    name, equals, values = pair.partition("=")
    if not equals or not values:
        raise RecipeError(f"--grid {pair!r} is not NAME=V1,V2,...; write for example lr=0.001,0.004")
    return name, [typed(value) for value in values.split(",")]


def _told(trial: Any, wanted: Any, metric: str) -> str:
    recipe: Recipe = trial.recipe
    said = " ".join(f"{name}={getattr(recipe, name)}" for name in (wanted or ("lr", "head_lr")))
    return f"{trial.method} {said}: {metric} {trial.score:.4f} ({trial.seconds:.0f} s)"
