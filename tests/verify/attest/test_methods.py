"""Certificates of the other methods: adapters that stages continue, whole backbones, a single shard, offline shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from s3t.errors import RunError
from s3t.records import Layout, Recipe
from verify.report import Verdict

from ..conftest import RECORDS
from .conftest import Certified, report_on

RECIPE = Recipe(epochs=0.5, batch_size=8, rank=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "layout"),
    [
        ("sequential", Layout(2, 2, 2)),
        ("sisa-full-lazy", Layout(2, 2, 2)),
        ("sisa-lora", Layout(2, 2, 2)),
        ("retrain-full", Layout(1, 1, 1)),
    ],
)
def test_what_is_certified_is_what_serves(method: str, layout: Layout, tmp_path: Path) -> None:
    from baselines.methods import make_plan
    from s3t.system import System

    run = tmp_path / "run"
    system = System.create(
        run, make_plan(method, layout, RECIPE, 6), RECIPE, model="tiny", classes=("a", "b", "c"), key=bytes(32)
    )
    system.fit(RECORDS)
    system.delete(["row-001"])
    served = {
        f"{node}:{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for node, named in system.weights().items()
        for name, tensor in named.items()
    }
    system.close()
    made = Certified(run, b"", tmp_path / "keys")
    made.raw = made.certify()
    assert {s["name"]: s["digest"]["sha256"] for s in made.statement["subject"]} == served
    report = made.check()
    assert report.verdict is Verdict.HOLDS, report.dumps()


def test_a_shard_that_is_offline_is_certified_as_that(certified: Certified) -> None:
    from s3t.system import System

    system = System.open(certified.run)
    system.retire([(0, piece) for piece in range(3)])
    system.close()
    raw = certified.certify(report_on(certified.run), request="r000002")
    assert certified.check(raw).verdict is Verdict.HOLDS
    assert certified.check().verdict is Verdict.UNDECIDED
    system = System.open(certified.run)
    system.retire([(1, piece) for piece in range(3)])
    system.close()
    with pytest.raises(RunError, match="every shard is offline"):
        certified.certify(report_on(certified.run), request="r000003")
