"""What the commands that make tables of rows share: means with intervals in words, and the command itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.rows import interval, latest, read
from s3t.errors import DataError, S3TError


def share(values: Sequence[float]) -> str:
    """Return the mean over seeds with its 95 % interval: "0.863 [0.850, 0.876]"; alone for one seed."""
    mean, low, high = interval(values)
    return f"{mean:.3f}" if low is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def points(values: Sequence[float]) -> str:
    """Return the mean of differences in points, signed, with its 95 % interval: "+1.2 [-0.3, +2.7]"; alone for one seed."""
    return bounded(*interval(values))


def bounded(mean: float, low: float | None, high: float | None) -> str:
    """Return a difference in points as :func:`points` does, where its interval is known already (None: of one seed)."""
    return f"{mean:+.1f}" if low is None or high is None else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def command(
    arguments: Sequence[str], question: str, makers: Sequence[Callable[[pd.DataFrame, str], str]], module: str
) -> int:
    """Print what each of ``makers`` makes of every data set with rows of ``question`` in the folder that is given.

    ``module``: by which name it is run. Returns 0, or 2 for bad input, which is told in one line.
    """
    if len(arguments) != 1:
        print(f"give the folder of the rows: python -m {module} results/rows", file=sys.stderr)
        return 2
    try:
        rows = latest(read(Path(arguments[0])))
        sets = sorted(set(rows[(rows["question"] == question) & (rows["status"] == "ok")]["data"]))
        if not sets:
            raise DataError(
                f"{arguments[0]} has no clean rows of {question}: run benchmarks/test_{question}.py on a clean tree"
            )
        for data in sets:
            print("\n\n".join((f"## {data}", *(make(rows, data) for make in makers))) + "\n")
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
