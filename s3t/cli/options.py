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
Prior = Annotated[
    Path | None, typer.Option(help="File with the request probability of each slice of a shard: JSON list or text.")
]
BlockLayers = Annotated[
    str | None,
    typer.Option(metavar="N[,N...]", help="S3T: layers per block, or one number per slice (layers // slices)."),
]
BottomUp = Annotated[bool, typer.Option("--bottom-up", help="S3T: the first block is the lowest, not the top one.")]
Stacked = Annotated[
    bool, typer.Option("--stacked", help="S3T: every block is on all layers, beside the frozen ones before it.")
]
ShareRank = Annotated[
    bool, typer.Option("--share-rank", help="Divide the rank: a chain stores as much as the paper's blocks at --rank.")
]
LastSlice = Annotated[
    bool, typer.Option("--last-slice-only", help="S3T: a stage reads its last slice alone, not all up to it.")
]
FreshHead = Annotated[bool, typer.Option("--fresh-head", help="S3T: every stage begins with a head of its own.")]
Floor = Annotated[
    float | None, typer.Option(metavar="SHARE", help="An analytic head beside the chains, with this weight (none).")
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="RULE", help="Of live chains: equal, by length, or by its square; the rest is an analytic head's."
    ),
]
Pool = Annotated[
    str, typer.Option(metavar="RULE", help="Chains and an analytic head: linear (mean), or logarithmic (product).")
]
Head = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE|@FILE", help="A field of the analytic head (docs/ANALYTIC.md); @FILE: as tuned."),
]
Limit = Annotated[
    str | None,
    typer.Option(metavar="TRAIN[,VALIDATION,TEST]", help="Fixed subsets: so many training records, or of each split."),
]
CacheGb = Annotated[
    float, typer.Option(help="Fast engine: gigabytes of activations in memory; the rest goes to files.")
]
Workers = Annotated[int, typer.Option(help="How many train nodes at the same time; 1: this process does.")]
Executor = Annotated[str, typer.Option(help="Where workers are: processes (of this machine) or ray.")]
Threads = Annotated[int | None, typer.Option(help="Threads of each worker (this process's, shared out).")]
Address = Annotated[str | None, typer.Option(help="Ray cluster: auto or HOST:PORT (starts one here).")]
Gpus = Annotated[float, typer.Option(help="Share of a GPU for each of Ray's workers, such as 0.25.")]
ExchangePath = Annotated[
    str | None,
    typer.Option(
        "--exchange", metavar="URL", help="Shared store for workers' tensors: any fsspec path (with the calls)."
    ),
]
