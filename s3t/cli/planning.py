"""``s3t plan``: how many shards, slices and orders a service needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s3t.cli.inputs import choose_recipe, read_dataset, read_prior
from s3t.cli.options import Json, LabelColumn, TextColumn
from s3t.cli.output import print_result
from s3t.errors import S3TError

if TYPE_CHECKING:
    from s3t.plan import MakePlan
    from s3t.planner.curve import Curve
    from s3t.planner.options import Needs, Option
    from s3t.planner.price import Price

RIVALS = ("sisa-lora", "retrain-lora")
"""Methods that train again at each deletion, compared with by cost."""
SHOWN = 24
"""Rows of the table; ``--json`` has all."""


def plan(
    records: Annotated[int, typer.Option(help="Training records.")],
    requests_per_day: Annotated[float, typer.Option(help="Deletion requests per day, each for one record.")],
    model: Annotated[str, typer.Option(help="A pack, a folder or a hub name; nodes are measured on it.")] = "minilm",
    data: Annotated[
        str, typer.Option(help="Records like yours to measure on: a pack, a hub name or a file.")
    ] = "trec6",
    text: TextColumn = None,
    label: LabelColumn = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs per stage.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA matrices.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any field of the recipe.")] = None,
    disk: Annotated[float, typer.Option(help="Disk for trained nodes, GB (10^9 bytes).")] = math.inf,
    max_rebuilds_per_year: Annotated[float, typer.Option(help="Rebuilds that are bearable.")] = math.inf,
    max_hours: Annotated[float, typer.Option(help="Training up front that is bearable, hours.")] = math.inf,
    min_records_per_slice: Annotated[int, typer.Option(help="Fewest records that a slice may have.")] = 20,
    max_shards: Annotated[int, typer.Option(help="Most shards to think of.")] = 32,
    rebuild_at: Annotated[
        str, typer.Option(help="Rebuild when the first shard, half, or the last one is dead.")
    ] = "first",
    prior: Annotated[
        Path | None, typer.Option(help="Request probabilities of a shard's slices (JSON, CSV or text), by slice.")
    ] = None,
    price: Annotated[Path | None, typer.Option(help="Take the price of work from here; measure nothing.")] = None,
    save_price: Annotated[Path | None, typer.Option(help="Write the price of work there.")] = None,
    curve: Annotated[
        Path | None,
        typer.Option(help="Accuracy: CSV of shards, slices, share in service, accuracy; or rows."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the options and the Pareto front there (PNG, SVG, PDF).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Weigh layouts: what each costs and bears, which are not beaten, and which one to take, in one sentence."""
    from baselines.methods import find
    from s3t.planner.options import Needs, options, pareto, pick
    from s3t.planner.price import measure, read, write

    chosen = choose_recipe({"epochs": epochs, "rank": rank}, recipe or [])
    needs = Needs(
        records,
        requests_per_day,
        chosen,
        disk * 1e9,
        max_rebuilds_per_year,
        max_hours,
        min_records_per_slice,
        max_shards,
        rebuild_at,  # type: ignore[arg-type]
        tuple(read_prior(prior)) if prior else (),
    )
    known = _known(curve, model) if curve else None
    if price:
        priced = read(price)
    else:
        typer.echo(f"measuring what nodes of {model} cost (--price FILE takes it as given)", err=True)
        priced = measure(model, read_dataset(data, {"text": text, "label": label}, None, None), chosen)
    if save_price:
        write(priced, save_price)
    rivals: dict[str, MakePlan] = {name: find(name) for name in RIVALS}
    found = list(options(needs, priced, rivals, known))
    if not found:
        raise S3TError(f"{records} records leave no layout with {min_records_per_slice} records per slice; lower that")
    front = pareto(found)
    best, why = pick(found, needs)
    if figure:
        from benchmarks.planning import draw_options

        draw_options(found, front, best, needs, figure)
    result: dict[str, Any] = {
        "needs": {name: None if value == math.inf else value for name, value in asdict(needs).items()},
        "price": asdict(priced),
        "options": len(found),
        "pareto": [_plainly(option) for option in front],
        "pick": _plainly(best),
        "why": why,
    }
    print_result(as_json, result, _table(front, best, needs, priced) + f"\n\n{why}")


def _known(path: Path, model: str) -> Curve:
    """Read the curve from a CSV file, or from a folder of the benchmarks' rows."""
    from s3t.planner.curve import read_curve

    if not path.is_dir():
        return read_curve(path)
    from benchmarks.planning import curve_of_rows

    return curve_of_rows(path, model)


def _plainly(option: Option) -> dict[str, Any]:
    return {name: None if value == math.inf else value for name, value in asdict(option).items()}


def _table(front: Sequence[Option], best: Option, needs: Needs, price: Price) -> str:
    """Return the Pareto set as a table, the pick marked; every time is one of this machine, node after node."""
    from s3t.planner.options import misses

    lines = [
        f"{'shards x slices x orders':<26}{'first dead':>16}{'last dead':>16}{'rebuilds':>10}{'up front':>10}"
        f"{'disk':>10}{'behind a':>12}{'accuracy':>10}{'per deletion':>14}" + "".join(f"{n:>14}" for n in RIVALS),
        f"{'':<26}{'days':>16}{'days':>16}{'a year':>10}{'':>10}{'':>10}{'model':>12}{'':>10}",
    ]
    shown = sorted(front, key=lambda o: (bool(misses(o, needs)), -o.behind, o.upfront))[:SHOWN]
    for option in shown if best in shown else [best, *shown[:-1]]:
        mark = "*" if option == best else "-" if misses(option, needs) else " "
        lines.append(
            f"{mark} {option.name:<24}{option.first / needs.per_day:>16,.1f}{option.last / needs.per_day:>16,.1f}"
            f"{option.rebuilds_per_year:>10,.1f}{_time(option.upfront):>10}{_size(option.bytes):>10}{option.behind:>12,.0f}"
            + ("-" if option.accuracy is None else f"{option.accuracy:.1%}").rjust(10)
            + f"{_time(option.per_deletion):>14}"
            + "".join(f"{_time(option.rivals[name]):>14}" for name in RIVALS)
        )
    left = f"; {len(front) - len(shown)} more with --json" if len(front) > len(shown) else ""
    lines.append(
        f"{len(front)} layouts that no other beats{left}; * the pick, - outside the limits. Behind a model: records that a "
        f"served shard has learned from, half way to the rebuild. Times as on this machine with "
        f"{price.model} ({price.seconds_per_layer_pass * 1e6:.1f} us per layer pass), one node after another"
    )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def _size(size: float) -> str:
    for unit, amount in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= amount:
            return f"{size / amount:,.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
