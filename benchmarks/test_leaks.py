"""How many planted faults the verifier catches: some (smoke, quick), each once (health), each in every place (full).

The matrix is a table of its own (results/leaks), not rows: its cells are verdicts, and each is due or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verify.leaks import CLEAN, LEAKS
from verify.leaks.matrix import LEVELS, Place, Work, faults, full, play, reduced, write

SMALL = ("smoke", "quick")
SMOKE = (17, 19, 25, 38)
"""Faults of the small profiles, on one clean fit: a selection, a stale server, a leftover, a NaN."""

RESULTS = Path(__file__).resolve().parent.parent / "results" / "leaks"


def chosen(profile: str) -> tuple[Work, tuple[str, ...]]:
    """Return what a profile plays, and at which levels."""
    if profile in SMALL:
        some = [CLEAN, *(leak for leak in LEAKS if leak.number in SMOKE)]
        return {Place("s3t-3x2", 1): some}, LEVELS[:2]
    everything = (CLEAN, *LEAKS)
    return (full(everything) if profile == "full" else reduced(everything)), LEVELS


def test_planted_leaks(benchmark: Any, profile: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every due catch is made and the clean system raises no alarm; the matrix is written, but for the small profiles."""
    benchmark.group = "verifier: planted leaks"
    work, levels = chosen(profile)
    rows = request.config.getoption("--rows")
    out = tmp_path if profile in SMALL else Path(rows) / "leaks" if rows else RESULTS
    out = out if profile == "full" else out / "reduced"
    cells = benchmark.pedantic(play, args=(work, out, levels), rounds=1, iterations=1)
    leaks = (CLEAN, *LEAKS)
    write(cells, leaks, out, complete=True)
    benchmark.extra_info |= {
        "faults": len({cell.leak for cell in cells if cell.leak}),
        "places": len({cell.place for cell in cells}),
        "cells": len(cells),
        "caught": sum(not cell.missed(leak) for cell in cells for leak in leaks if leak.number == cell.leak != 0),
    }
    assert faults(cells, leaks) == []
