"""Commands about exports: write what a shard serves as a standard PEFT adapter, check such a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.options import Json, Run
from s3t.cli.output import print_result


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    shard: Annotated[int, typer.Option(min=0, help="The shard whose serving chain is exported.")] = 0,
    base: Annotated[str, typer.Option(help="Name under which others load the base model (default: the run's).")] = "",
    certificate: Annotated[Path | None, typer.Option(help="Certificate of `s3t certify` to put beside it.")] = None,
    push: Annotated[str, typer.Option(help="Also upload it to the hub as OWNER/NAME (private).")] = "",
    as_json: Json = False,
) -> None:
    """Write the chain that a shard serves as one standard PEFT adapter, with its head and a model card."""
    from s3t.exporting import export as write

    told = write(run, shard, out, base=base, certificate=certificate)
    served = f"slices {', '.join(map(str, told.order))} of shard {shard}, {told.rows} records"
    text = f"{out}: {served}; a later deletion does not reach it (s3t check-export)"
    address = ""
    if push:
        from s3t.exporting import push as upload

        address = upload(out, push)
        text += f"\nuploaded to {address}: withdraw it there too when check-export says so"
    print_result(as_json, asdict(told) | {"pushed": address}, text)


def check_export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of `s3t export`.")],
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="The run, to see what was deleted since.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether an export is intact, and, given its run, whether a deletion has hit it: 0 no, 1 yes, 2 bad input."""
    from s3t.exporting import check

    found = check(folder, run)
    if found.hit is None:
        text = f"{folder}: intact, as exported at entry {found.statement.entry} of its run; name the run to see more"
    elif found.hit:
        places = ", ".join(f"slice {piece} of shard {shard}" for shard, piece in found.hit)
        text = f"{folder}: intact, but requests have since hit {places}: withdraw it and export anew"
    else:
        text = f"{folder}: intact, and no request has hit what it was trained on"
    print_result(as_json, {"intact": True, "hit": found.hit, "statement": asdict(found.statement)}, text)
    if found.hit:
        raise typer.Exit(1)
