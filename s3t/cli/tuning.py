"""``s3t tune``: recipes chosen on the validation split, with the same number of trials for every method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from s3t.analytic.head import AnalyticHead, Form
from s3t.answers import model_name
from s3t.cli.inputs import LAYOUT, choose_recipe, head_fields, read_dataset, typed
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

HEAD = "analytic"


def tune(
    out: Annotated[Path, typer.Argument(help="File for what was tried and chosen (JSON).")],
    data: Data = "trec6",
    model: Annotated[str, typer.Option(help="A pack, a folder or a hub name; 'tiny' for trials.")] = "minilm",
    method: Annotated[list[str] | None, typer.Option(help="Methods, each tuned alike (s3t).")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2,...", help="Values of a field of the recipe, for all methods; or ridge, form."
        ),
    ] = None,
    recipe: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A field that is not tuned.")] = None,
    head: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Method analytic: a field that is not tuned.")
    ] = None,
    records: Annotated[
        int | None, typer.Option(min=1, help="Method analytic: how many the head is for (the training records).")
    ] = None,
    floor: Annotated[
        bool, typer.Option("--floor", help="Also the share of the analytic head beside the other methods' chains.")
    ] = False,
    validation_alone: Annotated[
        bool,
        typer.Option("--validation-alone", help="Train trials on a part of validation, and on no training record."),
    ] = False,
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
    trained = [name for name in methods if name != HEAD]
    base, wanted = choose_recipe({}, recipe or []), dict(_values(pair) for pair in grid or [])
    of_head: dict[str, list[Any]] = {name: wanted.pop(name) for name in ("ridge", "form") if name in wanted}
    start = _start(head or [], of_head) if HEAD in methods else None
    _check(
        trained, start, [*of_head, *(head or [])], list(wanted), trials, records, floor=floor, alone=validation_alone
    )
    grids = {name: tuning.grid(base, wanted or _usual(name)) for name in trained}
    chosen = tuning.same_budget(grids, trials) if trained else {}
    columns = {"text": text, "answer": answer, "image": image, "choices": choices, "label": label, "id": id_}
    columns |= {"group": group_by}
    dataset = read_dataset(data, columns | {"validation": validation, "test": test, "number": number}, classes, limit)
    backbone = load(model_name(model, dataset.classes))
    case = tuning.Case(dataset, backbone, tuple(seed or [100]), engine, precision, validation_alone)
    layouts = {name: Layout(1, 1, 1) if name in UNDIVIDED else Layout(shards, slices, 1) for name in methods}
    plans = {name: (layouts[name], METHODS[name]) for name in methods}
    tuned = None
    if start is not None:
        from s3t.analytic.choosing import RIDGES
        from s3t.floors import tune_head

        forms = of_head.get("form") or (get_args(Form) if len(dataset.classes) > 1 else ("ridge",))
        tuned = tune_head(case, start, base, forms, of_head.get("ridge") or RIDGES, records)
    tried = tuning.tune(case, plans, chosen, lambda trial: typer.echo(_told(trial, wanted, case.metric), err=True))
    best = tuning.best(tried)
    if tuned is not None and floor:
        from s3t.floors import tune_share

        shares = {name: tune_share(case, plans[name], best[name].recipe, tuned) for name in trained}
        tuned = replace(tuned, shares=shares)
    written = tuning.write(out, case, tried, layouts, tuned)
    lines = [f"{name}: {_told(trial, wanted, case.metric)}" for name, trial in best.items()]
    if tuned is not None:
        found = tuned.best
        said = f"form={found.head.form} ridge={found.head.ridge:.4g} temperature={found.head.temperature:.4g}"
        lines.append(f"{HEAD}: {said}: {case.metric} {found.score:.4f}")
        lines += [f"{name} with --floor {tuned.share(name)}" for name in tuned.shares]
    print_result(as_json, written, "\n".join(["best on validation:", *lines, f"all trials: {out}"]))


def _start(pairs: list[str], grid: dict[str, list[Any]]) -> AnalyticHead:
    """Return the head that ridge, form and temperature are chosen for. RecipeError if it declares them, and for a bad grid."""
    raw = head_fields(pairs)
    for name in ("ridge", "form", "temperature"):
        if name in raw:
            remedy = "leave it out" if name == "temperature" else f"say --grid {name}={raw[name]}"
            raise RecipeError(f"--head {name}={raw[name]} declares what is chosen here; {remedy}")
    head = AnalyticHead.from_json(raw)
    for name, values in grid.items():
        for value in values:
            replace(head, **{name: value})
    return head


def _check(
    trained: list[str],
    start: AnalyticHead | None,
    of_head: list[str],
    of_recipes: list[str],
    trials: int | None,
    records: int | None,
    *,
    floor: bool,
    alone: bool,
) -> None:
    """Raise RecipeError for what is said of an analytic head, or of trained methods, where there is none."""
    if start is None and (of_head or records is not None or floor):
        what = of_head[0] if of_head else "--floor" if floor else f"--records {records}"
        raise RecipeError(f"{what} is for an analytic head; tune one too, with --method {HEAD}, or leave it out")
    if not trained and (of_recipes or trials is not None or floor or alone):
        what = of_recipes[0] if of_recipes else "--trials" if trials else "--floor" if floor else "--validation-alone"
        raise RecipeError(f"{what} is for methods that train, and {HEAD} is none; its grid is of ridge and form")
    if floor and not alone:
        raise RecipeError(
            "--floor beside chains that are trained on training records would make the share depend on them; "
            "say --validation-alone too, or declare a share without tuning"
        )


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
