"""The command that deletes: ids, files of ids, groups, and copies, all in one atomic request."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.inputs import choose_ids
from s3t.cli.options import Json, Run
from s3t.cli.output import print_result
from s3t.cli.records import Cut, Threshold, choose_shingles, with_copies
from s3t.errors import DataError
from s3t.replies import acknowledged


def delete(
    run: Run,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Id of a record to delete; repeat for several.")] = None,
    ids_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File with one id per line.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="All records of a group (a person) of --group-by; repeat for several.")
    ] = None,
    some: Annotated[int, typer.Option("--any", min=0, help="For trials: this many retained records.")] = 0,
    closure: Annotated[bool, typer.Option("--closure", help="Delete every retained copy of them as well.")] = False,
    threshold: Threshold = 0.8,
    shingles: Cut = "characters",
    as_json: Json = False,
) -> None:
    """Delete records, all in one atomic request, without any training (eager methods retrain at once)."""
    from s3t.system import System

    chosen = choose_shingles(shingles)
    wanted = list(ids or [])
    if ids_file is not None:
        wanted += [line.strip() for line in ids_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    with closing(System.open(run)) as system:
        wanted += [name for one in group or [] for name in system.members(one)]
        if some:
            wanted += choose_ids(system.each_id(), some)
        if not wanted:
            raise DataError("no id is given; name records with --id, --ids-file or --group")
        named = set(wanted)
        if closure:
            wanted = with_copies(run, wanted, threshold, chosen)
        receipt = system.delete(wanted)
    added = [name for name in receipt.deleted if name not in named]
    lines = acknowledged(receipt, added, closure=closure)
    print_result(as_json, {**asdict(receipt), "copies": added}, "\n".join(lines))
