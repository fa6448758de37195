"""``s3t predict``: what a run answers, for its test rows or for a file's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from s3t.answers import CANDIDATE
from s3t.cli.inputs import read_inputs
from s3t.cli.options import ChoiceColumns, Json, Run
from s3t.cli.output import print_result
from s3t.errors import DataError
from s3t.records import Record
from s3t.replies import answered, kind_of, shown


def predict(
    run: Run,
    input_: Annotated[
        Path | None, typer.Option("--input", help="CSV, JSONL, parquet, or a folder of images (else the test rows).")
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the text in --input.")] = "text",
    answer: Annotated[
        str | None, typer.Option(help="Column of the answers in --input, of runs that predict text.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Column with paths of images in --input.")] = None,
    choices: ChoiceColumns = None,
    as_json: Json = False,
) -> None:
    """Answer for the rows of a file, or the run's test rows (and then print the task's metrics)."""
    from s3t.data.tasks import metrics_of
    from s3t.metrics import evaluate
    from s3t.system import System

    if choices is not None and input_ is None:
        raise DataError(
            "--choices says how --input is read; the test rows have theirs, leave it out or give --input FILE"
        )
    given = None if input_ is None else read_inputs(input_, text, image, choices, answer)
    with closing(System.open(run)) as system:
        ranked = tuple(system.classes) == CANDIDATE
        if given is not None:
            _check_choices(run, ranked, choices)
        tests = system.evaluation("test") if given is None else []
        records = tests if given is None else [Record(name, inputs, 0) for name, inputs in given.items()]
        if not records:
            raise DataError(f"{input_ or run} holds no rows to classify; give some with --input FILE")
        scores = system.predict([record.inputs for record in records])
    result = answered(scores, records, system.classes)
    questions = result.get("questions", [])
    if tests:
        official = metrics_of(system.config.data["name"], system.classes)
        result |= evaluate(official, scores, tests, system.classes)
        summary = f"{_told(result, official)} on {len(tests)} test rows"
        summary += f", candidates of {len(questions)} questions" if ranked else ""
    elif ranked:
        summary = "\n".join(f"{shown(each['id'])}\t{each['answer']}" for each in questions)
    else:
        summary = "\n".join(f"{row['id']}\t{row[kind_of(system.classes)]}" for row in result["rows"])
    print_result(as_json, result, summary)


def _told(result: dict[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {result[name]:.4f}" for name in names)


def _check_choices(run: Path, ranked: bool, choices: str | None) -> None:
    """Raise DataError unless rows of a file are given as what the run was trained on, with choices or without."""
    if ranked and choices is None:
        raise DataError(f"{run} ranks candidate answers to questions; name their columns in --input with --choices")
    if choices is not None and not ranked:
        raise DataError(f"{run} was not trained on questions with choices; leave out --choices")
