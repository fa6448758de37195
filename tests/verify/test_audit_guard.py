"""A system that cannot say what it serves leaves the audit undecided; it is never a pass and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3t import Layout, Recipe, Record
from s3t.errors import RunError
from s3t.method import S3T
from verify.audit import audit
from verify.report import Verdict


def test_without_provenance_the_verdict_is_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record(f"r{i:02d}", {"text": f"a {'cat' if i % 2 else 'dog'} of {i}"}, i % 2) for i in range(12)]
    recipe = Recipe(epochs=1, batch_size=8)
    system = S3T(tmp_path / "run", Layout(1, 1, 1), model="tiny", classes=("a", "b"), recipe=recipe)
    system.fit(records)

    def lost() -> None:
        raise RunError("node 0 has lost its file")

    monkeypatch.setattr(system, "provenance", lost)
    report = audit(system, tmp_path / "run", isolate=False)
    assert report.verdict is Verdict.UNDECIDED
    assert "lost its file" in report.findings[0].message
