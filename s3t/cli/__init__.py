"""The command line: thin commands over :mod:`s3t.system`; nothing heavy is imported before a command needs it.

Results go to stdout (``--json`` for programs), progress and errors to stderr. Exit codes: 0 done, 2 bad input,
130 interrupted; ``verify`` adds 1 violated and 3 undecided.
"""

from __future__ import annotations

import errno
import secrets
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from s3t.answers import model_name
from s3t.cli.attest import certify, check
from s3t.cli.deleting import delete
from s3t.cli.exporting import check_export, export
from s3t.cli.inputs import LAYOUT, choose_design, choose_head, choose_layout, choose_recipe, choose_rule, read_dataset
from s3t.cli.judging import judge
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
from s3t.cli.output import plain, print_result, progress_bar, spent, warnings_shown
from s3t.cli.planning import plan
from s3t.cli.predicting import predict
from s3t.cli.records import duplicates, report_before_training
from s3t.cli.serving import serve
from s3t.cli.tuning import tune
from s3t.errors import S3TError
from s3t.orders.rule import HORIZON, RULES
from s3t.resources import Resources

REFUSED_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
"""What the system says of paths that are not usable, whoever asked for them."""


class _OneLineErrors(TyperGroup):
    """Ends our own errors, and paths that the system refuses, in one line and exit code; others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings_shown():
                return super().invoke(ctx)
        except S3TError as error:
            typer.echo("error: " + " ".join(str(error).split()), err=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno not in REFUSED_PATHS or not isinstance(error.filename, str):
                raise
            typer.echo(f"error: {error.filename[:80]!r} cannot be used ({error.strerror}); give another path", err=True)
            raise typer.Exit(S3TError.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted: nothing acknowledged is lost; the same command continues", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_OneLineErrors,
    help="Exact machine unlearning: train, delete, serve, refresh, verify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line (entry point ``s3t``)."""
    app(prog_name="s3t")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Packs, such as minilm and trec6.")],
) -> None:
    """Bring pinned models and data into the cache and verify their digests."""
    from s3t.data.fetch import fetch as bring

    for name in names:
        folder = bring(name, progress=lambda line: typer.echo(line, err=True))
        typer.echo(f"{name}: {folder}")


@app.command()
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


app.command()(predict)
app.command()(judge)
app.command()(delete)
app.command()(duplicates)
app.command()(certify)
app.command()(check)
app.command()(plan)
app.command()(tune)
app.command()(export)
app.command()(check_export)
app.command()(serve)


@app.command()
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


@app.command()
def status(run: Run, as_json: Json = False) -> None:
    """Say how a run stands; the files of all trained nodes are checked."""
    from s3t.system import System

    with closing(System.open(run)) as system:
        facts = asdict(system.status(check=True))
    lines = [f"{name.replace('_', ' '):<16} {plain(value)}" for name, value in facts.items()]
    print_result(as_json, facts, "\n".join(lines))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def verify(ctx: typer.Context) -> None:
    """Audit a run bit for bit, as `python -m verify` does: 0 holds, 1 violated, 2 bad input, 3 undecided."""
    from verify.cli import main as audit

    raise typer.Exit(audit(ctx.args))


@app.command()
def plot(
    rows: Annotated[Path, typer.Option(help="Folder with the rows of the benchmarks.")] = Path("results/rows"),
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("results/figures"),
    profile: Annotated[str | None, typer.Option(help="Only the rows of this profile.")] = None,
    include_dirty: Annotated[bool, typer.Option(help="Also rows from a tree with uncommitted changes.")] = False,
) -> None:
    """Draw the figures from the rows of the benchmarks alone."""
    from benchmarks.figures import draw

    for figure in draw(rows, out, include_dirty=include_dirty, profile=profile):
        typer.echo(str(figure))
