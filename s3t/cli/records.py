"""Commands about records: copies under other ids, before training and on request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s3t.cli.inputs import read_dataset
from s3t.cli.options import Json, Limit
from s3t.cli.output import print_result
from s3t.errors import DataError

if TYPE_CHECKING:
    from s3t.duplicates import Duplicates, Shingles
    from s3t.records import Layout, Record

MOST = 30_000_000
"""Work up to which training looks for duplicates unasked, in characters plus 200 per record: about a minute on one core.

100,000 texts of 57 characters (25.7 million) took 44 s and 1 GB, 10,209 newsgroup posts (17.1 million) 18 s, the 4,320
training questions of TREC-6 1.4 s, on one of two busy cores.
"""


def choose_shingles(name: str) -> Shingles:
    """Return ``name`` as a kind of shingles. Raises DataError for an unknown one."""
    if name == "characters":
        return "characters"
    if name == "words":
        return "words"
    raise DataError(f"--shingles {name!r} is unknown; choose characters (runs of 5) or words (runs of 3)")


def report_before_training(records: Sequence[Record], key: bytes, layout: Layout) -> dict[str, Any]:
    """Say on stderr how many copies ``records`` hold, and return the same as figures; neither names a record."""
    from s3t import duplicates
    from s3t.partition import slot

    work = duplicates.characters(records) + 200 * len(records)
    if work > MOST:
        note = f"not looked for among {len(records)} records, which would take minutes; ask with `s3t duplicates RUN`"
        typer.echo(f"duplicates: {note}", err=True)
        return {"skipped": note}
    found = duplicates.find(records, place=lambda name: slot(key, name, layout))
    typer.echo(f"duplicates: {summary(found)}", err=True)
    return found.counts()


def summary(found: Duplicates) -> str:
    """Say in one line what was found, without any id."""
    facts = found.counts()
    how = f"Jaccard similarity of their {found.shingles} at least {found.threshold:g}"
    if not found.groups:
        return f"none among {found.compared} records ({how})"
    text = (
        f"{facts['groups']} groups hold {facts['records']} of {found.compared} records ({facts['exact_groups']} of "
        f"exact copies, {facts['labels_differ']} with different labels; {how})"
    )
    if facts["across_slots"] is None:
        return f"{text}; deleting one copy leaves the others"
    return (
        f"{text}; {facts['across_slots']} lie in several slots, {facts['across_shards']} in several shards: deleting "
        "one copy leaves the others, `s3t delete --closure` takes them along"
    )


def with_copies(run: Path, ids: Sequence[str], threshold: float, shingles: Shingles) -> list[str]:
    """Return ``ids`` and the retained copies of each; ids that are not retained (any more) are passed on as they are."""
    from s3t import duplicates
    from s3t.runs import open_run

    with closing(open_run(run)) as opened:
        group = duplicates.closure(duplicates.retained(opened), ids, threshold=threshold, shingles=shingles)
    return list(dict.fromkeys((*ids, *group)))


Threshold = Annotated[float, typer.Option(help="Jaccard similarity from which two records are copies.")]
Cut = Annotated[str, typer.Option("--shingles", help="What texts are cut into: characters (5) or words (3).")]


def duplicates(
    where: Annotated[str, typer.Argument(metavar="DATA_OR_RUN", help="A run's folder, or data as in `s3t train`.")],
    threshold: Threshold = 0.8,
    shingles: Cut = "characters",
    text: Annotated[str | None, typer.Option(help="Column of the text (local files, hub).")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Column of the stable id.")] = None,
    classes: Annotated[str | None, typer.Option(help="All classes, separated by commas.")] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List the groups of exact and near duplicates among training records: a run's retained ones, or those of data."""
    from s3t.duplicates import find, retained
    from s3t.partition import slot
    from s3t.runs import CONFIG, open_run
    from s3t.system import System

    chosen = choose_shingles(shingles)
    if (Path(where) / CONFIG).exists():
        with closing(System.open(where)), closing(open_run(Path(where))) as run:
            key, layout = run.key, run.config.plan.layout
            found = find(
                retained(run), threshold=threshold, shingles=chosen, place=lambda name: slot(key, name, layout)
            )
    else:
        dataset = read_dataset(where, {"text": text, "label": label, "id": id_}, classes, limit)
        found = find(dataset.train, threshold=threshold, shingles=chosen)
    lines = [summary(found)]
    for group in found.groups:
        kind = "exact" if group.exact else "near"
        more = ", different labels" if group.labels_differ else ""
        places = ", slots " + " ".join(f"{shard}.{piece}" for shard, piece in group.slots) if group.slots else ""
        lines.append(f"{kind}{more}{places}: {' '.join(group.ids)}")
    groups = [
        {"ids": g.ids, "exact": g.exact, "labels_differ": g.labels_differ, "slots": g.slots} for g in found.groups
    ]
    print_result(as_json, {**found.counts(), "list": groups}, "\n".join(lines))
