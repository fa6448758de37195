"""Accuracy against the share of the data in service, as measured: columns shards, slices, share, accuracy of a CSV file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3t.errors import DataError

COLUMNS = ("shards", "slices", "share", "accuracy")


@dataclass(frozen=True)
class Curve:
    """Points (share, accuracy) by (shards, slices), sorted by share."""

    points: dict[tuple[int, int], tuple[tuple[float, float], ...]]

    def at(self, shards: int, slices: int, share: float) -> float | None:
        """Return the accuracy at ``share``, between points by straight lines; None outside of what was measured."""
        known = self.points.get((shards, slices), ())
        if not known or not known[0][0] <= share <= known[-1][0]:
            return None
        shares, accuracies = np.array(known).T
        return float(np.interp(share, shares, accuracies))


def read_curve(path: Path) -> Curve:
    """Read a curve. DataError naming the line for a file that is none."""
    import csv

    points: dict[tuple[int, int], list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != COLUMNS:
                raise DataError(f"{path} has columns {lines.fieldnames}, not {', '.join(COLUMNS)}")
            for number, line in enumerate(lines, start=2):
                try:
                    shards, slices = int(line["shards"]), int(line["slices"])
                    share, accuracy = float(line["share"]), float(line["accuracy"])
                except (TypeError, ValueError) as error:
                    raise DataError(f"{path}, line {number}: {error}; give {', '.join(COLUMNS)}") from error
                if not (0 <= share <= 1 and 0 <= accuracy <= 1 and shards >= 1 and slices >= 1):
                    raise DataError(f"{path}, line {number}: a share and an accuracy lie within 0..1")
                points.setdefault((shards, slices), []).append((share, accuracy))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a CSV file with {', '.join(COLUMNS)}") from error
    if not points:
        raise DataError(f"{path} has no points; give lines of {', '.join(COLUMNS)}")
    return Curve({place: tuple(sorted(known)) for place, known in points.items()})
