"""Arguments and options that several commands share: the run, the form of the answer, which data and which of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder; it holds everything and can be moved.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
Data = Annotated[
    str, typer.Option(help="A pack, a hub name, a CSV, JSON, JSONL or parquet file, or a folder of images.")
]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text (local files, hub).")]
AnswerColumn = Annotated[
    str | None, typer.Option("--answer", help="Column of the text to answer with (local files, hub).")
]
ImageColumn = Annotated[str | None, typer.Option(help="Column with paths of images (local files).")]
ChoiceColumns = Annotated[
    str | None, typer.Option(help="Columns of the candidate answers to the question in --text, separated by commas.")
]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label.")]
IdColumn = Annotated[str | None, typer.Option("--id", help="Column of the stable id.")]
GroupColumn = Annotated[str | None, typer.Option(help="Column that says whose a record is: one slot each.")]
Classes = Annotated[str | None, typer.Option(help="All classes, separated by commas.")]
Number = Annotated[str | None, typer.Option(metavar="LOW:HIGH", help="Labels are numbers in this range.")]
Validation = Annotated[str | None, typer.Option(help="File or split for tuning, never deletable.")]
Test = Annotated[str | None, typer.Option(help="File or split for reporting, never deletable.")]
BlockLayers = Annotated[
    str | None,
    typer.Option(metavar="N[,N...]", help="S3T: layers per block, or one number per slice (layers // slices)."),
]
BottomUp = Annotated[bool, typer.Option("--bottom-up", help="S3T: the first block is the lowest, not the top one.")]
LastSlice = Annotated[
    bool, typer.Option("--last-slice-only", help="S3T: a stage reads its last slice alone, not all up to it.")
]
FreshHead = Annotated[bool, typer.Option("--fresh-head", help="S3T: every stage begins with a head of its own.")]
Limit = Annotated[
    str | None,
    typer.Option(metavar="TRAIN[,VALIDATION,TEST]", help="Fixed subsets: so many training records, or of each split."),
]
