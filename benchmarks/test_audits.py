"""The audit of every method on every data set of the profile: trained, asked to delete, and compared with retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.life import stream
from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench
from verify.audit import DEFAULT, audit
from verify.evidence import read_evidence
from verify.laboratory import RunLab
from verify.report import Verdict

ROWS = 120
"""At most so many training records: what is audited hardly depends on it."""
DELETIONS = 3
UNIT = "1 if it holds"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One audit per data set and method of the profile, if it has audits."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    methods = dict.fromkeys(method for method, _ in (*profile.cases, *profile.healthy))
    metafunc.parametrize(
        ("data", "method"), [(data, method) for data in profile.data * profile.audits for method in methods]
    )


def test_audit(benchmark: Any, bench: Workbench, tmp_path: Path, data: str, method: str) -> None:
    """A run with one order trains, deletes, and is audited at the default levels; a verdict other than HOLDS fails."""
    benchmark.group = f"audit: {data}"
    dataset, layout, seed = bench.dataset(data).subset(ROWS, 0, 0), bench.layout(method, 1), bench.profile.seeds[0]
    about: dict[str, Any] = {"question": "audit", "method": method, "budget": 1, "kind": "measured", "seed": seed}
    about |= {"shards": layout.shards, "slices": layout.slices, "data": dataset.name, "model": bench.profile.model}
    about |= {"metric": "audit", "unit": UNIT}
    with bench.answering(**about):
        system = bench.fresh(tmp_path / "run", method, 1, data, seed)
        system.fit(dataset.train)
        system.delete(stream([record.id for record in dataset.train], DELETIONS, seed))
        lab = RunLab(read_evidence(system.path))
        how: dict[str, Any] = {"isolate": False, "records": dataset.train, "lab": lab}
        report = benchmark.pedantic(audit, args=(system, system.path), kwargs=how, rounds=1, iterations=1)
        system.close()
    extra: dict[str, Any] = {"levels": list(DEFAULT), "verdict": report.verdict.value, "seconds": report.seconds}
    extra |= {"deletions": DELETIONS, "findings": len(report.findings), "kernel": bench.mode.kernel}
    bench.add(value=float(report.verdict is Verdict.HOLDS), n=len(dataset.train), extra=extra, **about)
    assert report.verdict is Verdict.HOLDS, report.dumps()
