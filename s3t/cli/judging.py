"""``s3t judge``: what a run of a language model scores in the tasks of lm-evaluation-harness."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.options import Json, Run
from s3t.cli.output import print_result, progress_bar
from s3t.errors import DataError, RunError


def judge(
    run: Run,
    tasks: Annotated[str, typer.Option(help="Tasks and groups of the harness, separated by commas: hellaswag,mmlu.")],
    limit: Annotated[int | None, typer.Option(min=1, help="The first documents of each task alone.")] = None,
    include: Annotated[
        Path | None, typer.Option(help="Folder with YAML files of further tasks; code beside them is run.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Worked examples in each prompt, where the task does not fix them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge the ensemble that a run of a language model serves, by tasks of lm-evaluation-harness."""
    names = [name for part in tasks.split(",") if (name := part.strip())]
    if not names:
        raise DataError(f"--tasks {tasks!r} names no task; give some, for example hellaswag,piqa,arc_easy,mmlu")
    from s3t.system import System

    try:
        from s3t.judging import judge as judged
    except ImportError as error:
        raise RunError(f'judging needs lm-evaluation-harness ({error}); pip install "s3t[judge]"') from error
    with closing(System.open(run)) as system, progress_bar() as progress:
        found = judged(system, names, limit=limit, include=include, shots=shots, progress=progress)
    lines = [f"{'task':<32} {'metric':<16} {'value':>8} {'stderr':>8} {'n':>7}"]
    for one in found.scores:
        spread = "" if one.stderr is None else f"{one.stderr:.4f}"
        lines.append(f"{one.task:<32} {one.metric:<16} {one.value:>8.4f} {spread:>8} {one.n:>7}")
    if limit is not None:
        lines.append(f"the first {limit} documents of each task alone: no result to compare with others")
    print_result(as_json, {"run": str(run), "limit": limit, **asdict(found)}, "\n".join(lines))
