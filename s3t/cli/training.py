"""``s3t train`` and ``s3t refresh``."""

from __future__ import annotations

import secrets
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from s3t.answers import model_name
from s3t.cli.inputs import LAYOUT, choose_design, choose_head, choose_layout, choose_recipe, choose_rule, read_dataset
from s3t.cli.options import (
    Address,
    AnswerColumn,
    BlockLayers,
    BottomUp,
    CacheGb,
    ChoiceColumns,
    Classes,
    Data,
    ExchangePath,
    Executor,
    Floor,
    FreshHead,
    Gpus,
    GroupColumn,
    Head,
    IdColumn,
    ImageColumn,
    Json,
    LabelColumn,
    LastSlice,
    Limit,
    Number,
    Pool,
    Prior,
    Run,
    ShareRank,
    Stacked,
    Test,
    TextColumn,
    Threads,
    Validation,
    Weights,
    Workers,
)
from s3t.cli.output import print_result, progress_bar, spent
from s3t.cli.records import report_before_training
from s3t.orders.rule import HORIZON, RULES
from s3t.resources import Resources


def train(
    run: Run,
    data: Data = "trec6",
    model: Annotated[str, typer.Option(help="A pack, a folder or a hub name; 'tiny' for trials.")] = "minilm",
    method: Annotated[
        str, typer.Option(help="s3t, sequential, sisa-lora, sisa-full (each -lazy), retrain-..., analytic")
    ] = "s3t",
    shards: Annotated[int | None, typer.Option(help=f"Disjoint parts of the data ({LAYOUT['shards']}).")] = None,
    slices: Annotated[int | None, typer.Option(help=f"Parts of a shard, a block each ({LAYOUT['slices']}).")] = None,
    budget: Annotated[int | None, typer.Option(help=f"Orders trained per shard ({LAYOUT['budget']}).")] = None,
    orders: Annotated[str | None, typer.Option(help=f"How orders are chosen: {', '.join(RULES)}.")] = None,
    prior: Prior = None,
    horizon: Annotated[int | None, typer.Option(help=f"Requests that orders are chosen for ({HORIZON}).")] = None,
    block_layers: BlockLayers = None,
    bottom_up: BottomUp = False,
    stacked: Stacked = False,
    share_rank: ShareRank = False,
    last_slice_only: LastSlice = False,
    fresh_head: FreshHead = False,
    floor: Floor = None,
    head: Head = None,
    weights: Weights = "equal",
    pool: Pool = "linear",
    seed: Annotated[int, typer.Option(help="Seed that all seeds of the run derive from.")] = 0,
    epochs: Annotated[float | None, typer.Option(help="Epochs per stage.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Records per optimizer step.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA matrices.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the backbone's trained tensors.")] = None,
    head_lr: Annotated[float | None, typer.Option(help="Learning rate of the head.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per record.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any field of the recipe.")] = None,
    tuned: Annotated[Path | None, typer.Option(help="Start from what `s3t tune` chose for this method.")] = None,
    engine: Annotated[
        str, typer.Option(help="reference (PEFT, all layers), fast, or for images graphs or grouped (docs/ENGINE.md).")
    ] = "reference",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto: what is fast here.")] = "auto",
    cache_gb: CacheGb = 2.0,
    workers: Workers = 1,
    executor: Executor = "processes",
    threads: Threads = None,
    address: Address = None,
    gpus: Gpus = 0.0,
    exchange: ExchangePath = None,
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
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Accept slices without records.")] = False,
    copies: Annotated[bool, typer.Option("--duplicates/--no-duplicates", help="Report copies under other ids.")] = True,
    as_json: Json = False,
) -> None:
    """Train a new run, or continue an interrupted one (the same command)."""
    resources = Resources(cache_gb, workers, executor, threads, address, gpus, exchange)
    layout = choose_layout(method, {"shards": shards, "slices": slices, "budget": budget})
    fields = {"epochs": epochs, "batch_size": batch_size, "rank": rank, "lr": lr, "head_lr": head_lr}
    fields |= {"max_length": max_length}
    chosen = choose_recipe(fields, recipe or [], None if tuned is None else (tuned, method))
    rule = choose_rule(method, orders, prior, horizon, seed)
    shape = {"bottom_up": bottom_up, "cumulative": not last_slice_only, "fresh_head": fresh_head, "stacked": stacked}
    design = choose_design(block_layers, **shape)
    columns = {"text": text, "answer": answer, "image": image, "choices": choices, "label": label, "id": id_}
    columns |= {"group": group_by, "validation": validation, "test": test, "number": number}
    dataset = read_dataset(data, columns, classes, limit)

    from baselines.methods import make_plan
    from s3t.backbone import load
    from s3t.describing import check_slots
    from s3t.partition import KEY_BYTES
    from s3t.plan import shared_rank
    from s3t.system import System

    backbone = load(model_name(model, dataset.classes))
    beside = choose_head(head, tuned if method == "analytic" else None, backbone)
    plan = make_plan(method, layout, chosen, backbone.layers, rule, design, beside, floor, weights, pool)
    chosen = shared_rank(chosen, plan, backbone.layers) if share_rank else chosen
    key = None if run.exists() else secrets.token_bytes(KEY_BYTES)
    system = System.create(
        run,
        plan,
        chosen,
        model=backbone,
        classes=dataset.classes,
        seed=seed,
        key=key,
        data=dataset.name,
        source=dataset.source if Path(data).exists() else data,  # a name that the verifier can load again
        digest=dataset.digest,
        evaluation=(dataset.validation, dataset.test),
        allow_empty=allow_empty,
        engine=engine,
        precision=precision,
        resources=resources,
    )
    found = None
    if key is not None and copies:
        if not allow_empty:
            check_slots(key, dataset.train, plan.layout)
        found = report_before_training(dataset.train, key, plan.layout)
    with closing(system), progress_bar() as progress:
        cost = system.fit(dataset.train, progress)
    result = {"run": str(run), "cost": asdict(cost), "duplicates": found}
    print_result(as_json, result, f"trained {run}: {spent(cost)}")


def refresh(
    run: Run,
    cache_gb: CacheGb = 2.0,
    workers: Workers = 1,
    executor: Executor = "processes",
    threads: Threads = None,
    address: Address = None,
    gpus: Gpus = 0.0,
    exchange: ExchangePath = None,
    as_json: Json = False,
) -> None:
    """Rebuild what deletions dropped, on the retained records alone."""
    from s3t.system import System

    resources = Resources(cache_gb, workers, executor, threads, address, gpus, exchange)
    with closing(System.open(run, resources=resources)) as system, progress_bar() as progress:
        cost = system.refresh(progress)
    print_result(as_json, {"run": str(run), "cost": asdict(cost)}, f"refreshed {run}: {spent(cost)}")
